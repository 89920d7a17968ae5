"""The command that replays the past of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace import console
from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import RecipeError
from headrace.recipe.recipe import Recipe, load_trained

if TYPE_CHECKING:
    from headrace.simulation.arrivals import Every
    from headrace.simulation.simulate import Simulation, Step

LONGEST_REASON = 60


@click.command(short_help="Replay the past of a recipe, to compare when to retrain.")
@click.argument("recipe")
@click.option("--by", metavar="COLUMN", help="Column of time. By default that of data.incremental, else of data.split.time.")
@click.option(
    "--every",
    type=click.Choice(["day", "week", "month", "quarter", "year"]),
    help="Length of a batch, for a column of times. [default: month]",
)
@click.option("--first", type=click.IntRange(min=1), help="Number of values that are there at the beginning.")
@click.option("--batches", type=click.IntRange(min=1), help="Replay the first batches only.")
@click.option("--rows", type=click.IntRange(min=2), help="Take a random sample of this many rows of each value.")
@click.option("--epochs", type=click.IntRange(min=1), help="Train for this many epochs (train.epochs).")
@click.option("--window", help="Train on the newest rows only, for example 3 or '3 months' (train.window).")
@click.option("--start", type=click.Choice(["random", "champion"]), help="First weights of a training (train.start).")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="How much larger the error may be than its reference, as a fraction, before the policy retrains. "
    "[default: monitor.retrain.tolerance of the recipe, 0.05]",
)
@click.option(
    "--cooldown", type=click.IntRange(min=1), default=1, show_default=True, help="Fewest batches between two trainings."
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write the picture to this file.")
@click.option("--restart", is_flag=True, help="Begin again instead of continuing an earlier simulation.")
@json_option
def simulate(
    recipe: str,
    by: str | None,
    every: Every | None,
    first: int | None,
    batches: int | None,
    rows: int | None,
    epochs: int | None,
    window: str | None,
    start: str | None,
    tolerance: float | None,
    cooldown: int,
    plot: Path | None,
    restart: bool,
    as_json: bool,
) -> None:
    """Replay the past of RECIPE, batch by batch, and compare when to retrain.

    Each batch is predicted by the model in production and then compared with its true answers. Three policies answer: `frozen`
    never trains again, `always` trains after each batch, and `policy` when the error is significantly worse than at the last
    judgement; its candidates have to pass the gate of the recipe.

    Nothing is released, and no service has to run. A simulation that was interrupted continues with the same command.
    """
    project = load_project()
    loaded = _changed(load_trained(recipe, project), epochs, window, start)
    from headrace.importing.base import bring_base
    from headrace.services.monitoring.worsening import policy_of
    from headrace.simulation.arrivals import arrivals
    from headrace.simulation.plot import draw
    from headrace.simulation.simulate import picture_of, scratch_project
    from headrace.simulation.simulate import simulate as replay

    bring_base(loaded, project, console.report)
    encoder = None if loaded.base is None else project.imported_model(loaded.name)
    arrived = arrivals(loaded, project, console.report, by=by, every=every, first=first, rows=rows)
    scratch = scratch_project(loaded, project)
    policy = replace(policy_of(loaded.monitor), cooldown=cooldown)
    policy = policy if tolerance is None else replace(policy, tolerance=tolerance)
    found = replay(loaded, arrived, scratch, policy, console.report, batches=batches, restart=restart, encoder=encoder)
    picture = plot or picture_of(scratch)
    draw(found, picture)
    if as_json:
        print_json(found.model_dump(mode="json") | {"picture": str(picture)})
        return
    _show(found)
    click.echo(f"picture: {picture}")


def _changed(recipe: Recipe, epochs: int | None, window: str | None, start: str | None) -> Recipe:
    """The recipe with other settings of training, in one process.

    Raises:
        RecipeError: an invalid window, or one that the recipe has no column for.
    """
    from pydantic import ValidationError

    changes: dict[str, Any] = {"processes": 1, "strategy": "ddp"} if recipe.train.processes > 1 else {}
    changes |= {} if epochs is None else {"epochs": epochs}
    changes |= {} if window is None else {"window": int(window) if window.isdigit() else window}
    changes |= {} if start is None else {"start": start}
    fields = {name: getattr(recipe, name) for name in Recipe.model_fields}
    try:
        return Recipe.model_validate({**fields, "train": {**recipe.train.model_dump(exclude_unset=True), **changes}})
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(message, where="--window", hint="headrace simulate --help") from None


def _show(found: Simulation) -> None:
    from headrace.cli.summary import print_table

    columns = ("batch", "rows", "frozen", "always", "policy", "retrained", "gate", "reason")
    lines: list[tuple[Any, ...]] = [
        (
            step.batch,
            f"{step.rows:,}",
            f"{step.frozen:.4g}",
            f"{step.always:.4g}",
            f"{step.policy:.4g}",
            "no" if step.retrained is None else "yes",
            _verdict(step),
            _short(step.retrained or ""),
        )
        for step in found.steps
    ]
    print_table(columns, lines)
    click.echo("")
    totals = [(name, f"{one.error:.4g}", one.trainings, one.promotions, one.worse) for name, one in found.totals.items()]
    print_table(("policy", f"mean error ({found.error})", "trainings", "promotions", "worse on the next batch"), totals)


def _verdict(step: Step) -> str:
    return "" if step.promoted is None else "promoted" if step.promoted else "refused"


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"
