"""What MLflow shows to a reviewer about a candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.evaluation.metrics import Evaluation, score_classification, score_regression
from headrace.project import Project
from headrace.release.description import LONGEST, describe, worse_parts
from headrace.tracking.runs import client
from tests.release.candidates import LENIENT, decide, new_recipe, register, register_other_bytes, released, with_gate


def classified(right: dict[str, int], rows: int = 200) -> Evaluation:
    """An evaluation of two classes and one column, with this many rows right for each value."""
    truth = np.tile([0, 1], rows * len(right) // 2)
    plan = np.repeat(list(right), rows)
    is_right = np.concatenate([np.arange(rows) < count for count in right.values()])
    predicted = np.where(is_right, truth, 1 - truth)
    return score_classification(truth, np.eye(2)[predicted], ["no", "yes"], {"plan": plan})


def test_only_parts_that_got_worse_by_more_than_chance_are_listed() -> None:
    before = classified({"basic": 180, "family": 180, "pro": 180})
    after = classified({"basic": 120, "family": 176, "pro": 195})
    (line,) = (one for one in worse_parts(after, before) if one.startswith("plan"))
    assert line == "plan = basic: accuracy 0.6, before 0.9 (200 rows)"
    assert worse_parts(after, after) == []


def test_a_larger_error_is_worse_and_a_new_value_is_not_compared() -> None:
    truth, plan = np.zeros(200), np.repeat(["a", "b"], 100)
    noise = np.random.default_rng(0).normal(0, 1, 200)
    before = score_regression(truth, noise, {"plan": plan})
    after = score_regression(truth, noise * np.where(plan == "a", 3, 1), {"plan": np.where(plan == "b", "new", plan)})
    (line,) = worse_parts(after, before)
    assert line.startswith("plan = a: mae 2.") and "before 0." in line


def test_a_first_candidate_is_described_without_a_champion(built: Project) -> None:
    recipe = new_recipe(built)
    version = register(recipe, built)
    describe(recipe, decide(recipe, version, built), built)
    text = client(built).get_model_version(recipe.name, version.version).description or ""
    assert text.startswith(f"**{version.name}** passed the gate: accuracy ")
    assert ">= 0.1: passed" in text
    assert "**Made from**" in text and f"runs/{version.run_id})" in text and "in production" not in text
    about = client(built).get_registered_model(recipe.name).description or ""
    assert about.startswith("Classification of `") and f"headrace history {recipe.name}" in about


def test_a_candidate_that_waits_is_described_beside_the_champion(built: Project) -> None:
    recipe = new_recipe(built)
    champion = released(recipe, built)
    file = built.recipes / f"{recipe.name}.yaml"
    text = file.read_text()
    file.write_text(text.replace("epochs: ", "epochs: 1"))
    candidate = register_other_bytes(recipe, built)
    file.write_text(text)
    manual = with_gate(recipe, approval="manual", beat_champion=LENIENT)
    describe(manual, decide(manual, candidate, built), built)
    said = client(built).get_model_version(recipe.name, candidate.version).description or ""
    assert f"| metric | this version | {champion.name}, in production | |" in said
    assert "against the champion's" in said, "the paired test in a sentence"
    assert f"headrace approve {candidate.name}" in said and f"headrace reject {candidate.name}" in said
    assert f"the same as {champion.name}" in said


def test_a_description_is_cut_at_the_length_that_mlflow_keeps(built: Project) -> None:
    recipe = new_recipe(built)
    version = register(recipe, built)
    decision = decide(recipe, version, built)
    verdict = decision.verdict.model_copy(update={"reasons": ["a long reason " * 40] * 20})
    describe(recipe, decision.model_copy(update={"verdict": verdict}), built)
    text = client(built).get_model_version(recipe.name, version.version).description or ""
    assert len(text) <= LONGEST and text.endswith("…")


def test_a_champion_whose_evaluation_is_gone_is_not_in_the_table(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    candidate = register_other_bytes(recipe, built)
    artifacts = Path(client(built).get_run(candidate.run_id).info.artifact_uri.removeprefix("file://"))
    (artifacts / "evaluation" / "evaluation.json").unlink()
    describe(recipe, decide(recipe, candidate, built), built)
    text = client(built).get_model_version(recipe.name, candidate.version).description or ""
    assert "**Gate**" in text and "| metric |" not in text
