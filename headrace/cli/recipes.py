"""Commands for recipes: list, check, propose expectations."""

from __future__ import annotations

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import HeadraceError
from headrace.recipe.recipe import load_recipe, load_trained, recipe_names


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
        click.echo(f"recipes/{recipe}.yaml is valid: {found.task}, {found.model.name}, target {', '.join(found.data.targets)}")


@click.command(short_help="Propose expectations from the data.")
@click.argument("recipe")
@json_option
def expectations(recipe: str, as_json: bool) -> None:
    """Propose expectations from the data of RECIPE, to paste under `expect:`."""
    project = load_project()
    found = load_trained(recipe, project)
    from headrace.data.tables import read_batches
    from headrace.data.validation.suite import propose_suite

    suite = propose_suite(read_batches(project, found), found.data.targets)
    if as_json:
        print_json(suite)
        return
    import yaml

    click.echo("expect:")
    for one in suite:
        click.echo(
            "  - " + yaml.safe_dump(one, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
        )
