"""Data validation: Great Expectations runs the recipe's suite over a batch, and Data Docs show why a batch is refused."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from headrace.data.chunks import Chunks
from headrace.data.validation.chunked import check_types, validate_chunks
from headrace.data.validation.context import ValidationContext, quiet_gx
from headrace.data.validation.suite import (
    PIXELS,
    describe,
    expectation_key,
    implicit_expectations,
    recipe_expectations,
    to_json_value,
)
from headrace.errors import DataRejected
from headrace.files import write_text
from headrace.project import Project

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult
    from rich.console import RenderableType

    from headrace.recipe.recipe import Recipe

MAX_SAMPLES = 5
"""Values shown of each failed expectation."""


class Sample(BaseModel):
    """A value that failed, with its row in the batch, counted from 1."""

    model_config = ConfigDict(frozen=True)
    row: int
    value: Any


class Failure(BaseModel):
    """An expectation that failed."""

    model_config = ConfigDict(frozen=True)
    type: str
    column: str | None
    arguments: dict[str, Any]
    implicit: bool
    """Added by Headrace, not by the recipe."""
    unexpected: int | None = None
    """Rows that failed; None when the expectation is about the table as a whole."""
    percent: float | None = None
    """Share of the rows that have a value, in percent."""
    observed: Any = None
    """The observed value, for an expectation about a whole column or table."""
    samples: list[Sample] = []
    problem: str | None = None
    """Why the expectation could not be computed at all."""


class ValidationReport(BaseModel):
    """The result of validating one batch."""

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

    @property
    def summary(self) -> str:
        """One line: how many expectations passed, on how many rows."""
        return f"{self.passed} of {self.total} expectations passed on {self.rows:,} rows"

    def to_json(self, path: Path) -> None:
        write_text(path, self.model_dump_json(indent=1) + "\n")

    def raise_if_failed(self, hint: str | None = None) -> None:
        """
        Raises:
            DataRejected: the batch failed; the message counts the rows and shows samples.
        """
        if self.success:
            return
        lines = [f"{len(self.failures)} of {self.total} expectations failed on {self.rows} rows"]
        lines += [f"  {_sentence(failure)}" for failure in self.failures[:10]]
        raise DataRejected(
            "\n".join(lines),
            where=f"{self.recipe}, {self.batch}",
            hint=hint or f"correct the data or `expect` in the recipe; Data Docs: {self.docs}",
        )


def validate(
    table: pd.DataFrame | Chunks, recipe: Recipe, project: Project, batch_name: str, known_labels: Sequence[Any] | None = None
) -> ValidationReport:
    """Runs the recipe's expectations, and those that Headrace always adds, over `table`, and writes Data Docs. A table in
    chunks is validated chunk by chunk and the counts are added up: the report is that of the whole table, but it names the
    first failing rows only.

    Args:
        batch_name: names the batch in reports and Data Docs.
        known_labels: labels in the data so far, for a classification. Other labels fail, unless the recipe has its own set.

    Raises:
        RecipeError: an expectation has a wrong argument, names a column that the recipe does not have, or needs all rows of
            a table in chunks.
    """
    from filelock import FileLock

    frame = next(table.frames()) if isinstance(table, Chunks) else table.reset_index(drop=True)
    with quiet_gx():
        explicit = recipe_expectations(recipe, frame)
        keys = {expectation_key(e.expectation_type, e.configuration.kwargs) for e in explicit}
        implicit = [
            e
            for e in implicit_expectations(frame, recipe, known_labels)
            if expectation_key(e.expectation_type, e.configuration.kwargs) not in keys
        ]
        expectations = [*explicit, *implicit]
        project.locks.mkdir(parents=True, exist_ok=True)
        if isinstance(table, Chunks):
            check_types(expectations, recipe)
        with FileLock(project.locks / "validation.lock"):  # the index of Data Docs is one file for all recipes
            context = ValidationContext(recipe, project, batch_name, expectations)
            if isinstance(table, Chunks):
                result, failed, docs = validate_chunks(table, context, frame)
            else:
                result, failed, docs = _validate_table(frame, context)
    implicit_keys = {expectation_key(e.expectation_type, e.configuration.kwargs) for e in implicit}
    failures, rows = [], set[int]()
    for one in failed:
        failure, failing = _failure(one, None if isinstance(table, Chunks) else frame, implicit_keys)
        failures.append(failure)
        rows.update(failing)
    total = len(result.results)
    return ValidationReport(
        recipe=recipe.name,
        batch=batch_name,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=table.rows if isinstance(table, Chunks) else len(table),
        success=not failures,
        passed=total - len(failures),
        total=total,
        implicit=[describe(e) for e in implicit],
        failures=failures,
        docs=docs,
        failing_rows=sorted(rows),
    )


def render(report: ValidationReport) -> RenderableType:
    """Returns the report for a terminal: a table of failed expectations with counts and sample rows, or one line."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    head = f"{report.recipe}, {report.batch}: {report.summary}"
    if report.success:
        return Text(head, style="green")
    table = Table(title=escape(head), title_justify="left", title_style="bold red")
    for column, justify in (
        ("expectation", "left"),
        ("column", "left"),
        ("rows", "right"),
        ("share", "right"),
        ("observed", "left"),
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
            escape(_observed(failure)),
        )
    return Group(table, Text(f"Data Docs: {report.docs}"))


def _validate_table(
    frame: pd.DataFrame, context: ValidationContext
) -> tuple[ExpectationSuiteValidationResult, list[ExpectationValidationResult], str]:
    """Returns the suite's result, the failed expectations with all failing rows, and the page in Data Docs."""
    result = context.run(frame)
    docs = context.build_page(result)
    batch = context.batch(frame)
    failed = [one for one in result.results if not one.success]
    # All failing rows are asked for in a second run, of the failed expectations alone: most batches have none.
    complete = [
        batch.validate(one.expectation_config.to_domain_obj(), result_format="COMPLETE")
        for one in failed
        if one.expectation_config is not None
    ]
    return result, complete, docs


def _failure(
    result: ExpectationValidationResult, frame: pd.DataFrame | None, implicit_keys: set[str]
) -> tuple[Failure, list[int]]:
    """Returns one failed expectation and the rows that failed it. `frame` is the whole table; without it the values come
    from the result."""
    config = result.expectation_config
    assert config is not None  # Great Expectations always sets it
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id"}
    details: dict[str, Any] = dict(result.result or {})
    rows = [int(row) for row in details.get("unexpected_index_list") or []]
    column = arguments.get("column")
    values: Any = []
    if config.type == PIXELS or (frame is None and column):
        values = details.get("partial_unexpected_list") or [None] * len(rows)
    elif frame is not None and column in frame.columns:
        values = frame[column].iloc[rows[:MAX_SAMPLES]]
    failure = Failure(
        type=config.type,
        column=column,
        arguments=to_json_value(arguments),
        implicit=expectation_key(config.type, arguments) in implicit_keys,
        unexpected=details.get("unexpected_count"),
        percent=details.get("unexpected_percent_nonmissing", details.get("unexpected_percent")),
        observed=to_json_value(details.get("observed_value")),
        problem=_problem(result),
        samples=[
            Sample(row=row + 1, value=to_json_value(value)) for row, value in zip(rows[:MAX_SAMPLES], values, strict=False)
        ],
    )
    return failure, rows


def _problem(result: ExpectationValidationResult) -> str | None:
    """Returns the first line of the exception that stopped the expectation, or None."""
    info: dict[str, Any] = dict(result.exception_info or {})
    entries = [info] if "raised_exception" in info else [one for one in info.values() if isinstance(one, dict)]
    messages = [str(one.get("exception_message", "")) for one in entries if one.get("raised_exception")]
    return messages[0].strip().splitlines()[0][:300] if messages and messages[0].strip() else None


def _sentence(failure: Failure) -> str:
    column = f" {failure.column}" if failure.column else ""
    rows = f": {failure.unexpected} rows" if failure.unexpected is not None else ""
    share = f" ({failure.percent:.3g} %)" if failure.percent is not None else ""
    observed = _observed(failure)
    return f"{failure.type}{column}{rows}{share}" + (f"; {observed}" if observed else "")


def _observed(failure: Failure) -> str:
    if failure.problem:
        return failure.problem
    if failure.samples:
        return ", ".join(f"row {sample.row}: {sample.value!r}" for sample in failure.samples)
    if failure.observed is None:
        return ""
    expected = ", ".join(f"{name} {value!r}" for name, value in failure.arguments.items() if name != "column")
    return f"observed {failure.observed!r}"[:200] + (f", expected {expected}"[:200] if expected else "")
