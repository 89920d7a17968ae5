"""Commands for batches, which call the Python client."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace import console
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import DataError, Interrupted

if TYPE_CHECKING:
    from headrace.client import Batch, Client

COUNT_SECONDS = 0.3
"""Pause between two looks at a batch whose rows are not counted yet."""


@click.group(short_help="Submit files of rows, and get their predictions.")
def batch() -> None:
    """Submit and follow batches: files of rows that a model predicts in the background.

    A batch belongs to the tenant of the token: HEADRACE_TOKEN if it is set, otherwise the operator. The operator can see and
    cancel the batches of all tenants.
    """


@batch.command("submit", short_help="Submit a file of rows.")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="Wait for the batch, and write the answers to this file.")
@click.option("--answers-only", is_flag=True, help="Leave the columns of the file out of the result.")
@json_option
def submit(model: str, file: Path, to: Path | None, answers_only: bool, as_json: bool) -> None:
    """Submit FILE to MODEL: CSV, JSON lines or Parquet with one instance per row, also compressed, a workbook, or a zip of
    pictures.

    The answers come in the same format, of a workbook as CSV, beside the columns of the file.
    """
    with _client() as client:
        found = client.submit(model, file, columns="ignore" if answers_only else "keep")
        if to is not None:
            click.echo(f"batch {found.id} is {found.state}", err=True)
            found = _wait_and_save(client, found, to)
    _show([found], as_json)
    if to is not None:
        _exit_if_refused(found, as_json)


@batch.command("status", short_help="Show the state of batches.")
@click.argument("model")
@click.argument("batch_id", required=False, metavar="[BATCH]")
@json_option
def status(model: str, batch_id: str | None, as_json: bool) -> None:
    """Show the state of the batches of MODEL, or of one BATCH."""
    with _client() as client:
        _show([client.batch(model, batch_id)] if batch_id else client.batches(model), as_json)


@batch.command("result", short_help="Save the answers of a batch.")
@click.argument("model")
@click.argument("batch_id", metavar="BATCH")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def result(model: str, batch_id: str, file: Path, as_json: bool) -> None:
    """Wait for BATCH of MODEL, and write its answers to FILE, in the format of the submitted file."""
    with _client() as client:
        found = _wait_and_save(client, client.batch(model, batch_id), file)
    _show([found], as_json)
    _exit_if_refused(found, as_json)


@batch.command("cancel", short_help="Cancel a batch.")
@click.argument("model")
@click.argument("batch_id", metavar="BATCH")
@json_option
def cancel(model: str, batch_id: str, as_json: bool) -> None:
    """Cancel BATCH of MODEL, and remove its rows and answers."""
    with _client() as client:
        _show([client.cancel(model, batch_id)], as_json)


@contextlib.contextmanager
def _client() -> Iterator[Client]:
    from headrace.cli.gateway_client import gateway_client

    project = load_project()
    with gateway_client(project) as client:
        yield client


def _wait_and_save(client: Client, found: Batch, file: Path) -> Batch:
    """Waits for a batch and writes its answers to `file`.

    Raises:
        DataError: it failed or was cancelled.
        Interrupted: Ctrl-C; the batch goes on.
    """
    try:
        ended = _wait(client, found)
    except KeyboardInterrupt:
        again = f"to wait for it again: headrace batch result {found.model} {found.id} {file}"
        raise Interrupted(f"interrupted; batch {found.id} goes on", hint=again) from None
    if ended.state != "done":
        why = f": {ended.error['message']}" if ended.error else ""
        raise DataError(f"batch {ended.id} is {ended.state}{why}", hint=f"headrace batch submit {ended.model} FILE")
    client.result(found.model, found.id, file)
    return ended


def _wait(client: Client, found: Batch) -> Batch:
    """Shows the rows that are done until the batch has ended."""
    while found.rows_total is None and not found.has_ended:
        time.sleep(COUNT_SECONDS)
        found = client.batch(found.model, found.id)
    with console.bar(f"batch {found.id[:8]}", found.rows_total or 1) as bar:
        return client.wait(found.model, found.id, seconds=7 * 86400, progress=lambda batch: bar.update(batch.rows_done))


def _exit_if_refused(found: Batch, as_json: bool) -> None:
    """Prints the counts and reasons of a batch.

    Raises:
        DataError: some rows were refused.
    """
    from headrace.cli.scoring import print_counts, raise_if_refused

    if as_json:
        if found.rows_failed:
            sys.exit(DataError.exit_code)
        return
    for note in found.notes:
        console.report(note)
    print_counts(found.rows_done, found.refusals, found.warnings)
    raise_if_refused(found.rows_done, found.rows_failed, f"batch {found.id}", "the file of the answers")


def _show(found: list[Batch], as_json: bool) -> None:
    if as_json:
        shown = [asdict(one) for one in found]
        print_json(shown[0] if len(shown) == 1 else shown)
        return
    from headrace.cli.summary import print_table

    rows = [(one.id, one.model, one.state, one.rows_done, one.rows_failed, one.rows_total, _why(one)) for one in found]
    print_table(("batch", "model", "state", "done", "failed", "rows", ""), rows)


def _why(one: Batch) -> str:
    return str(one.error["message"]) if one.error else ""
