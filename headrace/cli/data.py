"""Commands about the data of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.data.versions import DataVersion
from headrace.recipe.recipe import load_recipe, load_trained
from headrace.release.lock import release_lock


@click.group()
def data() -> None:
    """Ingest data, add a batch, show the data version."""


@data.command("ingest", short_help="Ingest the source of a recipe.")
@click.argument("recipe")
@json_option
def ingest(recipe: str, as_json: bool) -> None:
    """Ingest the source of RECIPE into data/, unless it is there already. A release does this automatically."""
    project = load_project()
    loaded = load_trained(recipe, project)
    from headrace import console
    from headrace.data import ingest as ingestion
    from headrace.importing.base import bring_base

    with release_lock(recipe, project):
        bring_base(loaded, project, console.report)
        version = ingestion.ingest(loaded, project, console.report)
    _show(version, as_json)


@data.command("add", short_help="Validate a file and add it as a new batch.")
@click.argument("recipe")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def add(recipe: str, file: Path, as_json: bool) -> None:
    """Validate FILE and add it as a new batch of RECIPE, which makes a new data version.

    A batch that fails validation is moved to quarantine with a report; the data version is unchanged (exit code 3).
    """
    project = load_project()
    loaded = load_trained(recipe, project)
    from headrace import console
    from headrace.data.batches import add_batch

    with release_lock(recipe, project):
        version = add_batch(loaded, file, project, console.report)
    _show(version, as_json)


@data.command("next", short_help="Add the next batch of an incremental source.")
@click.argument("recipe")
@json_option
def add_next(recipe: str, as_json: bool) -> None:
    """Add the next batch of an incremental source (`data.incremental` in the recipe). When everything has arrived, the data
    version is unchanged."""
    project = load_project()
    loaded = load_trained(recipe, project)
    from headrace import console
    from headrace.data.batches import next_batch

    with release_lock(recipe, project):
        result = next_batch(loaded, project, console.report)
    _show(result.version, as_json, added=result.added)


@data.command("show", short_help="Show the data version: md5, rows, batches.")
@click.argument("recipe")
@json_option
def show(recipe: str, as_json: bool) -> None:
    """Show the data version of RECIPE: md5, rows, batches."""
    project = load_project()
    load_recipe(recipe, project)
    from headrace.data.versions import data_version

    _show(data_version(project, recipe), as_json)


def _show(version: DataVersion, as_json: bool, **more: bool) -> None:
    if as_json:
        print_json(version.to_dict() | more)
        return
    click.echo(f"{version.recipe}: data {version.md5}, {version.rows:,} rows")
    for batch in version.batches:
        click.echo(f"  {batch.name:40} {batch.rows:>12,} rows")
