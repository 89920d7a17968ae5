"""A candidate that people have approved, after recipe or production changed: it is judged by what they are now."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ModelRefused
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, reviews, up_to_date
from headrace.release.decision import take_approved
from headrace.tracking.registry import Version
from tasks import approval
from tests.release.candidates import (
    LENIENT,
    SERVING,
    approve,
    decide,
    events,
    finish,
    new_recipe,
    register,
    register_other_bytes,
    released,
    with_gate,
)


@pytest.fixture
def approved(built: Project) -> tuple[Recipe, Version]:
    """A recipe of which two versions were released; a third, which was compared with the second, is approved."""
    recipe = new_recipe(built, beat_champion=LENIENT)
    released(recipe, built)
    finish(recipe, decide(recipe, register_other_bytes(recipe, built, after=1), built), built)
    manual = with_gate(recipe, approval="manual")
    candidate = register_other_bytes(manual, built, after=2)
    decision = decide(manual, candidate, built)
    assert decision.waits and decision.verdict.comparison is not None and decision.verdict.comparison.against == "2"
    approve(candidate, built)
    return manual, candidate


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        ({"require": {"accuracy": "> 1"}}, r"accuracy [0-9.]+ > 1: failed"),
        ({"approvers": 2}, "1 of 2 approvals, which the recipe asks for now"),
        ({"beat_champion": {**LENIENT, "metric": "log_loss"}}, "compared by accuracy, and the recipe compares by log_loss now"),
        ({"beat_champion": {**LENIENT, "confidence": 0.99}}, "with a confidence of 0.95, and the recipe asks for 0.99 now"),
        ({"beat_champion": {**LENIENT, "margin": 0.5}}, "the recipe asks for more than 0.5 now"),
    ],
)
def test_a_gate_that_was_made_stricter_refuses(
    built: Project, approved: tuple[Recipe, Version], gate: dict[str, Any], reason: str
) -> None:
    recipe, candidate = approved
    with pytest.raises(ModelRefused, match=reason) as caught:
        approval.take(with_gate(recipe, **gate), candidate.version, built)
    assert "release-" in caught.value.message and "@2 keeps serving" in caught.value.message
    assert f"headrace run {recipe.name} judges it again" in str(caught.value)
    assert events(recipe, built)[-1] == ("refused", candidate.version)
    assert reviews.candidate_of(journal.entries(built, recipe.name), built) is None, "no run is made for it any more"


@pytest.mark.parametrize("gate", [{}, {"require": {}}, {"beat_champion": None}, {"beat_champion": {**LENIENT, "margin": -0.2}}])
def test_the_same_gate_or_a_weaker_one_promotes(built: Project, approved: tuple[Recipe, Version], gate: dict[str, Any]) -> None:
    recipe, candidate = approved
    assert take_approved(with_gate(recipe, **gate), candidate.version, built).result == "promote"


def test_another_version_in_production_is_compared_first(built: Project, approved: tuple[Recipe, Version]) -> None:
    recipe, candidate = approved
    up_to_date.remember(recipe, built, 2**62)
    journal.record(
        built, "rolled-back", recipe.name, "1", {**SERVING, "rolled_back": {"from": "2", "why": "slow", "by": "ada"}}
    )
    with pytest.raises(ModelRefused, match=rf"compared with version 2, and {recipe.name}@1 is in production now: failed"):
        approval.take(recipe, candidate.version, built)
    assert not up_to_date.is_unchanged(recipe, built), "the next run has to compare"
    again = decide(recipe, candidate, built)
    assert again.result == "promote" and again.review is not None and again.review.by == "ada", "the approval still counts"
    assert again.verdict.comparison is not None and again.verdict.comparison.against == "1"


def test_a_candidate_that_was_compared_with_nothing_is_compared_first(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", beat_champion=None)
    version = register(recipe, built)
    decide(recipe, version, built)
    approve(version, built)
    compared = with_gate(recipe, beat_champion=LENIENT)
    assert take_approved(compared, "1", built).result == "promote", "nothing is in production"
    finish(recipe, take_approved(recipe, "1", built), built)
    candidate = register_other_bytes(recipe, built, after=1)
    assert decide(recipe, candidate, built).waits
    approve(candidate, built)
    with pytest.raises(ModelRefused, match=rf"not compared with {recipe.name}@1, which is in production now"):
        approval.take(compared, "2", built)
