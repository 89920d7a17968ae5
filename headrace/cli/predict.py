"""The command that asks a model, as a client does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.client.calling import Door
    from headrace.runtime.contract import Contract


@click.command(short_help="Ask a model through the balancer.")
@click.argument("model")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--text", help="One text, for a model that takes a text.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A picture (PNG, JPEG), a text, a table (CSV, Parquet), molecules (SDF), or JSON with one input or a list of them; - "
    "for JSON from standard input.",
)
@click.option("--instance", help='One input as JSON, such as \'{"distance": 1400, "carrier": "UA"}\'.')
@click.option("--sample", is_flag=True, help="Send the sample input of the model's contract.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print a text while it is written, or once it is whole. On a terminal the first, else the second.",
)
@json_option
def predict(
    model: str,
    fields: tuple[str, ...],
    text: str | None,
    file: Path | None,
    instance: str | None,
    sample: bool,
    stream: bool | None,
    as_json: bool,
) -> None:
    """Ask MODEL for a prediction, through the balancer, as a client does.

    Give its fields (headrace predict flights distance=1400 carrier=UA …), a --text, a --file, or the --sample.
    The token is HEADRACE_TOKEN where it is set, else the operator's own.
    """
    project, settings = here()
    if [bool(fields), text is not None, file is not None, instance is not None, sample].count(True) != 1:
        raise UsageError(
            "name one input",
            hint=f"headrace predict {model} FIELD=VALUE…, --text TEXT, --file FILE, --instance JSON or --sample",
        )
    from headrace.client.calling import Door

    door = Door(project, settings)
    described = door.describe(model)
    instances = _instances(described.contract, fields, text, file, instance)
    if stream is None:
        stream = sys.stdout.isatty() and not as_json and described.streams and len(instances) == 1
    if not stream:
        _answer(door, model, instances, as_json)
        return
    if not described.streams:
        raise UsageError(f"{model} answers at once, and has nothing to stream", where="--stream", hint="leave --stream out")
    if len(instances) > 1:
        raise UsageError(f"{len(instances)} inputs, and one text is streamed", where="--stream", hint="leave --stream out")
    _stream(door, model, instances[0], as_json)


def _instances(
    contract: Contract, fields: tuple[str, ...], text: str | None, file: Path | None, instance: str | None
) -> list[Any]:
    """What the model is asked; its own sample when nothing is given."""
    from headrace.cli import inputs

    if instance is not None:
        return inputs.from_json(instance)
    if file is not None:
        return inputs.from_json(sys.stdin.read()) if str(file) == "-" else inputs.from_file(file, contract)
    if text is not None:
        return inputs.from_text(text, contract)
    return inputs.from_fields(fields, contract) if fields else [contract.sample]


def _answer(door: Door, model: str, instances: list[Any], as_json: bool) -> None:
    """A line of JSON for each prediction."""
    answer = door.predict(model, instances)
    if as_json:
        print_json(answer)
        return
    for prediction in answer["predictions"]:
        click.echo(json.dumps(prediction, ensure_ascii=False))
    _say_whose(answer)


def _stream(door: Door, model: str, instance: Any, as_json: bool) -> None:
    """The bare text as it comes; with `as_json` a line of JSON for each event."""
    event: dict[str, Any] = {}
    try:
        for event in door.stream(model, instance):
            click.echo(json.dumps(event, ensure_ascii=False) if as_json else event["text"], nl=as_json)
    finally:
        if event and not as_json:
            click.echo()  # whatever comes next, an error too, starts on a line of its own
    if not as_json:
        _say_whose(event)


def _say_whose(answer: dict[str, Any]) -> None:
    click.echo(click.style(f"{answer['model']}@{answer['version']}  id {answer['id']}", dim=True), err=True)


COMMANDS = [predict]
