"""The command that removes old versions."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json

DEFAULT = 5


@click.command(short_help="Remove old versions and what belongs to them.")
@click.option("--keep", type=click.IntRange(1), default=DEFAULT, show_default=True, help="Versions of a model to roll back to.")
@click.option("--dry-run", is_flag=True, help="Only show what would go.")
@json_option
def prune(keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old versions with their runs, bentos, images, Prefect runs and Data Docs, and what DVC's cache has for them alone.

    Never removed are versions that serve, the last `--keep` that served, those that wait for an approval, those with an alias,
    and data that a commit or a remaining version names. If the command is killed, run it again to complete it.
    """
    project = load_project()
    from headrace import console
    from headrace.release.prune import as_json as removed_as_json
    from headrace.release.prune import prune as remove_old
    from headrace.services.prefect_runs import remove_old_runs
    from headrace.serving.access import audit

    removed = remove_old(project, console.report, keep, dry_run)
    removed += remove_old_runs(project, console.report, keep, dry_run)
    if removed and not dry_run:
        audit.record(project, "prune", {"keep": keep, "versions": [one.name for one in removed if one.kind == "version"]})
    if as_json:
        print_json({**removed_as_json(removed), "dry_run": dry_run})
        return
    for one in removed:
        click.echo(f"{one.kind:<10} {one.name}" + (f"  {one.bytes / 1e6:.1f} MB" if one.bytes else ""))
    total = sum(one.bytes for one in removed) / 1e6
    click.echo(f"{total:.1f} MB {'would be freed' if dry_run else 'freed'}" if removed else "nothing to remove")
