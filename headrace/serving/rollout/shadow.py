"""Tries a new version as shadow: it receives copies of requests, and its answers are compared with the champion's.

No client receives an answer of a shadow.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.serving.gateway.model_route import Traffic
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.canary_analysis import Measurement, detectable_agreement, low_agreement
from headrace.serving.rollout.monitor import Trial, compared_answers, monitor, pool_snapshot, scale_for_share
from headrace.serving.rollout.recorded_answers import records
from headrace.serving.rollout.steps import stop_trials

TOLERANCE = 0.25
"""Two numbers agree when they differ by at most this many standard deviations of the champion's answers."""
FEW_LABELS, MOST_LABELS = 20, 0.5
"""Texts with more than this many distinct values, and more than this share of all answers, are free text, not labels."""
Answers = dict[tuple[str, str], list[Any]]
"""Tenant and request id to the predictions."""


def run_shadow(trial: Trial, replicas: int) -> None:
    """Runs all steps of the trial with copies of requests, then stops the shadows: live replicas are started separately.

    Raises:
        RolloutAborted: the version left its bounds, or agrees too rarely with the champion.
    """
    context = trial.context
    try:
        for share in trial.config.steps:
            scale_for_share(trial, "shadow", share, replicas)
            context.split_traffic(Traffic(shadow=share))
            context.report(
                f"shadow {share:g} %: version {trial.spec.version} gets copies of the requests of {trial.champion_versions}"
            )
            _monitor_step(trial, f"shadow {share:g} %", context.endpoints("shadow"))
    finally:
        stop_trials(context)


def _monitor_step(trial: Trial, step: str, shadows: Sequence[Replica]) -> None:
    context, champions = trial.context, trial.context.endpoints("main")
    new_before, champion_before = pool_snapshot(context, "shadow", shadows), pool_snapshot(context, "main", champions)

    def compare_answers(measured: Measurement) -> Measurement:
        usage = context.project.usage
        agreed, compared = agreement(recorded(usage, champions), recorded(usage, shadows))
        if not compared:
            return measured
        bounds = trial.config.bounds
        measured = replace(
            measured,
            agreement=agreed / compared,
            compared=compared,
            detectable_agreement=detectable_agreement(compared, bounds),
        )
        reason = low_agreement(agreed, compared, bounds)
        return replace(measured, bound="agreement", reason=reason) if reason else measured

    monitor(
        trial,
        step,
        "shadow",
        lambda: pool_snapshot(context, "shadow", shadows).since(new_before),
        lambda: pool_snapshot(context, "main", champions).since(champion_before),
        compared_answers(context, shadows, champions),
        compare_answers,
    )


def agreement(champion: Answers, shadow: Answers) -> tuple[int, int]:
    """Returns how many requests got equal answers, and how many both answered. Free text is not compared: (0, 0)."""
    both = [(champion[key], shadow[key]) for key in champion.keys() & shadow.keys()]
    predictions = [prediction for predictions, _ in both for prediction in predictions]
    if not predictions:
        return 0, 0
    most = max(FEW_LABELS, MOST_LABELS * len(predictions))
    if all(isinstance(prediction, str) for prediction in predictions) and len(set(predictions)) > most:
        return 0, 0
    if all(isinstance(prediction, dict) for prediction in predictions):
        return _agreement_of_values(both, predictions)
    floats = [prediction for prediction in predictions if isinstance(prediction, float)]
    tolerance = TOLERANCE * statistics.pstdev(floats) if floats else 0.0
    return sum(_agree(one, other, tolerance) for one, other in both), len(both)


def _agreement_of_values(
    both: Sequence[tuple[Sequence[Any], Sequence[Any]]], predictions: Sequence[dict[str, float]]
) -> tuple[int, int]:
    """Of several values by name: all have to agree."""
    agreed = [True] * len(both)
    for name in predictions[0]:
        tolerance = TOLERANCE * statistics.pstdev([prediction.get(name, 0.0) for prediction in predictions])
        for i, answers in enumerate(both):
            one, other = ([answer.get(name) for answer in found] for found in answers)
            agreed[i] = agreed[i] and _agree(one, other, tolerance)
    return sum(agreed), len(both)


def _agree(one: Sequence[Any], other: Sequence[Any], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance if isinstance(a, float) and isinstance(b, int | float) else a == b
        for a, b in zip(one, other, strict=True)
    )


def recorded(usage: Path, replicas: Iterable[Replica]) -> Answers:
    """Reads the answers that replicas record beside their usage.

    Clients choose ids and may repeat them: which answers belong to the same request is then unknown, and none is compared.
    """
    found: Answers = {}
    repeated = set()
    for replica in replicas:
        for line in records(usage, replica.id):
            key = (line.get("tenant", ""), line["id"])
            if key in found:
                repeated.add(key)
            found[key] = line["answers"]
    return {key: answers for key, answers in found.items() if key not in repeated}
