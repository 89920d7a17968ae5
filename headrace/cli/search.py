"""The command that searches for better values of a recipe's fields."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Any

import click

from headrace import console
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import Interrupted, TrainingError, UsageError
from headrace.project import Project

RESTART = "--restart"


@click.command(short_help="Search for better hyperparameters of a recipe.")
@click.argument("recipe")
@click.option("--trials", type=click.IntRange(min=1, max=10_000), help="Trainings, of all runs of this search together.")
@click.option("--workers", type=click.IntRange(min=1, max=64), help="Trials at the same time, each in its own process.")
@click.option("--timeout", help="No trial begins after this time, for example 30m or 2h.")
@click.option("--sampler", type=click.Choice(["tpe", "random", "qmc", "gp"]), help="How values are chosen.")
@click.option("--pruner", type=click.Choice(["median", "hyperband", "none"]), help="Which trials end early.")
@click.option("--apply", "applies", is_flag=True, help="Write the best values into the recipe.")
@click.option("--write", "new_name", metavar="NAME", help="Write the best values into a new recipe, a copy of this one.")
@click.option(RESTART, is_flag=True, help="Begin again, without earlier trials.")
@json_option
def search(
    recipe: str,
    trials: int | None,
    workers: int | None,
    timeout: str | None,
    sampler: Any,
    pruner: Any,
    applies: bool,
    new_name: str | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Search for better hyperparameters of RECIPE: its section `search` says which fields and values, else a default space.

    Each trial trains on the training rows and is compared on the validation rows; test rows are never read. After an
    interruption or a kill, the same command continues. No service has to run, and nothing is released.
    """
    project = load_project()
    from headrace.search.place import search_lock
    from headrace.search.rows import prepare_rows
    from headrace.search.run import Request, open_search, read_request
    from headrace.search.tracked import run_trials

    request = Request(recipe, trials, workers, _checked(timeout), sampler, pruner, restart)
    if applies and new_name:
        raise UsageError("--apply and --write exclude each other", where="--write", hint="leave one of them out")
    loaded, _, _ = read_request(request, project)
    _require_free(new_name, project)
    try:
        with search_lock(loaded.name, project):
            console.step("prepare", f"the rows of {loaded.name}")
            prepare_rows(loaded, project, console.report)
            console.step("search", f"{loaded.model.name}")
            found = open_search(request, project, console.report)
            result = run_trials(found, project, console.report, restart=restart)
            if result["winner"] is not None and (applies or new_name):
                from headrace.search.apply import apply_values

                path = apply_values(loaded.name, result["winner"]["values"], project, new_name)
                result["written"] = str(path.relative_to(project.root))
    except KeyboardInterrupt:
        again = shlex.join(["headrace", *(one for one in sys.argv[1:] if one != RESTART)])
        raise Interrupted("interrupted; the trials that are done are kept", hint=f"to continue: {again}") from None
    if as_json:
        print_json(result)
    else:
        _show(result, new_name)
    if result["winner"] is None:
        raise TrainingError(
            f"none of {result['trials']} trials is complete", where=loaded.name, hint="headrace search --help: more --trials"
        )


def _checked(timeout: str | None) -> str | None:
    from headrace.recipe.duration import duration_seconds

    if timeout is not None:
        try:
            duration_seconds(timeout)
        except ValueError as error:
            raise UsageError(str(error), where="--timeout", hint="write for example --timeout 30m") from None
    return timeout


def _require_free(new_name: str | None, project: Project) -> None:
    """
    Raises:
        UsageError: the name of the new recipe is not one, or is taken.
    """
    import re

    from headrace.recipe.recipe import NAME_PATTERN

    if new_name is None:
        return
    if not re.fullmatch(NAME_PATTERN, new_name):
        raise UsageError(
            f"{new_name!r} is not a valid name of a recipe", where="--write", hint="lower-case letters, digits and dashes"
        )
    if (project.recipes / f"{new_name}.yaml").exists():
        raise UsageError(f"the recipe {new_name!r} exists", where="--write", hint="choose another name")


def _show(result: dict[str, Any], new_name: str | None) -> None:
    from headrace.cli.summary import print_table

    metric, counts, winner = result["metric"], result["counts"], result["winner"]
    click.echo(f"{result['trials']} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items()))
    if winner is None:
        return
    importances = result["importances"]
    fields = sorted(winner["values"], key=lambda name: -importances.get(name, 0.0))
    rows = [
        (one["number"], f"{one['value']:.5g}", one["epochs"], *(_shown(one["values"][name]) for name in fields))
        for one in result["best"]
    ]
    click.echo("")
    print_table(("trial", f"validation {metric}", "epochs", *fields), rows)
    if importances:
        click.echo("")
        print_table(("field", "importance"), [(name, f"{importances.get(name, 0.0):.2f}") for name in fields])
    click.echo("")
    for line in _winner(result):
        click.echo(line)
    click.echo("")
    for line in _next_steps(result, new_name):
        click.echo(line)


def _winner(result: dict[str, Any]) -> list[str]:
    metric, winner, expected, own = (result[name] for name in ("metric", "winner", "expected", "as_in_recipe"))
    lines = [f"best: trial {winner['number']}, {metric} {winner['value']:.5g} on the validation rows"]
    if own is not None:
        value = f"{metric} {own['value']:.5g}" if own["value"] is not None else metric
        lines.append(
            "      these are the values of the recipe"
            if own["values"] == winner["values"]
            else f"      the recipe as it is: trial {own['number']}, {own['state']}, {value}"
        )
    if expected is not None:
        optimism = float(f"{expected['optimism']:.2g}")
        lines.append(
            f"      on new rows expect {expected['value']:.5g} (95 %: {expected['lower']:.5g} to {expected['upper']:.5g}): "
            f"the best of several trials looks {optimism:g} too good"
        )
    return lines


def _next_steps(result: dict[str, Any], new_name: str | None) -> list[str]:
    name = result["recipe"]
    if (written := result.get("written")) is not None:
        return [f"written to {written}; train, judge and release it: headrace run {new_name or name}"]
    if result["as_in_recipe"] is not None and result["as_in_recipe"]["values"] == result["winner"]["values"]:
        return [f"recipes/{name}.yaml has them already; more trials: headrace search {name} --trials {2 * result['trials']}"]
    lines = [f"  {field}: {json.dumps(value)}" for field, value in result["winner"]["values"].items()]
    return [*lines, f"write them into recipes/{name}.yaml: headrace search {name} --apply   (then: headrace run {name})"]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value) if isinstance(value, list | dict) else str(value)
