"""The gate once more when people have approved a candidate: recipe and production may have changed since it was judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from headrace.evaluation.gate import Comparison, Verdict, check_gate
from headrace.recipe.gate import BeatChampion
from headrace.recipe.recipe import Recipe
from headrace.release.reviews import Standing


def recheck(
    recipe: Recipe, judged: Verdict, metrics: Mapping[str, float], standing: Standing, in_production: str | None
) -> Verdict:
    """Returns the verdict under the recipe as it is now, from what was measured when the candidate was judged.

    Nothing is predicted again, since data and files of the stages may be newer than the candidate. What was not measured then
    counts as failed; the next run of the recipe measures it.

    Args:
        judged: the verdict then.
        metrics: the candidate's, on the test rows then.
        in_production: the number of the version that serves now; None before the first release.
    """
    failed = [*_failed_thresholds(recipe, metrics), *_missing_approvals(recipe, standing)]
    if (beat := recipe.gate.beat_champion) is not None and in_production is not None:
        failed += _failed_comparison(beat, judged.comparison, f"{recipe.name}@{in_production}", in_production)
    if not failed:
        return judged
    before = [f"when it was judged: {reason}" for reason in judged.reasons]
    return judged.model_copy(update={"passed": False, "reasons": [*failed, *before]})


def _failed_thresholds(recipe: Recipe, metrics: Mapping[str, float]) -> list[str]:
    if recipe.imported is not None or not metrics:  # an entry of an earlier Headrace has no metrics
        return []
    thresholds = recipe.gate.model_copy(update={"beat_champion": None})
    found = check_gate(thresholds, recipe.task_type.metrics, metrics, None)
    return [check.sentence for check in found.checks if not check.passed]


def _missing_approvals(recipe: Recipe, standing: Standing) -> list[str]:
    have, need = len(standing.approvals), recipe.gate.approvers
    return [f"{have} of {need} approvals, which the recipe asks for now: failed"] if have < need else []


def _failed_comparison(beat: BeatChampion, found: Comparison | None, serving: str, number: str) -> Iterator[str]:
    if found is None:
        yield f"it was not compared with {serving}, which is in production now: failed"
        return
    if found.against != number:
        yield f"it was compared with version {found.against}, and {serving} is in production now: failed"
    stated = found.confidence if found.budget is None else 1 - found.budget
    if found.metric != beat.metric:
        yield f"it was compared by {found.metric}, and the recipe compares by {beat.metric} now: failed"
    elif beat.confidence > stated + 1e-9:
        yield f"it was compared with a confidence of {stated:g}, and the recipe asks for {beat.confidence:g} now: failed"
    elif found.lower is None or found.lower <= beat.margin:
        shown = "no bound" if found.lower is None else f"better by at least {found.lower:.4g}"
        yield f"{found.metric}: {shown}, and the recipe asks for more than {beat.margin:g} now: failed"
