"""The data gate: Great Expectations runs the recipe's suite over a batch, and Data Docs show why one does not get in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from headrace.data.chunks import Chunks
from headrace.data.validation.chunked import check_types, judge_chunks
from headrace.data.validation.context import Opened, quiet_gx
from headrace.data.validation.suite import described, identity, implicit_expectations, native, plain, propose_suite
from headrace.errors import DataRejected
from headrace.files import write_text
from headrace.project import Project

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from rich.console import RenderableType

    from headrace.recipe.recipe import Recipe

__all__ = ["Failure", "Sample", "ValidationReport", "propose_suite", "render", "validate"]
SAMPLES = 5
"""Values shown of each failing expectation."""
PIXELS = "headrace_pixels_to_be_between_0_and_255"
"""Headrace's own check: one expectation a pixel would take longer than training."""


class Sample(BaseModel):
    """A value that failed, with its row in the batch, counted from 1."""

    model_config = ConfigDict(frozen=True)
    row: int
    value: Any


class Failure(BaseModel):
    """One expectation that the batch did not meet."""

    model_config = ConfigDict(frozen=True)
    type: str
    column: str | None
    arguments: dict[str, Any]
    implicit: bool
    """Added by Headrace, not by the recipe."""
    unexpected: int | None = None
    """Rows that failed; None when the expectation looks at the table as a whole."""
    percent: float | None = None
    """Of the rows that have a value."""
    observed: Any = None
    """What was seen instead, for an expectation about a whole column or table."""
    samples: list[Sample] = []
    problem: str | None = None
    """Why the expectation could not be computed at all."""


class ValidationReport(BaseModel):
    """What the gate found in one batch."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    batch: str
    at: str
    rows: int
    success: bool
    passed: int
    total: int
    implicit: list[str]
    """Expectations that Headrace adds to every suite."""
    failures: list[Failure]
    docs: str
    """The page of this validation in Data Docs."""
    failing_rows: list[int] = Field(default=[], exclude=True)
    """Rows (counted from 0) that failed at least one expectation."""

    def to_json(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def raise_if_failed(self, hint: str | None = None) -> None:
        """
        Raises:
            DataRejected: the batch failed; the message counts and shows samples.
        """
        if self.success:
            return
        lines = [f"{len(self.failures)} of {self.total} expectations failed on {self.rows} rows"]
        lines += [f"  {_sentence(failure)}" for failure in self.failures[:10]]
        raise DataRejected(
            "\n".join(lines),
            where=f"{self.recipe}, {self.batch}",
            hint=hint or f"correct the data or the recipe's expect; the page: {self.docs}",
        )


def validate(
    table: pd.DataFrame | Chunks, recipe: Recipe, project: Project, batch_name: str, known_labels: Sequence[Any] | None = None
) -> ValidationReport:
    """Runs the recipe's suite, and what Headrace always expects, over `table`; writes Data Docs. Of a table in chunks each
    chunk is judged by itself and counts are added up, so that the report is that of the whole; it names the first failing
    rows only.

    Args:
        batch_name: names the batch in reports and Data Docs.
        known_labels: labels of the data already in, for a classification; others fail unless the recipe names its own set.

    Raises:
        RecipeError: an expectation has a wrong argument, or names a column that the recipe does not have, or looks at all
            rows of a table in chunks.
    """
    from filelock import FileLock

    is_whole = not isinstance(table, Chunks)
    frame = table.reset_index(drop=True) if not isinstance(table, Chunks) else next(table.frames())
    with quiet_gx():
        named = native(recipe, frame)
        already = {identity(e.expectation_type, e.configuration.kwargs) for e in named}
        implicit = [
            e
            for e in implicit_expectations(frame, recipe, known_labels)
            if identity(e.expectation_type, e.configuration.kwargs) not in already
        ]
        expectations = [*named, *implicit]
        project.locks.mkdir(parents=True, exist_ok=True)
        if isinstance(table, Chunks):
            check_types(expectations, recipe)
        with FileLock(project.locks / "validation.lock"):  # Data Docs' index is one file for all recipes
            opened = Opened(recipe, project, batch_name, expectations)
            if isinstance(table, Chunks):
                result, failed, docs = judge_chunks(table, opened, frame)
            else:
                result, failed, docs = _judge(frame, opened)
    failures, rows = [], set[int]()
    implicit_ids = {identity(e.expectation_type, e.configuration.kwargs) for e in implicit}
    for one in failed:
        failure, bad = _failure(one, frame if is_whole else None, implicit_ids)
        failures.append(failure)
        rows.update(bad)
    total = len(result.results)
    if recipe.data.image is not None:
        total += 1
        if pixels := _bad_pixels(frame, recipe):
            failures.append(pixels[0])
            rows.update(pixels[1])
    return ValidationReport(
        recipe=recipe.name,
        batch=batch_name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=table.rows if isinstance(table, Chunks) else len(table),
        success=not failures,
        passed=total - len(failures),
        total=total,
        implicit=[described(e) for e in implicit] + ([PIXELS] if recipe.data.image else []),
        failures=failures,
        docs=docs,
        failing_rows=sorted(rows),
    )


def render(report: ValidationReport) -> RenderableType:
    """The report for a terminal: failing expectations with their counts and sample rows, or one line when all is well."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    head = f"{report.recipe}, {report.batch}: {report.passed} of {report.total} expectations met on {report.rows:,} rows"
    if report.success:
        return Text(head, style="green")
    table = Table(title=escape(head), title_justify="left", title_style="bold red")
    for column, justify in (
        ("expectation", "left"),
        ("column", "left"),
        ("rows", "right"),
        ("share", "right"),
        ("seen", "left"),
    ):
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for failure in report.failures:
        share = "" if failure.percent is None else f"{failure.percent:.2f} %"
        rows = "" if failure.unexpected is None else f"{failure.unexpected:,}"
        table.add_row(
            failure.type + (" (implicit)" if failure.implicit else ""),
            escape(failure.column or ""),
            rows,
            share,
            escape(_seen(failure)),
        )
    return Group(table, Text(f"Data Docs: {report.docs}"))


def _judge(
    frame: pd.DataFrame, opened: Opened
) -> tuple[ExpectationSuiteValidationResult, list[ExpectationValidationResult], str]:
    """The suite's result, the failing expectations with all their rows, and the page in Data Docs."""
    result = opened.run(frame)
    docs = opened.page(result)
    batch = opened.batch(frame)
    failed = [one for one in result.results if not one.success]
    # Only now all failing rows are asked for: of a batch that passes, none would be.
    complete = [
        batch.validate(one.expectation_config.to_domain_obj(), result_format="COMPLETE")
        for one in failed
        if one.expectation_config is not None
    ]
    return result, complete, docs


def _failure(
    result: ExpectationValidationResult, frame: pd.DataFrame | None, implicit_ids: set[str]
) -> tuple[Failure, list[int]]:
    """One failing expectation in our terms, and the rows that failed it. `frame` is the table as a whole; without it the
    result brings its values."""
    config = result.expectation_config
    assert config is not None  # Great Expectations always says what it ran
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id"}
    details: dict[str, Any] = dict(result.result or {})
    rows = [int(row) for row in details.get("unexpected_index_list") or []]
    column = arguments.get("column")
    values: Any = []
    if frame is None:
        values = (details.get("partial_unexpected_list") or [None] * len(rows)) if column else []
    elif column in frame.columns:
        values = frame[column].iloc[rows[:SAMPLES]]
    failure = Failure(
        type=config.type,
        column=column,
        arguments=plain(arguments),
        implicit=identity(config.type, arguments) in implicit_ids,
        unexpected=details.get("unexpected_count"),
        percent=details.get("unexpected_percent_nonmissing", details.get("unexpected_percent")),
        observed=plain(details.get("observed_value")),
        problem=_problem(result),
        samples=[Sample(row=row + 1, value=plain(value)) for row, value in zip(rows[:SAMPLES], values, strict=False)],
    )
    return failure, rows


def _problem(result: ExpectationValidationResult) -> str | None:
    """The first line of the exception, where one stopped the expectation."""
    info: dict[str, Any] = dict(result.exception_info or {})
    entries = [info] if "raised_exception" in info else [one for one in info.values() if isinstance(one, dict)]
    said = [str(one.get("exception_message", "")) for one in entries if one.get("raised_exception")]
    return said[0].strip().splitlines()[0][:300] if said and said[0].strip() else None


def _bad_pixels(frame: pd.DataFrame, recipe: Recipe) -> tuple[Failure, list[int]] | None:
    """Rows with a pixel that is missing, no number, or outside 0 to 255."""
    import numpy as np
    import pandas as pd

    columns = recipe.data.features(frame.columns)
    bad = np.zeros(len(frame), dtype=bool)
    first: dict[int, Any] = {}
    for column in columns:
        if frame[column].dtype == np.uint8:  # nothing else fits into it
            continue
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = ~((numbers >= 0) & (numbers <= 255))
        for row in np.flatnonzero(wrong & ~bad)[:SAMPLES]:
            first[int(row)] = f"{column} = {plain(frame[column].iloc[row])}"
        bad |= wrong
    rows = [int(row) for row in np.flatnonzero(bad)]
    if not rows:
        return None
    samples = [Sample(row=row + 1, value=first.get(row)) for row in rows[:SAMPLES]]
    return Failure(
        type=PIXELS,
        column=None,
        arguments={},
        implicit=True,
        unexpected=len(rows),
        percent=100 * len(rows) / len(frame),
        samples=samples,
    ), rows


def _sentence(failure: Failure) -> str:
    column = f" {failure.column}" if failure.column else ""
    rows = f": {failure.unexpected} rows" if failure.unexpected is not None else ""
    share = f" ({failure.percent:.3g} %)" if failure.percent is not None else ""
    seen = _seen(failure)
    return f"{failure.type}{column}{rows}{share}" + (f"; {seen}" if seen else "")


def _seen(failure: Failure) -> str:
    if failure.problem:
        return failure.problem
    if failure.samples:
        return ", ".join(f"row {sample.row}: {sample.value!r}" for sample in failure.samples)
    return "" if failure.observed is None else f"seen {failure.observed!r}"[:200]
