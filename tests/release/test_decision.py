"""What becomes of a candidate: the gate's verdict, a person's approval, rollbacks, and MLflow's aliases."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.cli.summary import print_history
from headrace.errors import AwaitsApproval, HeadraceError, ModelRefused, RegistryError, RolledBack
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal, record
from headrace.release.decision import decide_promotion
from headrace.serving.access import audit
from headrace.serving.packaging import package
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from headrace.tracking.runs import client
from tests.exhaustive import exhaustive
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


def test_changed_files_of_a_champion_are_not_compared_with_and_those_of_a_candidate_not_approved(built: Project) -> None:
    recipe = new_recipe(built)
    champion = released(recipe, built)
    (entry,) = journal.entries(built, recipe.name)
    assert entry.facts["files"]["model.onnx"] and entry.facts["content_sha256"] == content_hash(champion.folder)
    graph = champion.folder / "model.onnx"
    original = graph.read_bytes()
    graph.write_bytes(original + b"\0")
    client(built).set_model_version_tag(recipe.name, "1", registry.CONTENT, content_hash(champion.folder))
    candidate = register_other_bytes(recipe, built)
    with pytest.raises(RegistryError, match=rf"model\.onnx: model\.onnx of {champion.name} changed") as caught:
        decide(recipe, candidate, built)
    assert caught.value.where == str(graph) and "headrace run" in str(caught.value.hint)
    graph.write_bytes(original)
    manual = with_gate(recipe, approval="manual", beat_champion=LENIENT)
    assert decide(manual, candidate, built).result == "awaiting-approval"
    graph = candidate.folder / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(RegistryError, match=rf"model\.onnx: model\.onnx of {candidate.name} changed"):
        approve(candidate, built)
    assert registry.tag(candidate, "approval", built) is None


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


# Rollback. Approvals and rejections are in test_reviews.py.


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


def test_the_history_alone_tells_what_served_when_why_and_by_whom(built: Project, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    released(recipe, built)
    second = register_other_bytes(recipe, built)
    finish(recipe, decide(recipe, second, built), built)
    rollback = {**SERVING, "rolled_back": {"from": "2", "why": "slow", "by": "ada"}}
    journal.record(built, "rolled-back", recipe.name, "1", rollback)
    finish(recipe, decide(recipe, second, built, force=True), built)
    print_history(journal.entries(built, recipe.name), {})
    printed = capsys.readouterr().out
    who = f"released by {audit.user()}"
    heads = re.findall(rf"^(\S+)  {recipe.name}@(\d)  (\S+)$", printed, re.MULTILINE)
    assert [head[1:] for head in heads] == [("1", "released"), ("2", "released"), ("1", "rolled-back"), ("2", "released")]
    assert all(datetime.fromisoformat(at).utcoffset() is not None for at, *_ in heads), "times have a zone"
    assert [at for at, *_ in heads] == sorted(at for at, *_ in heads)
    assert printed.count(who) == 3 and f"{recipe.name}@2 was rolled back by ada: slow" in printed
    assert printed.count("accuracy") >= 3, "the reasons of each release"
    (forced,) = re.findall(r"forced: it was rolled back at (\S+) \(by ada: slow\)", printed)
    assert forced == heads[2][0]


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


@pytest.mark.parametrize("how", [exhaustive("version deleted"), "model deleted", exhaustive("files gone")])
def test_a_champion_that_is_gone_from_mlflow_is_compared_from_its_bento(built: Project, how: str) -> None:
    recipe = new_recipe(built)
    first = register(recipe, built)
    tag = package(first.folder, recipe.name, "1", first.identity, built).tag
    finish(recipe, decide(recipe, first, built), built, {**SERVING, "bento": tag})
    if how == "version deleted":
        client(built).delete_model_version(recipe.name, "1")
    elif how == "model deleted":
        client(built).delete_registered_model(recipe.name)
    else:
        shutil.rmtree(first.folder)
    lines: list[str] = []
    last = history.last_number(journal.entries(built, recipe.name))
    candidate = register_other_bytes(recipe, built, after=last)
    assert candidate.version == "2", "a number never means two versions"
    for _ in range(2):
        decision = decide_promotion(recipe, candidate, built, lines.append)
        assert decision.result == "refused" and decision.verdict.comparison is not None
        assert register(recipe, built, after=last).version == candidate.version, "a further attempt leaves no further version"
    assert decision.champion is not None and decision.champion.identity == first.identity
    gone = "its files are gone from MLflow" if how == "files gone" else "it was deleted from MLflow"
    assert lines[0] == f"{recipe.name}@1 is in production and {gone}; the comparison reads it from its bento"

    lenient = with_gate(recipe, beat_champion=LENIENT)
    finish(lenient, decide(lenient, candidate, built), built)
    assert registry.get(recipe.name, built).version == "2"


def test_without_the_champions_files_anywhere_the_gate_does_not_skip_its_comparison(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)  # its bento does not exist
    client(built).delete_model_version(recipe.name, "1")
    candidate = register_other_bytes(recipe, built)
    with pytest.raises(RegistryError, match="the gate cannot compare with it") as caught:
        decide(recipe, candidate, built)
    assert "remove gate.beat_champion for this one release" in str(caught.value.hint)
    decision = decide(with_gate(recipe, beat_champion=None), candidate, built)
    assert decision.result == "promote" and decision.champion is None and decision.in_production == "1"


def test_a_version_that_was_rolled_back_does_not_come_back_under_another_number(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    lenient = with_gate(recipe, beat_champion=LENIENT)
    finish(lenient, decide(lenient, register_other_bytes(lenient, built), built), built)
    rollback = {**SERVING, "rolled_back": {"from": "2", "why": "slow", "by": "ada"}}
    journal.record(built, "rolled-back", recipe.name, "1", rollback)
    client(built).delete_model_version(recipe.name, "2")
    again = register(recipe, built)
    assert again.version == "3" and decide(lenient, again, built).result == "rolled-back"


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


def relabel(recipe: Recipe, project: Project, labels: list[Any]) -> None:
    """Gives the candidate's classes other labels; a third one has the first six test rows, and the candidate is right there."""
    artifacts = project.artifacts(recipe.name)
    path = artifacts / "export" / "contract.json"
    write_json(path, {**json.loads(path.read_text()), "labels": labels})
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        y, outputs = saved["y_true"], saved["outputs"]
    if len(labels) > outputs.shape[1]:
        outputs = np.column_stack([outputs, np.zeros(len(outputs), outputs.dtype)])
        y[:6], outputs[:6] = 2, [0.0, 0.0, 1.0]
    np.savez(artifacts / "evaluation" / "predictions.npz", y_true=y, outputs=outputs)


def test_rows_of_a_label_that_the_champion_does_not_know_count_as_its_errors_and_the_reasons_say_so(built: Project) -> None:
    recipe = new_recipe(built)
    relabel(recipe, built, ["no", "yes"])
    released(recipe, built)
    relabel(recipe, built, ["no", "yes", "maybe"])
    lenient = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.5})
    verdict = decide(lenient, register(recipe, built), built).verdict
    assert verdict.comparison is not None
    assert (verdict.comparison.unknown_labels, verdict.comparison.unknown_rows) == (["maybe"], 6)
    assert verdict.comparison.won == 6 and verdict.comparison.lost == 0
    assert "of which 6 have a label that the champion does not know ('maybe') and gets wrong" in " ".join(verdict.reasons)


def test_labels_that_became_another_type_are_the_same_labels(built: Project) -> None:
    recipe = new_recipe(built)
    relabel(recipe, built, [1, 2])
    released(recipe, built)
    lenient = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.5})
    for labels in (["1", "2"], ["1.0", "2.0"]):
        relabel(recipe, built, labels)
        comparison = decide(lenient, register(recipe, built), built).verdict.comparison
        assert comparison is not None and comparison.champion is not None and comparison.unknown_labels == []
        assert comparison.champion == pytest.approx(comparison.candidate)


# Honest comparisons: rows that the champion has not seen, and an error budget.


def champion_split(recipe: Recipe, project: Project, **changed: object) -> None:
    """Changes what the registry knows about the split of version 1."""
    first = registry.get(f"{recipe.name}@1", project)
    record = json.loads(first.tags["headrace.split"])
    fields = {name: changed.pop(name) for name in list(changed) if name in ("keys", "last")}
    registry.set_tags(first, {"split": json.dumps({**record, **fields, "split": {**record["split"], **changed}})}, project)


def test_a_champion_with_another_split_is_compared_on_rows_that_it_did_not_see(built: Project) -> None:
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    first = released(recipe, built)
    assert len(first.tags["headrace.split_sha256"]) == 64
    rows = len(pd.read_parquet(built.artifacts(recipe.name) / "prepared" / "test.parquet"))
    candidate = register_other_bytes(recipe, built)
    same = decide(recipe, candidate, built).verdict.comparison
    assert same is not None and (same.rows, same.left_out) == (rows, 0)

    champion_split(recipe, built, test=recipe.data.split.test / 2)
    fewer = decide(recipe, candidate, built).verdict.comparison
    assert fewer is not None and 0 < fewer.rows < rows and fewer.rows + fewer.left_out == rows
    assert f"(without {fewer.left_out:,} that the champion may have been trained on)" in fewer.sentence


def test_a_champion_that_may_have_seen_all_test_rows_is_not_compared(built: Project) -> None:
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    released(recipe, built)
    candidate = register_other_bytes(recipe, built)
    for changed, why in (
        ({"test": 1e-9}, "trained on all"),
        ({"keys": "other"}, "by the values of other columns"),
        ({"test": 2}, "damaged"),
    ):
        champion_split(recipe, built, **changed)
        with pytest.raises(HeadraceError, match=f"rows that it was not trained on: .*{why}") as caught:
            decide(recipe, candidate, built)
        assert "remove gate.beat_champion for this one release" in str(caught.value.hint)
        assert caught.value.where == f"recipes/{recipe.name}.yaml: data.split"
    alone = with_gate(recipe, beat_champion=None)
    assert decide(alone, candidate, built).result == "promote", "the way on that the hint names"


def test_comparisons_on_the_same_test_rows_share_an_error_budget(built: Project) -> None:
    recipe = new_recipe(built, beat_champion={"metric": "accuracy"})
    released(recipe, built)
    numbers = []
    for again in (False, False, True, False):
        candidate = registry.get(f"{recipe.name}@3", built) if again else register_other_bytes(recipe, built)
        decision = decide(recipe, candidate, built)
        comparison = decision.verdict.comparison
        assert comparison is not None and comparison.budget == pytest.approx(0.05) and comparison.against == "1"
        assert comparison.confidence == pytest.approx(1 - 0.05 / (comparison.number * (comparison.number + 1)))
        numbers.append(comparison.number)
    assert numbers == [1, 2, 2, 3], "the same comparison again spends nothing"
    recorded = [e.facts["verdict"]["comparison"]["number"] for e in journal.entries(built, recipe.name) if e.event == "refused"]
    assert recorded[0] == 1 and recorded[-1] == 3
    failed = {"comparison": {"test_set": comparison.test_set, "number": 4, "rows": comparison.rows, "against": "1"}}
    journal.record(built, "rollout-failed", recipe.name, "7", failed)
    last = decide(recipe, register_other_bytes(recipe, built), built).verdict.comparison
    assert last is not None and last.number == 5, "a candidate whose roll-out failed has spent its share too"
