"""One line for each flow that is killed: its project before it, and how it is started. The matrix is made from these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import yaml

from headrace.recipe.recipe import load_recipe
from tests.projects import table
from tests.release.live import Live
from tests.services.monitoring.sampled_rows import rows_like_training, sampled

RECIPE = "kills"
PAST = "past.csv"
"""Rows that can be scored."""
RESULTS = "results"
"""Folder of the project."""
MONTHS = (1, 2, 3)
"""Batches of the source; the first one is there before a refresh."""
SAMPLED_HOURS = range(2, 8)


def nothing(live: Live) -> None:
    """The project is as it is."""


def recipe_alone(live: Live) -> dict[str, Any]:
    return {"recipe_name": RECIPE}


def past_rows(live: Live) -> dict[str, Any]:
    return {"recipe_name": RECIPE, "data": PAST, "out": f"{RESULTS}/scored.csv", "workers": 1}


def few_trials(live: Live) -> dict[str, Any]:
    return {"recipe_name": RECIPE, "trials": 3, "workers": 1}


@dataclass(frozen=True)
class Scenario:
    """How one flow is run."""

    flow: str
    """Its name in Prefect, and of its file in `flows/`."""
    deployment: str
    """Starts it through Prefect's worker."""
    command: tuple[str, ...] | None = None
    """Starts it in a terminal (`headrace …`); None for a flow that only a deployment starts."""
    parameters: Callable[[Live], dict[str, Any]] = recipe_alone
    """Parameters of the flow, once the project is as it is before. Files that it writes for people go to `RESULTS`."""
    is_released: bool = True
    """Whether version 1 serves before."""
    before: Callable[[Live], None] = nothing
    """Makes what else is there before; run once."""
    within: str | None = None
    """A flow that runs this one as a part of it; `make test` kills in the outermost flows alone."""
    is_long: bool = False
    """Whether `make test-all` alone kills it."""
    approves: str | None = None
    """The version whose approval starts the flow, which Headrace then starts again automatically."""

    @property
    def is_in_short_tests(self) -> bool:
        return self.within is None and not self.is_long


def write_recipe(live: Live) -> None:
    """A recipe of which nothing was released, and whose source has three months."""
    recipe = yaml.safe_load((live.project.recipes / "tiny.yaml").read_text())
    recipe |= {
        "name": RECIPE,
        "serve": {"replicas": 1},
        "gate": {"require": {"accuracy": ">= 0.5"}},
        "train": {**recipe["train"], "epochs": 2},
        "monitor": {"every": "1d", "rows": "independent", "retrain": {"cooldown": "7d", "per_week": 1}},
        "refresh": {"cron": "0 3 29 2 *"},
    }
    recipe["data"] |= {"source": f"{RECIPE}.csv", "incremental": {"column": "month", "first": MONTHS[0]}}
    months = [table(200, seed=month).assign(month=month) for month in MONTHS]
    pd.concat(months).to_csv(live.project.root / f"{RECIPE}.csv", index=False)
    table(200, seed=9).assign(month=4).drop(columns="kind").to_csv(live.project.root / PAST, index=False)
    (live.project.recipes / f"{RECIPE}.yaml").write_text(yaml.safe_dump(recipe))


def drift(live: Live) -> None:
    """Version 1 is asked about other rows than those of its training."""
    recipe = load_recipe(RECIPE, live.project)
    for hour in SAMPLED_HOURS:
        rows = rows_like_training(live.project, recipe, 100, hour, length=1000.0)
        sampled(live.project, RECIPE, hour, rows)


def another_candidate(live: Live) -> None:
    """Version 1 serves, and version 2 waits for a person."""
    path = live.project.recipes / f"{RECIPE}.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["gate"] |= {"approval": "manual"}
    recipe["train"] |= {"epochs": 3}
    path.write_text(yaml.safe_dump(recipe))
    live.run("run", RECIPE, code=4)


SCENARIOS = (
    Scenario("release", "release", ("run", RECIPE), is_released=False, within="refresh"),
    Scenario("refresh", f"refresh-{RECIPE}", within="monitor"),
    Scenario("monitor", f"monitor-{RECIPE}", before=drift),
    Scenario("backfill", "backfill", parameters=past_rows),
    Scenario("search", "search", parameters=few_trials, is_long=True),
    Scenario("approval", "approval", before=another_candidate, approves="2", is_long=True),
)
"""A new flow needs one line here, and no test of its own."""
