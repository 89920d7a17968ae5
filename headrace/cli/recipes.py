"""Commands for recipes: list, check, write, propose expectations."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import HeadraceError
from headrace.recipe.recipe import load_recipe, recipe_names


@click.command("recipes", short_help="List all recipes.")
@json_option
def list_recipes(as_json: bool) -> None:
    """List all recipes, and whether each is valid."""
    project = load_project()
    found = []
    for name in recipe_names(project):
        try:
            recipe = load_recipe(name, project)
            found.append({"name": name, "task": recipe.task, "model": recipe.model.name, "valid": True})
        except HeadraceError as error:
            found.append({"name": name, "task": None, "model": None, "valid": False, "error": error.message})
    if as_json:
        print_json(found)
        return
    for row in found:
        problem = "" if row["valid"] else f"invalid: headrace check {row['name']}"
        click.echo(f"{row['name']:20} {row['task'] or '-':24} {row['model'] or '-':8} {problem}".rstrip())


@click.command(short_help="Check a recipe.")
@click.argument("recipe")
@json_option
def check(recipe: str, as_json: bool) -> None:
    """Check RECIPE, and explain every mistake in it."""
    project = load_project()
    found = load_recipe(recipe, project)
    if as_json:
        print_json({"recipe": recipe, "valid": True, "task": found.task, "model": found.model.name})
    else:
        click.echo(f"recipes/{recipe}.yaml is valid: {found.task}, {found.model.name}, target {found.data.target}")


@click.command(short_help="Write a recipe for your own data.")
@click.argument("name")
@click.option("--data", "data_file", required=True, type=click.Path(path_type=Path), help="A CSV or Parquet file.")
@click.option("--target", required=True, help="The column to predict.")
@json_option
def new(name: str, data_file: Path, target: str, as_json: bool) -> None:
    """Write a recipe NAME for your own data, which `headrace run NAME` can release."""
    project = load_project()
    from headrace.cli.recipe_scaffold import write_recipe

    path = write_recipe(name, data_file, target, project)
    recipe = load_recipe(name, project)
    if as_json:
        print_json({"recipe": name, "path": str(path), "task": recipe.task, "expectations": len(recipe.expect)})
        return
    click.echo(
        f"{path.relative_to(project.root)}: {recipe.task} of {target}, {len(recipe.expect)} expectations, {recipe.model.name}"
    )
    click.echo(f"Review it, then: headrace run {name}")


@click.command(short_help="Propose expectations from the data.")
@click.argument("recipe")
@json_option
def expectations(recipe: str, as_json: bool) -> None:
    """Propose expectations from the data of RECIPE, to paste under `expect:`."""
    project = load_project()
    found = load_recipe(recipe, project)
    from headrace.data.tables import read_batches
    from headrace.data.validation.suite import propose_suite

    suite = propose_suite(read_batches(project, found), found.data.target)
    if as_json:
        print_json(suite)
        return
    import yaml

    click.echo("expect:")
    for one in suite:
        click.echo(
            "  - " + yaml.safe_dump(one, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
        )
