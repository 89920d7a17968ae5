"""The steps of a release that decide and remember, without servers: verdicts, approval, the journal, what stands."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from headrace.data.versions import data_version
from headrace.errors import AwaitsApproval, Busy, HeadraceError, ModelRefused, RolledBack
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release import journal, release, up_to_date
from headrace.release.lineage import trace
from headrace.release.release import Candidate
from headrace.settings import Settings
from headrace.tracking import provenance, registry
from headrace.tracking.registry import Version
from tests.bento_projects import another
from tests.conftest import git
from tests.paths import ROOT

numbers = itertools.count()
SERVING = {"bento": "b:1", "image": None, "image_digest": None, "replicas": 2, "threads": 1, "on": "processes"}
EASY = {"require": {"accuracy": ">= 0.1"}}


def a_recipe(built: Project, like: str = "tiny", **gate: Any) -> Recipe:
    return another(built, f"release-{next(numbers)}", like, gate={**EASY, **gate})


def with_gate(recipe: Recipe, **gate: Any) -> Recipe:
    return recipe.model_copy(update={"gate": recipe.gate.model_validate({**recipe.gate.model_dump(), **gate})})


def register(recipe: Recipe, project: Project, data_md5: str = "aaa.dir") -> Version:
    version = data_version(project, "tiny")
    return registry.register(recipe, project, {**release.identity_of(recipe, version, project), "data_md5": data_md5})


def other_graph(recipe: Recipe, project: Project) -> None:
    """The next candidate: the same answers, other bytes."""
    path = project.artifacts(recipe.name) / "export" / "contract.json"
    contract = json.loads(path.read_text())
    write_json(path, {**contract, "threads": contract["threads"] + 1})


def concluded(recipe: Recipe, candidate: Candidate, project: Project) -> dict[str, Any]:
    """Promotes and concludes as the flow does."""
    with release.release_lock(recipe.name, project):
        if candidate.chosen is not None:
            release.promote(candidate.chosen, project)
        return release.conclude(recipe, candidate, SERVING, project, Settings())


def released(recipe: Recipe, project: Project) -> Version:
    version = register(recipe, project)
    concluded(recipe, release.judge_candidate(recipe, version, project), project)
    return version


def events(recipe: Recipe, project: Project) -> list[tuple[str, str]]:
    return [(entry.event, entry.version) for entry in journal.entries(project, recipe.name)]


# The lock.

HOLDER = """
import sys, time
from pathlib import Path
from headrace.project import Project
from headrace.release.release import release_lock
with release_lock("tiny", Project(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_release_is_told_who_holds_the_first(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    told = pytest.raises(Busy, match=f"tiny is being released by process {holder.pid} since")
    with told, release.release_lock("tiny", Project(tmp_path)):
        pass
    with release.release_lock("other", Project(tmp_path)):
        pass  # another recipe is free


def test_a_killed_holder_loses_the_lock_at_once(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with release.release_lock("tiny", Project(tmp_path)):
        assert json.loads((tmp_path / ".headrace" / "locks" / "release-tiny.json").read_text())["pid"] == os.getpid()


def test_a_failed_release_gives_the_lock_back(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), release.release_lock("tiny", Project(tmp_path)):
            raise ZeroDivisionError


# Verdicts.


def test_the_first_candidate_that_passes_is_chosen(built: Project) -> None:
    recipe = a_recipe(built)
    version = register(recipe, built)
    candidate = release.judge_candidate(recipe, version, built)
    assert candidate.verdict.passed and candidate.chosen is not None and candidate.chosen.version == "1"
    assert registry.get(f"{recipe.name}@challenger", built).version == "1"
    assert registry.tag(version, "gate", built) == "passed"
    assert events(recipe, built) == []
    facts = concluded(recipe, candidate, built)
    assert (facts["version"], facts["bento"]) == ("1", "b:1")
    assert facts["metrics"]["accuracy"] > 0.1 and facts["training"]["epochs"] == 3
    assert facts["data_md5"] == "aaa.dir" and facts["validation"].endswith("expectations")
    assert registry.get(recipe.name, built).aliases == ("champion",)
    assert events(recipe, built) == [("released", "1")]
    assert release.standing(recipe.name, built) == facts


def test_a_release_that_changes_nothing_is_written_once(built: Project) -> None:
    recipe = a_recipe(built)
    version = released(recipe, built)
    again = release.judge_candidate(recipe, version, built)
    assert again.chosen is not None and again.chosen.version == version.version
    concluded(recipe, again, built)
    assert events(recipe, built) == [("released", "1")]


def test_a_refused_candidate_is_written_once_and_nothing_serves(built: Project) -> None:
    recipe = a_recipe(built, require={"accuracy": "> 1"})
    version = register(recipe, built)
    for _ in range(2):
        candidate = release.judge_candidate(recipe, version, built)
        assert candidate.chosen is None and not candidate.verdict.passed
        with pytest.raises(ModelRefused, match="nothing serves yet"):
            concluded(recipe, candidate, built)
    assert events(recipe, built) == [("refused", "1")]
    assert registry.tag(version, "gate", built) == "refused"
    assert release.outcome(recipe.name, built) is None
    with pytest.raises(ModelRefused, match="the gate refused"):
        release.standing(recipe.name, built)
    assert registry.champion(recipe.name, built) is None


def test_a_refused_challenger_leaves_the_champion_serving(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    other_graph(recipe, built)
    stricter = with_gate(recipe, require={"accuracy": "> 1"})
    candidate = release.judge_candidate(stricter, register(recipe, built), built)
    assert candidate.chosen is not None and candidate.chosen.version == "1"
    with pytest.raises(ModelRefused, match=f"{recipe.name}@1 goes on serving") as caught:
        concluded(stricter, candidate, built)
    assert "accuracy" in caught.value.message and f"recipes/{recipe.name}.yaml" in str(caught.value.hint)
    assert events(recipe, built) == [("released", "1"), ("refused", "2")]
    facts = release.outcome(recipe.name, built)
    assert facts is not None and facts["version"] == "1"


def test_equal_answers_do_not_beat_the_champion(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    other_graph(recipe, built)
    candidate = release.judge_candidate(recipe, register(recipe, built), built)
    assert not candidate.verdict.passed and not candidate.verdict.same_model
    accepting = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.05})
    assert release.judge_candidate(accepting, candidate.version, built).verdict.passed


def test_the_champions_own_bytes_from_other_data_are_no_news(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    twin = register(recipe, built, "bbb.dir")
    candidate = release.judge_candidate(recipe, twin, built)
    assert candidate.verdict.same_model and candidate.verdict.passed
    assert candidate.chosen is not None and candidate.chosen.version == "1"
    assert concluded(recipe, candidate, built)["version"] == "1"
    assert events(recipe, built) == [("released", "1")]
    assert registry.get(recipe.name, built).version == "1"


def test_a_person_approves_first(built: Project) -> None:
    recipe = a_recipe(built, approval="person")
    version = register(recipe, built)
    for _ in range(2):
        waiting = release.judge_candidate(recipe, version, built)
        assert waiting.awaits_approval and waiting.chosen is None
        with pytest.raises(AwaitsApproval, match="waits for a person; nothing serves yet") as caught:
            concluded(recipe, waiting, built)
    assert f"headrace approve {version.name} && headrace run {recipe.name}" in str(caught.value.hint)
    assert release.standing(recipe.name, built) is None
    assert release.approve(version.name, built, "ada").version == "1"
    candidate = release.judge_candidate(recipe, version, built)
    assert not candidate.awaits_approval and candidate.chosen is not None
    concluded(recipe, candidate, built)
    assert events(recipe, built) == [("awaiting-approval", "1"), ("approved", "1"), ("released", "1")]
    assert registry.tag(version, "approved_by", built) == "ada"
    assert not release.judge_candidate(recipe, version, built).awaits_approval, "a champion is not asked about again"


def test_approval_does_not_overrule_the_gate(built: Project) -> None:
    recipe = a_recipe(built, approval="person", require={"accuracy": "> 1"})
    version = register(recipe, built)
    release.approve(version.name, built, "ada")
    assert release.judge_candidate(recipe, version, built).chosen is None


def test_a_failed_rollout_is_not_the_last_word(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    journal.record(built, "rollout-failed", recipe.name, "2", {})
    assert release.standing(recipe.name, built) is None
    facts = release.outcome(recipe.name, built)
    assert facts is not None and facts["version"] == "1"


def test_a_version_that_was_taken_back_is_chosen_again_only_by_force(built: Project) -> None:
    recipe = a_recipe(built)
    first = released(recipe, built)
    other_graph(recipe, built)
    lenient = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.05})
    second = register(lenient, built)
    concluded(lenient, release.judge_candidate(lenient, second, built), built)
    back = {**SERVING, "rolled_back": {"from": "2", "why": "slow", "by": "ada"}}
    journal.record(built, "rolled-back", recipe.name, "1", back)
    registry.set_alias(first, registry.CHAMPION, built)
    assert release.standing(recipe.name, built) is None, "a run takes every step, and says why it changes nothing"

    candidate = release.judge_candidate(lenient, second, built)
    assert candidate.chosen is not None and candidate.chosen.version == "1"
    with pytest.raises(
        RolledBack, match=rf"{recipe.name}@2 was taken back at .* \(by ada: slow\).*{recipe.name}@1 goes on serving"
    ):
        concluded(lenient, candidate, built)
    assert events(recipe, built) == [("released", "1"), ("released", "2"), ("rolled-back", "1")]

    concluded(lenient, release.judge_candidate(lenient, second, built, force=True), built)
    assert events(recipe, built)[-1] == ("released", "2")
    assert registry.get(recipe.name, built).version == "2"


def test_a_release_remembers_that_nothing_changed(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    assert up_to_date.is_unchanged(load_recipe(recipe.name, built), built, Settings())


# A champion of another shape.


def test_a_champion_of_other_columns_is_told(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    other_graph(recipe, built)
    test = built.artifacts(recipe.name) / "prepared" / "test.parquet"
    pd.read_parquet(test).rename(columns={"colour": "hue"}).to_parquet(test)
    with pytest.raises(HeadraceError, match=f"the champion {recipe.name}@1 cannot answer") as caught:
        release.judge_candidate(recipe, register(recipe, built), built)
    assert "gate.beat_champion" in str(caught.value.hint)


def test_a_champion_of_images_of_another_size_is_told(built: Project) -> None:
    recipe = a_recipe(built, "pictures", beat_champion={"metric": "accuracy"})
    released(recipe, built)
    other_graph(recipe, built)
    wide = recipe.model_copy(update={"data": recipe.data.model_copy(update={"image": (2, 8)})})
    with pytest.raises(HeadraceError, match="cannot answer for these rows"):
        release.judge_candidate(wide, register(recipe, built), built)


def test_a_champion_with_its_classes_in_another_order_is_compared_class_by_class(built: Project) -> None:
    recipe = a_recipe(built)
    released(recipe, built)
    artifacts = built.artifacts(recipe.name)
    path = artifacts / "export" / "contract.json"
    contract = json.loads(path.read_text())
    write_json(path, {**contract, "labels": contract["labels"][::-1]})
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        y, outputs = saved["y_true"], saved["outputs"]
    np.savez(artifacts / "evaluation" / "predictions.npz", y_true=1 - y, outputs=outputs[:, ::-1])
    lenient = with_gate(recipe, beat_champion={"metric": "accuracy", "margin": -0.01})
    assert release.judge_candidate(lenient, register(recipe, built), built).verdict.passed, (
        "the same answers under other indices"
    )


# Where it came from.


def test_git_commit_says_when_code_differs_from_it(project: Project, tmp_path: Path) -> None:
    commit = git(project.root, "rev-parse", "HEAD")
    assert provenance.git_commit(project) == commit
    (project.root / "notes.txt").write_text("prose")
    assert provenance.git_commit(project) == commit
    with (project.recipes / "tiny.yaml").open("a") as file:
        file.write("# edited\n")
    assert provenance.git_commit(project) == f"{commit}-dirty"
    (tmp_path / "bare").mkdir()
    assert provenance.git_commit(Project(tmp_path / "bare")) == "none"


def test_trace_leads_from_a_responses_id_to_run_data_and_commit(built: Project) -> None:
    recipe = a_recipe(built)
    version = released(recipe, built)
    found = trace(f"{version.name}:7f3c9a", built, Settings())
    links = {link["link"]: link["id"] for link in found["chain"]}
    assert links["run"] == version.run_id
    assert links["data"] == "aaa.dir"
    assert links["bento"] == "b:1" and "image" not in links
    assert links["git commit"].removesuffix("-dirty") == git(built.root, "rev-parse", "HEAD")
    assert links["served files"] == f"sha256 {registry.content_hash(version.folder)}"
    assert found["aliases"] == ["champion"] and found["released_at"]
    assert trace(recipe.name, built, Settings())["version"] == "1"
