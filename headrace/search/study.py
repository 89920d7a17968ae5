"""The study of a search in Optuna: chooses the values of trials, remembers them on disk, and knows what is left to do."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import DamagedFile, DiskFull, HeadraceError
from headrace.recipe.recipe import Recipe
from headrace.recipe.search import Choice, Entry, PrunerName, SamplerName, Space, value_in
from headrace.recipe.task_types import Better
from headrace.search.place import Place

if TYPE_CHECKING:
    import optuna

NAME = "search"
STARTUP_TRIALS = 5
"""Trials that no pruner ends: the others are compared with them."""
FIRST_PRUNED_EPOCH = 2
SECONDS, EPOCHS, REASON, LIKE = "seconds", "epochs", "reason", "like"
"""Attributes of a trial: how long it took, how many epochs it ran, why it failed, and the trial with the same values."""


@dataclass(frozen=True)
class Finished:
    """A trial that is over."""

    number: int
    state: str
    """`complete`, `pruned` or `failed`."""
    value: float | None
    """The metric on the validation rows; of a pruned trial the last one that was reported."""
    values: dict[str, Any]
    """The values of the searched fields."""
    epochs: int
    seconds: float
    reason: str | None
    """Why it failed, or which trial has the same values."""
    like: int | None
    """The trial that was trained with the same values, if this one was not."""
    history: dict[int, float]
    """What was reported after each epoch."""

    @property
    def is_complete(self) -> bool:
        return self.state == "complete"


class Study:
    """The trials of one search. Its methods are called by one thread at a time."""

    def __init__(
        self, place: Place, space: Space, better: Better, sampler: SamplerName, pruner: PrunerName, seed: int, epochs: int
    ) -> None:
        """
        Args:
            epochs: the largest number of epochs of a trial.

        Raises:
            DamagedFile: the file with earlier trials cannot be read.
        """
        self.space, self.better = space, better
        self._sampler, self._seed = sampler, seed
        self._place = place
        with self._storage():
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            place.root.mkdir(parents=True, exist_ok=True)
            # a minute for a database that a backup or a viewer locks
            storage = optuna.storages.RDBStorage(f"sqlite:///{place.storage}", engine_kwargs={"connect_args": {"timeout": 60}})
            direction: Literal["maximize", "minimize"] = "maximize" if better == "higher" else "minimize"
            self.optuna = optuna.create_study(
                study_name=NAME, storage=storage, direction=direction, pruner=_pruner(pruner, epochs), load_if_exists=True
            )

    def interrupted(self) -> list[optuna.Trial]:
        """Trials that a kill has left unfinished."""
        import optuna

        state = optuna.trial.TrialState.RUNNING
        return [
            optuna.trial.Trial(self.optuna, one._trial_id) for one in self.optuna.get_trials(deepcopy=False, states=[state])
        ]

    def begin_with(self, recipe: Recipe) -> list[str]:
        """Makes the values of the recipe the first trial of a new study.

        Returns:
            The fields whose value is not in the space; then no such trial is added.
        """
        values = {name: value_in(recipe, name) for name in self.space}
        outside = [name for name, entry in self.space.items() if not contains(entry, values[name])]
        if not outside and not self.optuna.get_trials(deepcopy=False):
            self.optuna.enqueue_trial({name: _stored(self.space[name], value) for name, value in values.items()})
        return outside

    def ask(self) -> optuna.Trial:
        """Returns a new trial. Its values depend on its number and the results so far, not on how often the search was
        interrupted."""
        with self._storage():
            number = sum(1 for one in self.optuna.get_trials(deepcopy=False) if one.state.name != "WAITING")
            self.optuna.sampler = _make_sampler(self._sampler, self._seed, number)
            return self.optuna.ask()

    def values(self, trial: optuna.Trial) -> dict[str, Any]:
        """Returns the values of a trial by field; those that it lacks are chosen."""
        with self._storage():
            return {name: _suggested(trial, name, entry) for name, entry in self.space.items()}

    def report(self, trial: optuna.Trial, epoch: int, value: float, is_last: bool) -> bool:
        """Stores what a trial has reached after an epoch; returns whether it ends here."""
        with self._storage():
            trial.report(value, epoch)
            return not is_last and trial.should_prune()

    def tell(self, trial: optuna.Trial, state: str, value: float | None, **attributes: Any) -> Finished:
        """Stores how a trial has ended."""
        import optuna

        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        with self._storage():
            for name, attribute in attributes.items():
                if attribute is not None:
                    trial.set_user_attr(name, attribute)
            found = value if state == "complete" else None
            self.optuna.tell(trial, found, state=optuna.trial.TrialState[states[state]])
        return next(one for one in self.finished() if one.number == trial.number)

    def finished(self) -> list[Finished]:
        """Returns all trials that are over, in their order."""
        return [
            self._finished(one)
            for one in self.optuna.get_trials(deepcopy=False)
            if one.state.name in ("COMPLETE", "PRUNED", "FAIL")
        ]

    def best(self, finished: list[Finished] | None = None) -> list[Finished]:
        """Returns the complete trials, the best one first."""
        complete = [one for one in (self.finished() if finished is None else finished) if one.is_complete]
        sign = -1 if self.better == "higher" else 1
        return sorted(complete, key=lambda one: (sign * (one.value or 0.0), one.number))

    def importances(self) -> dict[str, float]:
        """Returns how much of the differences between complete trials each field explains, 0 to 1 (fANOVA: Hutter et al.
        2014); nothing of fewer than four trials, or if all are equal."""
        complete = self.best()
        if len(complete) < 4 or len({one.value for one in complete}) < 2:
            return {}
        with self._storage():
            from optuna.importance import get_param_importances

            found = get_param_importances(self.optuna, evaluator=self.importance_evaluator())
            return {name: float(value) for name, value in found.items()}

    def importance_evaluator(self) -> optuna.importance.BaseImportanceEvaluator:
        from optuna.importance import FanovaImportanceEvaluator

        return FanovaImportanceEvaluator(seed=self._seed)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Without Optuna's warnings about what is experimental, and about values that a continued trial reports again.

        Raises:
            DamagedFile: the database cannot be read.
            DiskFull: no space is left for it.
            HeadraceError: it cannot be written.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except HeadraceError:
            raise
        except Exception as error:
            messages = " ".join(map(str, (error, error.__cause__, error.__context__)))  # Optuna's own hides that of SQLite
            if (known := _as_storage_error(messages, self._place)) is None:
                raise
            raise known from None

    def _finished(self, trial: optuna.trial.FrozenTrial) -> Finished:
        attributes, last = trial.user_attrs, trial.last_step
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}[trial.state.name]
        value = trial.value if state == "complete" else trial.intermediate_values.get(last) if last is not None else None
        return Finished(
            number=trial.number,
            state=state,
            value=value,
            values={name: read(self.space[name], stored) for name, stored in trial.params.items() if name in self.space},
            epochs=int(attributes.get(EPOCHS, last or 0)),
            seconds=float(attributes.get(SECONDS, 0.0)),
            reason=attributes.get(REASON),
            like=attributes.get(LIKE),
            history=dict(trial.intermediate_values),
        )


def contains(entry: Entry, value: Any) -> bool:
    """Returns whether a space has a value of a field."""
    if isinstance(entry, Choice):
        return value in entry.values
    if isinstance(value, bool) or not isinstance(value, int | float) or not entry.low <= value <= entry.high:
        return False
    return entry.step is None or abs(round((value - entry.low) / entry.step) * entry.step + entry.low - value) < 1e-9


def read(entry: Entry, stored: Any) -> Any:
    """Returns a value as the recipe has it, from the form in which Optuna stores it."""
    if isinstance(entry, Choice):
        return entry.values[entry.labels.index(stored)]
    return int(stored) if entry.is_int else float(f"{stored:.6g}")  # as few digits as a recipe has


def _stored(entry: Entry, value: Any) -> Any:
    return entry.labels[entry.values.index(value)] if isinstance(entry, Choice) else value


def _suggested(trial: optuna.Trial, name: str, entry: Entry) -> Any:
    if isinstance(entry, Choice):
        return read(entry, trial.suggest_categorical(name, entry.labels))
    if entry.is_int:
        found = trial.suggest_int(name, int(entry.low), int(entry.high), step=int(entry.step or 1), log=entry.is_log)
        return read(entry, found)
    return read(entry, trial.suggest_float(name, entry.low, entry.high, step=entry.step, log=entry.is_log))


def _make_sampler(name: SamplerName, seed: int, number: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    own = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])
    match name:
        case "random":
            return samplers.RandomSampler(seed=own)
        case "qmc":  # the points of one sequence, in their order
            return samplers.QMCSampler(seed=seed, scramble=True, independent_sampler=samplers.RandomSampler(seed=own))
        case "gp":
            return samplers.GPSampler(seed=own)
        case _:
            return samplers.TPESampler(seed=own, multivariate=True)


def _pruner(name: PrunerName, epochs: int) -> optuna.pruners.BasePruner:
    from optuna import pruners

    match name:
        case "median":
            return pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=FIRST_PRUNED_EPOCH)
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=1, max_resource=max(epochs, 2))
        case _:
            return pruners.NopPruner()


def _as_storage_error(message: str, place: Place) -> HeadraceError | None:
    """An error of SQLite that the user can act on; None for another one."""
    where = str(place.storage)
    if "malformed" in message or "not a database" in message:
        hint = "restore it from a backup, or begin again: add --restart"
        return DamagedFile("earlier trials cannot be read", where=where, hint=hint)
    if "disk is full" in message or "disk I/O error" in message:
        hint = "free some space, then run the same command"
        return DiskFull("no space left for the trials of the search", where=where, hint=hint)
    if "database is locked" in message:
        hint = "close what holds the lock (a database browser, a backup), then run the same command"
        return HeadraceError("another program locks the file", where=where, hint=hint)
    if "readonly database" in message or "unable to open database" in message:
        return HeadraceError("it cannot be written", where=where, hint="make it and its folder writable for this user")
    return None
