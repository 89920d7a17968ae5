"""Predicts the rows of a file, and writes the answers beside them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from headrace import console
from headrace.errors import DataError, Interrupted, UsageError

if TYPE_CHECKING:
    from headrace.client import AsyncClient
    from headrace.scoring.results import Summary
    from headrace.scoring.rows import AnswerWriter, RowsFile

MAX_MEMORY_BYTES = 4 << 30
"""A malicious file ends with an error before the machine runs out of memory."""
MAX_PRINTED_ROWS = 10_000
"""With --json, and without an output file, no more rows are answered."""
MOST_REASONS = 10
"""Reasons that the command prints."""


@dataclass
class Answered:
    """What became of the rows of a file."""

    rows: int
    summary: Summary
    versions: set[str] = field(default_factory=set)
    predictions: list[Any] = field(default_factory=list)
    """The answers, if they are to be printed as JSON; None for a refused row."""


def score_file(client: AsyncClient, contract: Any, path: Path, output: Path | None, answers_only: bool, as_json: bool) -> None:
    """Predicts all rows of `path`, prints or writes the result, and sums it up.

    Raises:
        DataError: the file cannot be read; or, after the result was written, some rows were refused.
        UsageError: the name of the output does not suit the format.
        CallFailed: the service does not answer; nothing is written.
    """
    from headrace.scoring.endings import check_ending

    with _bounded_memory(), _file_errors(path):
        file = _opened(path, contract, answers_only)
        if output is not None:
            check_ending(file, path, output, "--output")
        total = file.count()
        if as_json and output is None and total > MAX_PRINTED_ROWS:
            raise UsageError(f"{total:,} rows are too many to print as JSON", where=str(path), hint="add --output FILE")
        if total == 0:
            raise DataError("the file has no rows", where=str(path), hint="add rows below the header")
        for note in file.notes:
            console.report(f"{path.name}: {note}")
        with _output(file, output, as_json) as writer:
            answered = asyncio.run(_score(client, file, total, writer, keeps=as_json and output is None))
    _sum_up(contract.model, path, file, output, answered, as_json)


async def _score(client: AsyncClient, file: RowsFile, total: int, writer: AnswerWriter, keeps: bool) -> Answered:
    from headrace.client.requests import new_id
    from headrace.scoring.results import Summary
    from headrace.services.api.batch_requests import BatchClient

    answered = Answered(0, Summary())
    requests = BatchClient(client, file.contract, new_id())
    async with client:
        with console.bar("predict", total) as bar:
            for chunk in file.chunks():
                lines, failure = await requests.answer(chunk.values, answered.rows)
                if failure is not None:
                    raise _as_error(failure, file.contract.model, answered.rows + len(lines), total)
                for place, line in enumerate(lines):
                    answered.summary.add(line, chunk.places[place] if chunk.places else None)
                    if "id" in line:
                        answered.versions.add(str(line["id"]).partition(":")[0])
                    if keeps:
                        answered.predictions.append(line.get("prediction"))
                writer.write(chunk, lines)
                answered.rows += len(lines)
                bar.update(answered.rows)
    writer.close()
    return answered


def _as_error(failure: Exception, model: str, done: int, total: int) -> Exception:
    from headrace.client import CallFailed
    from headrace.services.api.batch_requests import RetryLater

    hint = f"nothing was written; headrace batch submit {model} FILE waits for the quota, or until the model is served again"
    if isinstance(failure, RetryLater):
        return CallFailed(f"after {done:,} of {total:,} rows: {failure.message}", hint=hint, code=failure.code)
    if isinstance(failure, CallFailed):
        failure.message = f"after {done:,} of {total:,} rows: {failure.message}"
    return failure


def _opened(path: Path, contract: Any, answers_only: bool) -> RowsFile:
    from headrace.scoring.open_rows import open_rows

    return open_rows(path, contract, "ignore" if answers_only else "keep")


@contextlib.contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Raises errors of the file with its name, and how to correct it."""
    from headrace.scoring.rows import BadFile, as_data_error

    try:
        yield
    except BadFile as error:
        raise as_data_error(error, path) from None
    except KeyboardInterrupt:
        raise Interrupted("interrupted; no output file was written", where=str(path), hint="run the command again") from None
    except MemoryError:
        hint = "write it in smaller row groups, or without the large column"
        raise DataError(
            f"a part of the file needs more than {MAX_MEMORY_BYTES >> 30} GiB", where=str(path), hint=hint
        ) from None


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = MAX_MEMORY_BYTES if before[0] == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def _output(file: RowsFile, output: Path | None, as_json: bool) -> Iterator[AnswerWriter]:
    """Gives the writer of the result: to a file, completely or not at all, or to standard output."""
    from headrace.files import atomic_write
    from headrace.scoring.printed import JsonPrinter
    from headrace.scoring.rows import PARQUET

    if output is not None:
        with atomic_write(output) as beside, beside.open("wb") as handle:
            yield file.writer(handle)
        return
    stdout: BinaryIO = sys.stdout.buffer
    if as_json:
        yield file.writer(io.BytesIO()) if file.media_type != PARQUET else JsonPrinter(io.BytesIO(), file)
    else:
        yield JsonPrinter(stdout, file) if file.media_type == PARQUET else file.writer(stdout)
    stdout.flush()


def _sum_up(model: str, path: Path, file: RowsFile, output: Path | None, answered: Answered, as_json: bool) -> None:
    summary = answered.summary
    refused, refusals, warnings = summary.refusals.count, summary.refusals.to_list(), summary.unseen.to_dict()
    if as_json:
        from headrace.cli.shared import print_json

        print_json(
            {
                "model": model,
                "versions": sorted(answered.versions),
                "rows": answered.rows,
                "answered": answered.rows - refused,
                "refused": refused,
                "refusals": refusals,
                "warnings": warnings,
                "notes": file.notes,
                **({"predictions": answered.predictions} if output is None else {"output": str(output)}),
            }
        )
        if refused:
            sys.exit(DataError.exit_code)
        return
    print_counts(answered.rows, refusals, warnings)
    shown = ", ".join(sorted(answered.versions)) + (f" → {output}" if output else "")
    click.echo(click.style(shown, dim=True), err=True)
    raise_if_refused(answered.rows, refused, str(path), "prediction_error")


def print_counts(rows: int, refusals: list[dict[str, Any]], warnings: dict[str, int]) -> None:
    """Prints how many rows were answered, the reasons of those that were refused, and what training has not seen."""
    from headrace.scoring.refusals import describe
    from headrace.scoring.unseen import describe_counts

    refused = sum(int(one["count"]) for one in refusals)
    console.report(f"{rows:,} rows: {rows - refused:,} answered, {refused:,} refused")
    for refusal in refusals[:MOST_REASONS]:
        console.report(describe(refusal))
    if len(refusals) > MOST_REASONS:
        console.report(f"and {len(refusals) - MOST_REASONS:,} more reasons")
    if warnings:
        console.report(describe_counts(warnings))


def raise_if_refused(rows: int, refused: int, where: str, column: str) -> None:
    """
    Raises:
        DataError: some rows were refused.
    """
    if refused:
        hint = f"each of them has its reason in {column}; correct these rows, and send them again"
        raise DataError(f"{refused:,} of {rows:,} rows were refused", where=where, hint=hint)
