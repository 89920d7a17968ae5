"""The replay: three policies see the same batches, and each has its own model in production.

`frozen` keeps the first model. `always` trains after every batch and takes every candidate, as a schedule without a gate does.
`policy` trains when `should_retrain` gives a reason, and takes a candidate that passes the recipe's gate.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.data.tables import to_frame, write_batch
from headrace.errors import Busy
from headrace.evaluation.retraining_policy import Errors, RetrainingPolicy, State, after_decision, next_state, should_retrain
from headrace.files import read_cached_json, write_json, write_with
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.simulation.arrivals import Arrival
from headrace.simulation.candidates import Candidates, metric_of

STATE = "simulation.json"
FIRST = "0000"
"""The name of the first model."""


class Step(BaseModel):
    """What happened when a batch arrived."""

    model_config = ConfigDict(frozen=True)
    batch: str
    rows: int
    frozen: float
    always: float
    policy: float
    """The error on the batch of the model that each policy had in production when it arrived."""
    retrained: str | None
    """Why `policy` trained again."""
    promoted: bool | None
    """Whether the gate let the candidate of `policy` into production."""
    verdict: list[str]
    """The gate's reasons, those of failed checks first."""
    replaced: dict[str, float]
    """Where the last batch brought a new model: the error on this batch of the model that it replaced, by policy."""


class Standing(BaseModel):
    """Where the simulation stands after some batches."""

    policy: str = FIRST
    always: str = FIRST
    """Names of the models in production."""
    reference: dict[str, Any]
    """As in `State`, like the next three."""
    looks: int = 0
    since_training: int = 0
    tries: int = 0
    replaced: dict[str, str] = {}
    """By policy, the model that was replaced after the newest batch."""
    steps: list[Step] = []


class Totals(BaseModel):
    """Sums of one policy over all batches."""

    model_config = ConfigDict(frozen=True)
    error: float
    """Mean error over batches, each batch counted the same."""
    trainings: int
    """After the first one, which all policies share."""
    promotions: int
    worse: int
    """Promotions of a model that was worse on the next batch than the one that it replaced."""


class Simulation(BaseModel):
    """The result of a simulation."""

    model_config = ConfigDict(frozen=True)
    recipe: str
    metric: str
    error: str
    """What the errors are, for example `mae` or `1 - auc`."""
    first: str
    """The newest value of the rows that were there at the beginning."""
    steps: list[Step]
    totals: dict[str, Totals]
    """By policy."""


def simulate(
    recipe: Recipe,
    arrived: Sequence[Arrival],
    scratch: Project,
    policy: RetrainingPolicy,
    report: Report,
    *,
    batches: int | None = None,
    restart: bool = False,
    encoder: Path | None = None,
) -> Simulation:
    """Replays the batches, and returns errors and trainings. A simulation that was killed goes on where it was.

    Args:
        arrived: the first has the rows that are there at the beginning.
        scratch: a project of the simulation alone, whose data is written here.
        batches: only the first ones of those that arrive.
        encoder: the folder of the pretrained encoder that the recipe adapts, if it adapts one.
        restart: forgets an earlier simulation, which otherwise is continued if recipe, rows and policy are the same.

    Raises:
        Busy: another process simulates the recipe.
        HeadraceError: a training fails, or the gate finds no rows to compare models on.
    """
    metric = metric_of(recipe)
    with _alone(recipe, scratch):
        digest = _digest(recipe, arrived, policy)
        standing = None if restart else _read(scratch, digest)
        if standing is None:
            shutil.rmtree(scratch.root / "models", ignore_errors=True)
            for folder in (scratch.data, scratch.root / "artifacts", scratch.mlruns, scratch.state):
                shutil.rmtree(folder, ignore_errors=True)
        if encoder is not None and not scratch.imported_model(recipe.name).is_dir():
            scratch.raw_data(recipe.name).mkdir(parents=True, exist_ok=True)
            scratch.imported_model(recipe.name).symlink_to(encoder)
        replay = _Replay(recipe, arrived, scratch, metric, policy, report)
        wanted = len(arrived) - 1 if batches is None else min(batches, len(arrived) - 1)
        if standing is None:
            standing = replay.begin()
            _write(scratch, digest, standing)
        elif standing.steps:
            report(f"continues after batch {standing.steps[-1].batch}")
        while len(standing.steps) < wanted:
            standing = replay.advance(standing)
            _write(scratch, digest, standing)
    steps = standing.steps[:wanted]
    lower = recipe.task_type.metrics[metric] == "lower"
    return Simulation(
        recipe=recipe.name,
        metric=metric,
        error=metric if lower else f"1 - {metric}",
        first=arrived[0].name,
        steps=steps,
        totals=totals_of(steps),
    )


class _Replay:
    def __init__(
        self,
        recipe: Recipe,
        arrived: Sequence[Arrival],
        scratch: Project,
        metric: str,
        policy: RetrainingPolicy,
        report: Report,
    ) -> None:
        self.recipe, self.arrived, self.scratch = recipe, arrived, scratch
        self.candidates = Candidates(recipe, scratch, metric)
        self.policy, self.report = policy, report

    def begin(self) -> Standing:
        """Trains the first model, which all policies have in production."""
        self.report(f"first model: rows up to {self.arrived[0].name}")
        self._grow(0)
        self.candidates.train(FIRST, FIRST, None)
        return Standing(reference=self.candidates.facts(FIRST)["test"])

    def advance(self, standing: Standing) -> Standing:
        """Lets the next batch arrive: predict, compare, decide, train, judge."""
        number = len(standing.steps) + 1
        arrival = self.arrived[number]
        frame = to_frame(arrival.table)
        measured = {name: self.candidates.measure(name, frame) for name in {FIRST, standing.always, standing.policy}}
        replaced = {who: self.candidates.measure(model, frame).error for who, model in standing.replaced.items()}
        reference = Errors(**standing.reference)
        kept = State(reference, reference, standing.looks, standing.since_training, standing.tries)
        state = next_state(kept, measured[standing.policy].losses)
        reason = should_retrain(state, self.policy)
        self.report(f"batch {arrival.name}, {len(frame):,} rows: {reason or 'no reason to train again'}")
        self._grow(number)

        promoted, verdict, production, test = None, list[str](), standing.policy, None
        if reason is not None:
            candidate = self._train(number, standing.policy)
            found = self.candidates.judge(candidate, standing.policy)
            promoted, verdict = found.passed, found.reasons
            if promoted:
                production, test = candidate, Errors(**self.candidates.facts(candidate)["test"])
        kept = after_decision(state, self.policy, reason is not None, test)
        always = self._train(number, standing.always)
        changed = {"always": standing.always} | ({"policy": standing.policy} if promoted else {})
        step = Step(
            batch=arrival.name,
            rows=len(frame),
            frozen=measured[FIRST].error,
            always=measured[standing.always].error,
            policy=measured[standing.policy].error,
            retrained=reason,
            promoted=promoted,
            verdict=verdict,
            replaced=replaced,
        )
        return Standing(
            policy=production,
            always=always,
            reference=vars(kept.reference),
            looks=kept.looks,
            since_training=kept.since_training,
            tries=kept.tries,
            replaced=changed,
            steps=[*standing.steps, step],
        )

    def _train(self, number: int, champion: str) -> str:
        """Trains on all rows that have arrived, and returns the model's name. Policies share a model that both would train."""
        start = champion if self.recipe.train.start == "champion" else None
        name = f"{number:04d}" + (f"-after-{champion.partition('-')[0]}" if start else "")
        if start and "-" in champion:  # of a chain only the ends are in the name
            name += "-" + hashlib.sha256(champion.encode()).hexdigest()[:6]
        self.candidates.train(name, f"{number:04d}", start)
        return name

    def _grow(self, number: int) -> None:
        """Makes batches 0 to `number` the data of the scratch project."""
        folder = self.scratch.raw_data(self.recipe.name)
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.parquet"):
            if int(path.stem) > number:
                path.unlink()
        for index in range(number + 1):
            path = folder / f"{index:04d}.parquet"
            if not path.exists():
                write_with(path, lambda beside, index=index: write_batch(self.arrived[index].table, beside))  # type: ignore[misc]


def totals_of(steps: Sequence[Step]) -> dict[str, Totals]:
    """Returns the sums of each policy."""
    after = steps[1:]
    trained = {"frozen": 0, "always": len(steps), "policy": sum(step.retrained is not None for step in steps)}
    promoted = {"frozen": 0, "always": len(steps), "policy": sum(bool(step.promoted) for step in steps)}
    return {
        name: Totals(
            error=sum(getattr(step, name) for step in steps) / len(steps),
            trainings=trained[name],
            promotions=promoted[name],
            worse=sum(getattr(step, name) > step.replaced[name] for step in after if name in step.replaced),
        )
        for name in ("frozen", "always", "policy")
    }


@contextmanager
def _alone(recipe: Recipe, scratch: Project) -> Iterator[None]:
    scratch.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(scratch.root / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(
            f"another process simulates {recipe.name}", where=str(scratch.root), hint="wait until it ends, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _digest(recipe: Recipe, arrived: Sequence[Arrival], policy: RetrainingPolicy) -> str:
    """Identifies what the result depends on: the recipe, the rows, the policy."""
    import pandas as pd

    digest = hashlib.sha256(f"{recipe!r}{policy}".encode())
    for arrival in arrived:
        digest.update(arrival.name.encode())
        digest.update(pd.util.hash_pandas_object(to_frame(arrival.table), index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _read(scratch: Project, digest: str) -> Standing | None:
    found = read_cached_json(scratch.root / STATE)
    if not isinstance(found, dict) or found.get("digest") != digest:
        return None
    return Standing.model_validate(found["standing"])


def _write(scratch: Project, digest: str, standing: Standing) -> None:
    write_json(scratch.root / STATE, {"digest": digest, "standing": json.loads(standing.model_dump_json())})


def scratch_project(recipe: Recipe, project: Project) -> Project:
    """The project in which a recipe is simulated: nothing of it is registered or served; it has its own MLflow database."""
    return Project(project.state / "simulations" / recipe.name, project.settings.model_copy(update={"tracking_uri": None}))


def picture_of(scratch: Project) -> Path:
    """Where the plot is."""
    return scratch.root / "simulation.png"
