"""What the journal gets at the end of a release, and what the next run reads there."""

from __future__ import annotations

import getpass

from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.release import journal, record, up_to_date
from headrace.settings import Settings
from tests.release.candidates import decide, events, finish, new_recipe, register, released


def test_a_release_is_recorded_with_its_evidence(built: Project) -> None:
    recipe = new_recipe(built)
    facts = finish(recipe, decide(recipe, register(recipe, built), built), built)
    assert (facts["version"], facts["bento"]) == ("1", "b:1")
    assert facts["metrics"]["accuracy"] > 0.1 and facts["training"]["epochs"] == 3
    assert facts["by"] == getpass.getuser()
    assert facts["data_md5"] == "aaa.dir" and facts["validation"].endswith("expectations")
    assert events(recipe, built) == [("released", "1")]
    assert record.last_final_release(recipe.name, built) == facts


def test_a_release_that_changes_nothing_is_recorded_once(built: Project) -> None:
    recipe = new_recipe(built)
    version = released(recipe, built)
    again = decide(recipe, version, built)
    assert again.result == "keep" and again.chosen.version == version.version
    finish(recipe, again, built)
    assert events(recipe, built) == [("released", "1")]


def test_after_a_failed_rollout_there_is_work_left(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    journal.record(built, "rollout-failed", recipe.name, "2", {})
    assert record.last_final_release(recipe.name, built) is None
    facts = record.current_release(recipe.name, built)
    assert facts is not None and facts["version"] == "1"


def test_a_release_stores_that_nothing_changed_since(built: Project) -> None:
    recipe = new_recipe(built)
    released(recipe, built)
    assert up_to_date.is_unchanged(load_recipe(recipe.name, built), built.using(Settings()))
