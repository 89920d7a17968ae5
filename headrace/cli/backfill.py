"""The command that scores past data with any version."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from headrace import console
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import DataError, Interrupted, UsageError


@click.command(short_help="Score past data with any version.")
@click.argument("model")
@click.option("--version", help="A version or an alias, for example 3 or champion; by default the one in production.")
@click.option(
    "--data",
    required=True,
    help="A file, a pattern ('days/*.parquet'), a folder of tables, an address (https://, s3://, ...) or a database.",
)
@click.option("--query", help="With a database: the query whose rows are scored.")
@click.option("--table", help="With a database: the table whose rows are scored.")
@click.option("--out", required=True, help="The result: a file in the format of the data, or with a / at its end a folder.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes that score; by default one for each processor.")
@click.option("--chunk-rows", type=click.IntRange(min=1), help="Rows of a chunk; by default about five seconds of work.")
@click.option("--answers-only", is_flag=True, help="Leave the columns of the data out of the result.")
@click.option("--restart", is_flag=True, help="Start again, and replace the result.")
@json_option
def backfill(
    model: str,
    version: str | None,
    data: str,
    query: str | None,
    table: str | None,
    out: str,
    workers: int | None,
    chunk_rows: int | None,
    answers_only: bool,
    restart: bool,
    as_json: bool,
) -> None:
    """Score past data with a version of MODEL, without services, by several processes in bounded memory.

    After an interruption or a kill, the same command continues. Exits with 3 if a row is refused.
    """
    project = load_project()
    from headrace.backfill import run
    from headrace.backfill.progress import Progress

    if query and table:
        raise UsageError("a query and a table exclude each other", where="--table", hint="leave one of them out")
    request = run.Request(
        model=model,
        data=run.local_address(data, Path.cwd()),
        out=Path.cwd() / out,
        is_folder=out.endswith("/"),
        version=version,
        query=query,
        table=table,
        answers_only=answers_only,
        chunk_rows=chunk_rows,
        restart=restart,
    )
    progress: Progress | None = None
    try:
        with run.backfill_lock(request.out, project):
            plan = run.prepare(request, project, console.report)
            with console.bar("score", plan.rows) as bar:
                progress = Progress(plan.rows, bar)
                run.score(plan, workers or run.workers_by_default(), project, progress.add, console.report)
            record = run.finish(plan, project)
    except KeyboardInterrupt:
        raise _interrupted(progress) from None
    _sum_up(record, as_json)


def _interrupted(progress: Any) -> Interrupted:
    import shlex

    done = f": {progress.done:,} of {progress.total:,} rows are done" if progress is not None else ""
    again = shlex.join(["headrace", *(one for one in sys.argv[1:] if one != "--restart")])
    return Interrupted(f"interrupted{done}", hint=f"to continue: {again}")


def _sum_up(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({name: value for name, value in record.items() if name != "plan"})
        if record["refused"]:
            sys.exit(DataError.exit_code)
        return
    from headrace.cli.scoring import print_counts, raise_if_refused

    print_counts(record["rows"], record["refusals"], record["warnings"])
    shown = f"{record['model']}@{record['version']} → {record['out']}"
    click.echo(click.style(shown, dim=True), err=True)
    raise_if_refused(record["rows"], record["refused"], record["data"], "prediction_error")
