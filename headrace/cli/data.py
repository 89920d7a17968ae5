"""Commands about data: the version in force, a new batch, the next one of the source."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.data.versions import DataVersion
from headrace.recipe.recipe import load_recipe
from headrace.release.lock import release_lock


@click.group()
def data() -> None:
    """Data of a recipe: bring it in, add a batch, see its version."""


@data.command("ingest", short_help="Bring the source in.")
@click.argument("recipe")
@json_option
def ingest(recipe: str, as_json: bool) -> None:
    """Bring the source of RECIPE into data/, unless it is there (a release does this by itself)."""
    project, _ = here()
    found = load_recipe(recipe, project)
    from headrace import console
    from headrace.data.ingest import ingest as bring

    with release_lock(recipe, project):
        _show(bring(found, project, console.report), as_json)


@data.command("add", short_help="Add a file as a new batch, validated first.")
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def add(recipe: str, file: Path, as_json: bool) -> None:
    """Add FILE as a new batch of RECIPE: validated first, then one new data version.

    A batch that fails goes to quarantine with its report, and the data version stays as it was (exit code 3).
    """
    project, _ = here()
    found = load_recipe(recipe, project)
    from headrace import console
    from headrace.data.batches import add_batch

    with release_lock(recipe, project):
        _show(add_batch(found, file, project, console.report), as_json)


@data.command("next", short_help="Bring the next batch of the source.")
@click.argument("recipe")
@json_option
def bring_next(recipe: str, as_json: bool) -> None:
    """Bring the next batch of a source that arrives piece by piece (`data.incremental` in the recipe)."""
    project, _ = here()
    found = load_recipe(recipe, project)
    from headrace import console
    from headrace.data.batches import next_batch

    with release_lock(recipe, project):
        version = next_batch(found, project, console.report)
    _show(version, as_json)


@data.command("show", short_help="The data version: md5, rows, batches.")
@click.argument("recipe")
@json_option
def show(recipe: str, as_json: bool) -> None:
    """The data version of RECIPE: md5, rows, batches."""
    project, _ = here()
    load_recipe(recipe, project)
    from headrace.data.versions import data_version

    _show(data_version(project, recipe), as_json)


def _show(version: DataVersion, as_json: bool) -> None:
    if as_json:
        print_json(version.to_dict())
        return
    click.echo(f"{version.recipe}: data {version.md5}, {version.rows:,} rows")
    for batch in version.batches:
        click.echo(f"  {batch.name:40} {batch.rows:>12,} rows")


COMMANDS = [data]
