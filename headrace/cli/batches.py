"""Commands for batches and feedback: thin over the Python client, with the token that `headrace predict` sends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.shared import here, json_option, print_json

if TYPE_CHECKING:
    from headrace.client import Batch, Client


@click.group()
def batch() -> None:
    """Batches: a model works through a file of rows in the background.

    They belong to the token's tenant: HEADRACE_TOKEN where it is set, else the operator.
    """


@batch.command("submit", short_help="Hand in a file of rows.")
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--to", type=click.Path(path_type=Path), help="Wait, and write the answers to this file.")
@json_option
def submit(model: str, file: Path, to: Path | None, as_json: bool) -> None:
    """Let MODEL work through FILE: Parquet (.parquet) or JSON lines (.jsonl, .ndjson), a row an instance."""
    with _client() as client:
        found = client.submit(model, file)
        if to is not None:
            click.echo(f"batch {found.id} is {found.state}", err=True)
            found = _whole(client, found, to)
    _show([found], as_json)


@batch.command("status", short_help="How batches stand.")
@click.argument("model")
@click.argument("batch_id", required=False, metavar="[BATCH]")
@json_option
def status(model: str, batch_id: str | None, as_json: bool) -> None:
    """How the batches of MODEL stand, or one of them."""
    with _client() as client:
        _show([client.batch(model, batch_id)] if batch_id else client.batches(model), as_json)


@batch.command("result", short_help="The answers of a batch.")
@click.argument("model")
@click.argument("batch_id", metavar="BATCH")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def result(model: str, batch_id: str, file: Path, as_json: bool) -> None:
    """Wait for BATCH of MODEL, and write its answers to FILE, in the format that its rows came in."""
    with _client() as client:
        _show([_whole(client, client.batch(model, batch_id), file)], as_json)


@batch.command("cancel", short_help="End a batch.")
@click.argument("model")
@click.argument("batch_id", metavar="BATCH")
@json_option
def cancel(model: str, batch_id: str, as_json: bool) -> None:
    """End BATCH of MODEL and remove its rows; one that has ended is forgotten."""
    with _client() as client:
        _show([client.cancel(model, batch_id)], as_json)


@click.command(short_help="Tell the true answer to an earlier request.")
@click.argument("answer_id", metavar="ID")
@click.argument("truth")
@click.option("--row", default=0, show_default=True, help="Which row of the request.")
@json_option
def feedback(answer_id: str, truth: str, row: int, as_json: bool) -> None:
    """Tell TRUTH, the true answer to the request of an answer's ID: a label, or a number.

    The token is HEADRACE_TOKEN where it is set, else the operator's own; a tenant's answers are its own to judge.
    """
    with _client() as client:
        told = client.feedback(answer_id, _value(truth), row)
    if as_json:
        print_json(told)
    else:
        click.echo(f"{told['id']} row {row}: {told['state']}")


@contextlib.contextmanager
def _client() -> Iterator[Client]:
    """
    Raises:
        CallFailed: with what mends a token that is refused.
    """
    project, settings = here()
    from headrace.client import Client, Forbidden, Unauthorized
    from headrace.client.calling import mend_token, token_to_call
    from headrace.serving.access.tls import trust
    from headrace.serving.gateway import gateway

    token = token_to_call(project, settings)
    seconds = settings.request_seconds + 5.0
    with Client(gateway.address(settings), token, timeout=seconds, verify=trust(project, settings)) as client:
        try:
            yield client
        except (Unauthorized, Forbidden) as error:
            error.hint = mend_token()
            raise


def _whole(client: Client, found: Batch, file: Path) -> Batch:
    """The batch after its end, its answers in `file`.

    Raises:
        DataError: it failed, or was cancelled.
    """
    ended = client.wait(found.model, found.id, seconds=7 * 86400)
    if ended.state != "done":
        from headrace.errors import DataError

        why = f": {ended.error['message']}" if ended.error else ""
        raise DataError(f"batch {ended.id} is {ended.state}{why}", hint=f"headrace batch submit {ended.model} FILE")
    client.result(found.model, found.id, file)
    return ended


def _value(text: str) -> Any:
    """A number where it is one, else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, int | float | str) and not isinstance(found, bool) else text


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


COMMANDS = [batch, feedback]
