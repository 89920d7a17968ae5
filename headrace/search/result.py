"""The result of a search: its winner, what new rows let expect of it, and how much each field matters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.evaluation.row_metrics import ratio_of_sums
from headrace.evaluation.selection import Corrected, corrected_for_choice
from headrace.recipe.search import LOSS, value_in
from headrace.search.run import Search
from headrace.search.study import Finished

MAX_MODELS = 20
"""Best trials among which the choice is repeated: worse ones would hardly ever be chosen."""
MAX_ROWS = 10_000
"""Validation rows on which the choice is repeated; of more, the same random part for all trials."""


def result_of(search: Search) -> dict[str, Any]:
    """Returns what the search has found, as JSON values. `winner` is None as long as no trial is complete."""
    finished = search.study.finished()
    best = search.study.best(finished)
    metric, better = search.objective
    own = next((one for one in finished if _is_own(search, one)), None)
    counts = {state: sum(one.state == state for one in finished) for state in ("complete", "pruned", "failed")}
    return {
        "recipe": search.recipe.name,
        "metric": metric,
        "better": better,
        "space": {name: str(entry) for name, entry in search.space.items()},
        "trials": len(finished),
        "asked_for": search.config.trials,
        "counts": counts,
        "winner": _described(best[0]) if best else None,
        "as_in_recipe": _described(own) if own else None,
        "expected": _expected(search, best),
        "best": [_described(one) for one in best[:5]],
        "importances": search.study.importances(),
        "folder": str(search.place.root),
    }


def _is_own(search: Search, trial: Finished) -> bool:
    return trial.values == {name: value_in(search.recipe, name) for name in search.space}


def _described(trial: Finished) -> dict[str, Any]:
    found = asdict(trial)
    del found["history"], found["reason"]
    return found


def _expected(search: Search, best: list[Finished]) -> dict[str, float] | None:
    """What to expect of the winner on other rows; None if it cannot be estimated."""
    corrected = expected_of(search, best[:MAX_MODELS])
    return None if corrected is None else asdict(corrected)


def expected_of(search: Search, best: list[Finished]) -> Corrected | None:
    """Repeats the choice among these trials on resampled validation rows; None without stored answers or with few rows."""
    found = [path for one in best if (path := search.place.answers(_trained(one))).exists()]
    metric, better = search.objective
    if not found or (metric != LOSS and not search.place.truth.exists()):
        return None
    answers = [np.load(path) for path in found]
    rows = _sampled(min(map(len, answers)), search.config.seed)
    if len(rows) < 2:
        return None
    answers = [one[rows] for one in answers]
    if metric == LOSS:
        return corrected_for_choice(lambda i, at: ratio_of_sums(answers[i][at]), len(answers), len(rows), better == "higher")
    from headrace.search.trainer import measure

    truth = np.load(search.place.truth)[rows]

    def score(model: int, at: NDArray[np.int64]) -> float:
        return measure(metric, truth[at], answers[model][at])

    return corrected_for_choice(score, len(answers), len(rows), better == "higher")


def _trained(trial: Finished) -> int:
    """The trial whose answers are stored."""
    return trial.number if trial.like is None else trial.like


def _sampled(rows: int, seed: int) -> NDArray[np.int64]:
    if rows <= MAX_ROWS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, MAX_ROWS, replace=False))
