"""What old versions leave behind goes; what serves, may be rolled back to, waits or is named stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

import pytest
import yaml

from headrace.errors import UsageError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, prune
from headrace.release.prune import Removed
from headrace.serving.packaging import package
from headrace.settings import Settings
from headrace.tracking import registry, removal, runs
from headrace.tracking.registry import Version
from tests.projects import git
from tests.release.candidates import (
    LENIENT,
    SERVING,
    decide,
    finish,
    new_recipe,
    register,
    register_other_bytes,
    with_gate,
)


@pytest.fixture
def released(built: Project) -> tuple[Recipe, list[Version]]:
    """Three versions that served, of which the first has a bento."""
    recipe = with_gate(new_recipe(built), beat_champion=LENIENT)
    made = [register(recipe, built)]
    tag = package(made[0].folder, recipe.name, "1", made[0].identity, built).tag
    finish(recipe, decide(recipe, made[0], built), built, {**SERVING, "bento": tag})
    for _ in range(2):
        made.append(register_other_bytes(recipe, built))
        finish(recipe, decide(recipe, made[-1], built), built)
    return recipe, made


def pruned(project: Project, model: str, keep: int = 2, dry_run: bool = False) -> list[Removed]:
    found = prune.prune(project.using(Settings()), lambda line: None, keep, dry_run)
    return [one for one in found if one.kind in ("version", "bento") and model in one.name]


def numbers(recipe: Recipe, project: Project) -> list[str]:
    return [version.version for version in registry.versions(recipe.name, project)]


def test_the_oldest_version_goes_with_its_files_and_bento_and_a_dry_run_changes_nothing(
    built: Project, released: tuple[Recipe, list[Version]]
) -> None:
    recipe, (first, second, third) = released
    shown = pruned(built, recipe.name, dry_run=True)
    assert numbers(recipe, built) == ["3", "2", "1"]
    assert pruned(built, recipe.name) == shown
    assert [one.kind for one in shown] == ["bento", "version"] and all(one.bytes > 0 for one in shown)
    assert numbers(recipe, built) == ["3", "2"] and not first.folder.exists()
    assert not (built.bentoml_home / "bentos" / recipe.name).exists() or not any(
        (built.bentoml_home / "bentos" / recipe.name).glob("1-*")
    )
    assert runs.exists(third.run_id, built), "the run is that of the other versions too"
    with contextlib.closing(sqlite3.connect(built.mlflow_database)) as database:
        logged = {model_id for (model_id,) in database.execute("SELECT model_id FROM logged_models")}
    assert {version.folder.parent.name in logged for version in (second, third)} == {True}
    assert first.folder.parent.name not in logged
    assert registry.get(f"{recipe.name}@2", built).folder == second.folder
    assert pruned(built, recipe.name) == []
    with pytest.raises(UsageError, match="at least one version"):
        prune.prune(built, lambda line: None, keep=0)


def test_what_waits_for_approval_or_has_an_alias_stays(built: Project, released: tuple[Recipe, list[Version]]) -> None:
    recipe, (first, second, _) = released
    registry.set_alias(first, "reference", built)
    journal.record(built, "awaiting-approval", recipe.name, "2", {})
    assert pruned(built, recipe.name, keep=1) == []
    registry.drop_alias(recipe.name, "reference", built)
    assert [one.name for one in pruned(built, recipe.name, keep=1) if one.kind == "version"] == [first.name]
    assert numbers(recipe, built) == ["3", "2"] and second.folder.exists()


def test_a_killed_call_is_completed_by_the_next(
    built: Project, released: tuple[Recipe, list[Version]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, (first, *_) = released

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(removal, "_ignore_missing", killed)  # after the files, before the database
        with pytest.raises(KeyboardInterrupt):
            pruned(built, recipe.name)
    assert numbers(recipe, built) == ["3", "2", "1"]
    assert [one.name for one in pruned(built, recipe.name)] == [first.name]
    assert numbers(recipe, built) == ["3", "2"]


def test_dvcs_cache_keeps_what_commits_pointers_and_versions_name(built: Project) -> None:
    cache = built.root / ".dvc" / "cache" / "files" / "md5"
    prune.prune(built.using(Settings()), lambda line: None)  # what other tests left
    tree = str(yaml.safe_load((built.root / "data.dvc").read_text())["outs"][0].get("md5", ""))
    assert (cache / tree[:2] / tree[2:]).is_file(), "data.dvc names it"
    before = {path for path in cache.rglob("*") if path.is_file()}
    stray, committed, untracked = (cache / (digit * 2) / (digit * 30) for digit in "013")
    for path in (stray, committed, untracked):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"named by nothing")
    lock = built.root / "other" / "dvc.lock"  # of a commit whose other files this clone never had
    lock.parent.mkdir()
    lock.write_text(f"outs:\n- md5: {'1' * 32}\n- md5: {'2' * 32}.dir\n")
    git(built.root, "add", "other")
    git(built.root, "commit", "--quiet", "--message", "Another pipeline")
    shutil.rmtree(lock.parent)
    git(built.root, "commit", "--quiet", "--all", "--message", "It is gone")
    pointer = built.root / "mine" / "table.csv.dvc"
    pointer.parent.mkdir()
    pointer.write_text(f"outs:\n- md5: {'3' * 32}\n  path: table.csv\n")
    found = prune.prune(built.using(Settings()), lambda line: None)
    shutil.rmtree(pointer.parent)
    assert [one.bytes for one in found if one.kind == "DVC cache" and os.fspath(stray).endswith(one.name)] == [16]
    assert not stray.exists() and committed.exists() and untracked.exists()
    assert {path for path in before if not path.exists()} == set()
