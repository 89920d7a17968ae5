"""The command that calls a model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.client import Client, Piece, Prediction
    from headrace.runtime.contract import Contract


@click.command(short_help="Call a model through the gateway.")
@click.argument("model")
@click.argument("fields", nargs=-1, metavar="[FIELD=VALUE]...")
@click.option("--text", help="A text, for a model with one text field.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="A table (CSV, JSON lines, Parquet, also compressed; a workbook) or pictures (a folder, a zip): the answers come in "
    "the same format (of a workbook as CSV), beside the columns of the file. Or an image (PNG, JPEG), a text, molecules (SDF), "
    "or JSON with one input or a list of inputs; - reads JSON from standard input.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="With a table or pictures: write the answers to this file.",
)
@click.option("--answers-only", is_flag=True, help="Leave the columns of the file out of the result.")
@click.option("--instance", help='One input as JSON, for example \'{"distance": 1400, "carrier": "UA"}\'.')
@click.option("--sample", is_flag=True, help="Send the sample input of the model's contract.")
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Print a text while it is generated, or when it is complete. The default depends on whether the output is a terminal.",
)
@json_option
def predict(
    model: str,
    fields: tuple[str, ...],
    text: str | None,
    file: Path | None,
    output: Path | None,
    answers_only: bool,
    instance: str | None,
    sample: bool,
    stream: bool | None,
    as_json: bool,
) -> None:
    """Get a prediction from MODEL, through the gateway, like any client.

    The input is given as fields (headrace predict flights distance=1400 carrier=UA …), or with --text, --file, --instance or
    --sample. The token is HEADRACE_TOKEN if it is set, otherwise the operator's. Exits with 3 if a row of a table is refused.
    """
    project = load_project()
    if [bool(fields), text is not None, file is not None, instance is not None, sample].count(True) != 1:
        raise UsageError(
            "exactly one input is required",
            hint=f"headrace predict {model} FIELD=VALUE…, --text TEXT, --file FILE, --instance JSON or --sample",
        )
    if file is None and (output is not None or answers_only):
        raise UsageError("--file was not given", where="--file", hint="--output and --answers-only are for --file with a table")
    from headrace.cli.gateway_client import client_options, gateway_client
    from headrace.runtime.contract import Contract

    with gateway_client(project, model, retries=0) as client:
        described = client.describe(model)
        can_stream = bool(described.get("streams"))
        contract = Contract.model_validate(described["contract"])
        if file is not None and _has_rows(file, contract, output is not None or answers_only, stream):
            from headrace.cli.scoring import score_file
            from headrace.client import AsyncClient

            score_file(AsyncClient(**client_options(project), retries=4), contract, file, output, answers_only, as_json)
            return
        instances = _instances(contract, fields, text, file, instance)
        if stream is None:
            stream = sys.stdout.isatty() and not as_json and can_stream and len(instances) == 1
        if not stream:
            _predict(client, model, instances, as_json)
            return
        if not can_stream:
            raise UsageError(f"{model} does not support streaming", where="--stream", hint="remove --stream")
        if len(instances) > 1:
            message = f"only one input can be streamed, got {len(instances)}"
            raise UsageError(message, where="--stream", hint="remove --stream")
        _stream(client, model, instances[0], as_json)


def _has_rows(file: Path, contract: Contract, is_needed: bool, stream: bool | None) -> bool:
    """Whether the file is a table or several pictures, whose rows are predicted in parts.

    Raises:
        UsageError: it is not, though an option needs it, or it is and is to be streamed.
    """
    from headrace.cli import inputs

    found = inputs.has_rows(file, contract)
    if is_needed and not found:
        raise UsageError(
            f"{file.name} is one input", where="--file", hint="leave --output and --answers-only out, or use a table"
        )
    if found and stream:
        raise UsageError("only one input can be streamed, not a table", where="--stream", hint="remove --stream")
    return found


def _instances(
    contract: Contract, fields: tuple[str, ...], text: str | None, file: Path | None, instance: str | None
) -> list[Any]:
    """Returns the instances to predict; by default the sample of the contract."""
    from headrace.cli import inputs

    if instance is not None:
        return inputs.from_json(instance)
    if file is not None:
        return inputs.from_json(sys.stdin.read()) if str(file) == "-" else inputs.from_file(file, contract)
    if text is not None:
        return inputs.from_text(text, contract)
    return inputs.from_fields(fields, contract) if fields else [contract.sample]


def _predict(client: Client, model: str, instances: list[Any], as_json: bool) -> None:
    """Prints one line of JSON per prediction."""
    answer = client.predict(model, instances)
    if as_json:
        print_json(asdict(answer))
        return
    for prediction in answer.predictions:
        click.echo(json.dumps(prediction, ensure_ascii=False))
    for warning in answer.warnings:
        click.echo(f"warning: {warning['path']}: {warning['message']}", err=True)
    _print_source(answer)


def _stream(client: Client, model: str, instance: Any, as_json: bool) -> None:
    """Prints the text as it is generated; with `as_json` one line of JSON per piece."""
    piece: Piece | None = None
    try:
        for piece in client.stream(model, instance):
            fields = {name: value for name, value in asdict(piece).items() if value is not None}
            click.echo(json.dumps(fields, ensure_ascii=False) if as_json else piece.text, nl=as_json)
    finally:
        if piece is not None and not as_json:
            click.echo()  # an error or the line below starts on its own line
    if piece is not None and not as_json:
        _print_source(piece)


def _print_source(answer: Prediction | Piece) -> None:
    click.echo(click.style(f"{answer.model}@{answer.version}  id {answer.id}", dim=True), err=True)
