"""Commands that write and restore backups."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError


@click.command(short_help="Write a backup of all state, also while serving.")
@click.argument("file", required=False)
@click.option("--to", "address", help="Address in an object store, for example s3://BUCKET/NAME, instead of FILE.")
@json_option
def backup(file: str | None, address: str | None, as_json: bool) -> None:
    """Write all state that cannot be made again to FILE, one compressed archive that only this user can read.

    Services and models keep running. The archive holds the registry, runs, journal, audit log, keys, usage, feedback,
    batches, data, and whatever git does not hold. It holds private keys: keep it as safe as the project itself.
    """
    target = _one_of(file, "FILE", address, "--to")
    project = load_project()
    from headrace import console
    from headrace.services.backup.backup import back_up

    console.step("back up", target)
    facts = back_up(project, target, console.report)
    if as_json:
        print_json(facts)
        return
    click.echo(f"{facts['files']:,} files are in {target}. Restore them in a clone: headrace restore {target}")


@click.command(short_help="Restore a backup into a fresh clone.")
@click.argument("source", metavar="FILE")
@click.option(
    "--replace", "is_replacing", is_flag=True, help="Move existing state into a folder beside it; nothing is deleted."
)
@json_option
def restore(source: str, is_replacing: bool, as_json: bool) -> None:
    """Restore the backup FILE, a path or an address, into this clone, whose services are stopped.

    The whole archive is checked before anything changes. Afterwards `headrace up` serves what served before.
    """
    project = load_project()
    from headrace import console
    from headrace.services.backup.restore import restore as restore_backup

    console.step("restore", source)
    facts = restore_backup(project, source, is_replacing, console.report)
    if as_json:
        print_json(facts)
        return
    click.echo(f"{facts['files']:,} files are restored. Start the services and models: headrace up")


def _one_of(file: str | None, file_name: str, address: str | None, option: str) -> str:
    if (file is None) == (address is None):
        raise UsageError(f"give either {file_name} or {option}", hint="headrace backup FILE, or headrace backup --to s3://…")
    if address is not None and "://" not in address:
        raise UsageError(
            f"{address!r} is not an address", where=option, hint="s3://BUCKET/NAME; for a file: headrace backup FILE"
        )
    return str(file if file is not None else address)
