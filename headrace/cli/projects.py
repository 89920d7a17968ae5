"""Commands for a user's own project: write one, and bring later changes of what was written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.project_template.upgrade import Change


@click.command(short_help="Make a new project.")
@click.argument("name", type=click.Path(path_type=Path))
@json_option
def init(name: Path, as_json: bool) -> None:
    """Make a project in the new folder NAME: flows, tasks, recipes, dvc.yaml, tests and a git repository.

    Also makes, once for each virtual environment, the migrated databases that new projects copy.
    """
    from headrace import console
    from headrace.project_template.create import create_project
    from headrace.services.make_templates import main as make_templates

    project = create_project(name, console.report)
    console.step("databases", "of Prefect and MLflow, migrated once for this environment")
    make_templates()
    if as_json:
        print_json({"project": str(project.root)})
        return
    click.echo(f"{project.root} is a project. Next:")
    if project.root != Path.cwd():
        click.echo(f"  cd {shlex.quote(str(name))}")
    click.echo("  headrace new NAME --data FILE --target COLUMN    writes a recipe for a file of yours")
    click.echo("  headrace run NAME                                releases its model")


@click.command(short_help="Bring what a newer Headrace writes.")
@click.option("--apply", "is_applied", is_flag=True, help="Write the changes; without it they are only shown.")
@json_option
def upgrade(is_applied: bool, as_json: bool) -> None:
    """Show, as a diff, what the installed Headrace would write otherwise into this project than the one that made it.

    Changes of your own stay: files are merged, and where both changed the same lines, the file gets conflict markers. With
    --apply, the files as they were are kept in .headrace/upgrades.
    """
    project = load_project()
    from headrace.project_template.upgrade import apply, changes

    found = changes(project)
    copies = apply(found, project) if is_applied else None
    if as_json:
        listed = [{"path": change.path, "change": change.kind, "diff": change.diff} for change in found]
        print_json({"changes": listed, "applied": is_applied, "copies": str(copies) if copies else None})
    else:
        _show(found, is_applied, copies and copies.relative_to(project.root))
    if is_applied and (conflicts := [change.path for change in found if change.kind == "conflict"]):
        raise UsageError(
            f"both you and Headrace changed the same lines of {', '.join(conflicts)}",
            where=conflicts[0],
            hint="choose between the lines that <<<<<<< and >>>>>>> enclose; git diff shows them",
        )


SAID = {
    "added": "new",
    "changed": "changed",
    "merged": "changed, with your own changes",
    "conflict": "changed in the same lines as by you",
    "removed": "no longer needed, removed",
    "kept": "stays as you have it",
}


def _show(found: list[Change], is_applied: bool, copies: Path | None) -> None:
    from headrace import __version__

    if not found:
        click.echo(f"the files are those of Headrace {__version__}, with your own changes")
        return
    for change in found:
        click.echo(change.diff, nl=False)
    for change in found:
        click.echo(f"{change.path}: {SAID[change.kind]}")
    if not is_applied:
        click.echo("nothing was written; headrace upgrade --apply writes it")
    else:
        click.echo(f"written; the files as they were are in {copies}" if copies else "written")
