"""The command that sends true answers: to one request, or to all in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from headrace.cli.shared import json_option, print_json
from headrace.errors import UsageError


@click.command(short_help="Send true answers to earlier requests.")
@click.argument("answer_id", metavar="[ID]", required=False)
@click.argument("truth", required=False)
@click.option("--row", default=0, show_default=True, help="Row of the request.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A file of true answers (CSV, JSON lines, Parquet): the columns request_id (or id), row if requests have several "
    "rows, and the true answer.",
)
@click.option("--truth", "truth_column", help="With --file: the column of the true answer; by default the model's target.")
@click.option("--key", help="With --file: an input of the model that identifies a row, instead of the id of its request.")
@click.option("--model", help="With --file: the model, if the file has no full ids.")
@click.option(
    "--address",
    envvar="HEADRACE_ADDRESS",
    help="Address of a gateway on another machine, which needs a token in HEADRACE_TOKEN.",
)
@json_option
def feedback(
    answer_id: str | None,
    truth: str | None,
    row: int,
    file: Path | None,
    truth_column: str | None,
    key: str | None,
    model: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Send TRUTH, the true answer to an earlier request, by the ID of its answer; or with --file all true answers of a file.

    It is a label or a number; for several labels or values JSON, for example '["a", "b"]' or '{"a": 1.5, "b": 2}'.

    The token is HEADRACE_TOKEN if it is set, otherwise the operator's. It has to be of the tenant that sent the request. Exits
    with 3 if truths in the file contradict each other, are refused, or are for unknown requests.
    """
    given = {"--truth": truth_column, "--key": key, "--model": model}
    if file is not None:
        if answer_id is not None:
            raise UsageError("either an id or a file is required, not both", where="--file", hint="remove one of them")
        from headrace.cli.feedback_file import send_file

        send_file(file, model, truth_column, key, address, as_json)
        return
    if unused := next((option for option, value in given.items() if value is not None), None):
        raise UsageError("--file was not given", where=unused, hint=f"{unused} is for --file")
    if answer_id is None or truth is None:
        hint = "headrace feedback ID TRUTH, or headrace feedback --file FILE"
        raise UsageError("an id and its true answer, or a file, are required", hint=hint)
    _send_one(answer_id, truth, row, address, as_json)


def _send_one(answer_id: str, truth: str, row: int, address: str | None, as_json: bool) -> None:
    from headrace.cli.gateway_client import client_of

    with client_of(address) as client:
        found = client.feedback(answer_id, _value(truth), row)
    if as_json:
        print_json(found)
    else:
        click.echo(f"{found['id']} row {row}: {found['state']}")


def _value(text: str) -> Any:
    """Returns a number where the text is one, otherwise the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, int | float | str | list | dict) and not isinstance(found, bool) else text
