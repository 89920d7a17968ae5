"""What becomes of a candidate: the gate's verdict, a person's approval, rollbacks, and MLflow's aliases."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from headrace.errors import AwaitsApproval, HeadraceError, ModelRefused, RolledBack, UsageError
from headrace.files import write_json
from headrace.project import Project
from headrace.release import journal, record
from headrace.release.decision import approve, decide_promotion
from headrace.tracking import registry
from headrace.tracking.runs import client
from tests.release.candidates import (
    LENIENT,
    SERVING,
    decide,
    events,
    finish,
    new_recipe,
    register,
    register_other_bytes,
    released,
    with_gate,
)


def test_the_first_candidate_that_passes_is_promoted(built: Project) -> None:
    recipe = new_recipe(built)
    version = register(recipe, built)
    decision = decide(recipe, version, built)
    assert (decision.result, decision.chosen.version, decision.in_production) == ("promote", "1", None)
    assert decision.verdict.passed and not decision.stops
    assert registry.aliased(recipe.name, "challenger", built) == "1"
    assert registry.tag(version, "gate", built) == "passed"
    assert events(recipe, built) == []
    finish(recipe, decision, built)
    assert registry.get(recipe.name, built).aliases == ("champion",)


def test_a_refused_first_candidate_is_recorded_once_and_nothing_serves(built: Project) -> None:
    recipe = new_recipe(built, require={"accuracy": "> 1"})
    version = register(recipe, built)
    for _ in range(2):
        decision = decide(recipe, version, built)
        assert decision.result == "refused" and decision.stops
        with pytest.raises(ModelRefused, match="nothing serves yet"):
            finish(recipe, decision, built)
    assert events(recipe, built) == [("refused", "1")]
    assert registry.tag(version, "gate", built) == "refused"
    assert record.current_release(recipe.name, built) is None
    with pytest.raises(ModelRefused, match="the gate refused"):
        record.last_final_release(recipe.name, built)
    assert registry.aliased(recipe.name, "champion", built) is None


def test_a_refused_candidate_leaves_the_champion_serving(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    stricter = with_gate(recipe, require={"accuracy": "> 1"})
    decision = decide(stricter, register_other_bytes(recipe, built), built)
    assert decision.result == "refused" and decision.in_production == "1"
    with pytest.raises(ModelRefused, match=f"{recipe.name}@1 keeps serving") as caught:
        finish(stricter, decision, built)
    assert "accuracy" in caught.value.message and f"recipes/{recipe.name}.yaml" in str(caught.value.hint)
    assert events(recipe, built) == [("released", "1"), ("refused", "2")]
    facts = record.current_release(recipe.name, built)
    assert facts is not None and facts["version"] == "1"


def test_equal_answers_do_not_beat_the_champion(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    candidate = register_other_bytes(recipe, built)
    decision = decide(recipe, candidate, built)
    assert decision.result == "refused" and not decision.verdict.same_model
    assert decide(with_gate(recipe, beat_champion=LENIENT), candidate, built).result == "promote"


def test_the_champions_bytes_from_other_data_keep_the_champion(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    decision = decide(recipe, register(recipe, built, "bbb.dir"), built)
    assert decision.result == "keep" and decision.verdict.same_model and decision.verdict.passed
    assert decision.chosen.version == "1"
    assert finish(recipe, decision, built)["version"] == "1"
    assert events(recipe, built) == [("released", "1")]
    assert registry.get(recipe.name, built).version == "1"


# Approval and rollback.


def test_a_person_approves_first(built: Project) -> None:
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    for _ in range(2):
        waiting = decide(recipe, version, built)
        assert waiting.result == "awaiting-approval" and waiting.stops
        with pytest.raises(AwaitsApproval, match="waits for approval; nothing serves yet") as caught:
            finish(recipe, waiting, built)
    assert f"headrace approve {version.name} && headrace run {recipe.name}" in str(caught.value.hint)
    assert record.last_final_release(recipe.name, built) is None
    assert approve(version.name, built, "ada").version == "1"
    decision = decide(recipe, version, built)
    assert decision.result == "promote"
    finish(recipe, decision, built)
    assert events(recipe, built) == [("awaiting-approval", "1"), ("approved", "1"), ("released", "1")]
    assert registry.tag(version, "approved_by", built) == "ada"
    assert not decide(recipe, version, built).stops, "the champion needs no second approval"
    with pytest.raises(UsageError, match="is the champion already"):
        approve(version.name, built, "ada")


def test_approval_does_not_overrule_the_gate(built: Project) -> None:
    recipe = new_recipe(built, approval="manual", require={"accuracy": "> 1"})
    version = register(recipe, built)
    approve(version.name, built, "ada")
    assert decide(recipe, version, built).result == "refused"


def test_a_version_that_was_rolled_back_is_promoted_again_only_by_force(built: Project) -> None:
    recipe = new_recipe(built)
    first = released(recipe, built)
    lenient = with_gate(recipe, beat_champion=LENIENT)
    second = register_other_bytes(lenient, built)
    finish(lenient, decide(lenient, second, built), built)
    rollback = {**SERVING, "rolled_back": {"from": "2", "why": "slow", "by": "ada"}}
    journal.record(built, "rolled-back", recipe.name, "1", rollback)
    registry.set_alias(first, registry.CHAMPION, built)
    assert record.last_final_release(recipe.name, built) is None, "a run takes every step, and says why it changes nothing"

    decision = decide(lenient, second, built)
    assert decision.result == "rolled-back" and decision.in_production == "1"
    with pytest.raises(
        RolledBack, match=rf"{recipe.name}@2 was rolled back at .* \(by ada: slow\).*{recipe.name}@1 keeps serving"
    ):
        finish(lenient, decision, built)
    assert events(recipe, built) == [("released", "1"), ("released", "2"), ("rolled-back", "1")]

    finish(lenient, decide(lenient, second, built, force=True), built)
    assert events(recipe, built)[-1] == ("released", "2")
    assert registry.get(recipe.name, built).version == "2"


# MLflow's aliases: a person can move them, and that serves nothing.


def test_a_champion_alias_moved_by_hand_is_corrected_and_does_not_change_what_serves(built: Project) -> None:
    recipe = new_recipe(built)
    first = released(recipe, built)
    lenient = with_gate(recipe, beat_champion=LENIENT)
    second = register_other_bytes(lenient, built)
    finish(lenient, decide(lenient, second, built), built)
    registry.set_alias(first, registry.CHAMPION, built)

    lines: list[str] = []
    stricter = with_gate(recipe, require={"accuracy": "> 1"})
    decision = decide_promotion(stricter, register_other_bytes(recipe, built), built, lines.append)
    assert decision.result == "refused" and decision.in_production == "2"
    assert decision.champion is not None and decision.champion.version == "2"
    with pytest.raises(ModelRefused, match=f"{recipe.name}@2 keeps serving"):
        finish(stricter, decision, built)
    assert events(recipe, built) == [("released", "1"), ("released", "2"), ("refused", "3")]
    assert registry.aliased(recipe.name, "champion", built) == "2"
    name = recipe.name
    expected = f"MLflow's alias champion pointed to {name}@1; {name}@2 is in production, so it points there again"
    assert lines == [expected]


def test_a_champion_alias_deleted_by_hand_does_not_skip_the_comparison(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    registry.drop_alias(recipe.name, registry.CHAMPION, built)
    lines: list[str] = []
    candidate = register_other_bytes(recipe, built)
    decision = decide_promotion(recipe, candidate, built, lines.append)
    assert decision.result == "refused" and decision.verdict.comparison is not None
    assert registry.aliased(recipe.name, "champion", built) == "1"
    assert len(lines) == 1 and "was missing" in lines[0]
    with pytest.raises(ModelRefused, match=f"{recipe.name}@1 keeps serving"):
        finish(recipe, decision, built)


def test_an_alias_set_before_the_first_release_is_no_champion(built: Project) -> None:
    recipe = new_recipe(built)
    registry.set_alias(register(recipe, built), registry.CHAMPION, built)
    decision = decide(recipe, register_other_bytes(recipe, built), built)
    assert decision.result == "promote" and decision.in_production is None and decision.verdict.comparison is None


def test_a_champion_deleted_from_the_registry_is_reported_and_the_thresholds_decide(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    client(built).delete_model_version(recipe.name, "1")
    lines: list[str] = []
    decision = decide_promotion(recipe, register_other_bytes(recipe, built), built, lines.append)
    assert decision.result == "promote" and decision.champion is None and decision.in_production == "1"
    assert len(lines) == 1 and "was deleted from MLflow" in lines[0]


@pytest.mark.parametrize(
    ("gate", "result"),
    [({"require": {"accuracy": "> 1"}}, "refused"), ({"approval": "manual", "beat_champion": LENIENT}, "awaiting-approval")],
    ids=["refused", "awaiting approval"],
)
def test_a_candidate_stays_challenger_until_it_serves_or_another_one_comes(
    gate: dict[str, object], result: str, built: Project
) -> None:
    recipe = new_recipe(built)
    first = released(recipe, built)
    contract = built.artifacts(recipe.name) / "export" / "contract.json"
    of_first = contract.read_text()
    second = register_other_bytes(recipe, built)
    of_second = contract.read_text()
    changed = with_gate(recipe, **gate)
    decision = decide(changed, second, built)
    assert decision.result == result
    with pytest.raises((ModelRefused, AwaitsApproval)):
        finish(changed, decision, built)
    assert registry.aliased(recipe.name, "challenger", built) == "2"

    contract.write_text(of_first)
    finish(recipe, decide(recipe, first, built), built)  # the change is undone, and the champion released again
    assert registry.aliased(recipe.name, "challenger", built) == "2"
    contract.write_text(of_second)
    third = register_other_bytes(recipe, built)
    lenient = with_gate(recipe, beat_champion=LENIENT)
    third_decision = decide(lenient, third, built)
    assert registry.aliased(recipe.name, "challenger", built) == "3"
    finish(lenient, third_decision, built)
    assert registry.aliased(recipe.name, "challenger", built) is None
    assert registry.aliased(recipe.name, "champion", built) == "3"


# A champion of another shape.


def test_a_champion_of_other_columns_is_an_error(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    candidate = register_other_bytes(recipe, built)
    test = built.artifacts(recipe.name) / "prepared" / "test.parquet"
    pd.read_parquet(test).rename(columns={"colour": "hue"}).to_parquet(test)
    with pytest.raises(HeadraceError, match=f"the champion {recipe.name}@1 cannot answer") as caught:
        decide(recipe, candidate, built)
    assert "gate.beat_champion" in str(caught.value.hint)


def test_a_champion_of_images_of_another_size_is_an_error(built: Project) -> None:
    recipe = new_recipe(built, "pictures", beat_champion={"metric": "accuracy"})
    released(recipe, built)
    candidate = register_other_bytes(recipe, built)
    wide = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image": (2, 8)})})
    with pytest.raises(HeadraceError, match="cannot answer for these rows"):
        decide(wide, candidate, built)


def test_a_champion_with_its_classes_in_another_order_is_compared_class_by_class(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    artifacts = built.artifacts(recipe.name)
    path = artifacts / "export" / "contract.json"
    contract = json.loads(path.read_text())
    write_json(path, {**contract, "labels": contract["labels"][::-1]})
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        y, outputs = saved["y_true"], saved["outputs"]
    np.savez(artifacts / "evaluation" / "predictions.npz", y_true=1 - y, outputs=outputs[:, ::-1])
    lenient = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.01})
    assert decide(lenient, register(recipe, built), built).verdict.passed, "the same answers under other indices"
