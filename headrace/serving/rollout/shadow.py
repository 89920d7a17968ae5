"""A shadow: the new version gets copies of requests. Nobody gets its answers; they are held against the champion's."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.serving.gateway.clusters import Traffic
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.judging import Reading, agreement_left
from headrace.serving.rollout.steps import end_trials
from headrace.serving.rollout.watch import Trial, look, scale_for_share, watch

TOLERANCE = 0.25
"""Two values agree when they differ by at most so many standard deviations of the champion's answers."""
FEW_LABELS, MOST_LABELS = 20, 0.5
"""Texts of which more than so many, and more than this share of all answers, differ are no labels: they are not compared."""
Answers = dict[str, list[Any]]
"""Request id to what was answered."""


def try_as_shadow(trial: Trial, replicas: int) -> None:
    """Takes the new version through its steps with copies of requests, and stops it: what goes live is started anew.

    Raises:
        RolloutAborted: it left its bounds, or agrees too seldom with the champion.
    """
    site = trial.site
    try:
        for share in trial.how.steps:
            scale_for_share(trial, "shadow", share, replicas)
            site.send(Traffic(shadow=share))
            site.report(f"shadow {share:g} %: version {trial.spec.version} gets copies of the requests of {trial.champions}")
            _watch_step(trial, f"shadow {share:g} %", site.serving("shadow"))
    finally:
        end_trials(site)


def _watch_step(trial: Trial, name: str, shadows: Sequence[Replica]) -> None:
    site, champions = trial.site, trial.site.serving()
    new, old = look(site, "shadow", shadows), look(site, "main", champions)

    def compare(reading: Reading) -> Reading:
        agreed, compared = agreement(_records(site.project.usage, champions), _records(site.project.usage, shadows))
        if not compared:
            return reading
        reading = replace(reading, agreement=agreed / compared, compared=compared)
        said = agreement_left(agreed, compared, trial.how.bounds)
        return replace(reading, bound="agreement", said=said) if said else reading

    watch(
        trial,
        name,
        "shadow",
        lambda: look(site, "shadow", shadows).since(new),
        lambda: look(site, "main", champions).since(old),
        compare,
    )


def agreement(champion: Answers, shadow: Answers) -> tuple[int, int]:
    """How many requests were answered alike, of how many that both answered; texts that are no labels are left out."""
    both = [(champion[key], shadow[key]) for key in champion.keys() & shadow.keys()]
    given = [answer for answers, _ in both for answer in answers]
    if not given:
        return 0, 0
    if all(isinstance(answer, str) for answer in given) and len(set(given)) > max(FEW_LABELS, MOST_LABELS * len(given)):
        return 0, 0
    floats = [answer for answer in given if isinstance(answer, float)]
    tolerance = TOLERANCE * statistics.pstdev(floats) if floats else 0.0
    return sum(_alike(one, other, tolerance) for one, other in both), len(both)


def _alike(one: Sequence[Any], other: Sequence[Any], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        abs(a - b) <= tolerance if isinstance(a, float) and isinstance(b, int | float) else a == b
        for a, b in zip(one, other, strict=True)
    )


def _records(usage: Path, replicas: Iterable[Replica]) -> Answers:
    """What replicas keep of their answers, beside what they count."""
    return {line["id"]: line["answers"] for endpoint in replicas for line in _lines(usage / endpoint.id)}


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("answers-*.jsonl")):
        with path.open("rb") as handle:
            for line in handle:
                if line.endswith(b"\n"):  # else it is being written at this moment
                    yield json.loads(line)
