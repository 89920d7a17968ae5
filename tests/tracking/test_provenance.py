"""The identity of code: git commit and digest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.tracking import provenance
from headrace.tracking.provenance import Changes
from tests.paths import ROOT
from tests.projects import git


def test_the_code_digest_changes_with_a_file_of_either_package_and_not_with_compiled_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("headrace", "bentos"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    first = provenance.code_digest()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "headrace" / "tracking" / "provenance.py"))
    assert provenance.code_digest() == first, "wherever the code is"
    (tmp_path / "headrace" / "services" / "api" / "__pycache__").mkdir()
    (tmp_path / "headrace" / "services" / "api" / "__pycache__" / "app.cpython-311.pyc.140234").write_bytes(b"being compiled")
    assert provenance.code_digest() == first
    found = {first}
    for file in ("headrace/services/api/docs.html", "headrace/runtime/http.py"):
        with (tmp_path / file).open("a") as handle:
            handle.write("\n")
        found.add(provenance.code_digest())
    (tmp_path / "headrace" / "services" / "api" / "new.py").touch()
    assert len(found | {provenance.code_digest()}) == 4


def test_git_commit_is_dirty_when_code_or_the_recipe_is_not_in_it(project: Project, tmp_path: Path) -> None:
    commit, recipe = git(project.root, "rev-parse", "HEAD"), project.recipes / "tiny.yaml"

    def found() -> Changes:
        return provenance.changes(project, [recipe])

    assert found() == Changes(commit, (), ()) and found().git_commit == commit
    (project.root / "notes.txt").write_text("prose")
    (project.recipes / "another.yaml").write_text("name: another\n")
    assert found().git_commit == commit
    with recipe.open("a") as file:
        file.write("# edited\n")
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    (project.root / "headrace" / "models" / "added.py").touch()
    (project.root / "headrace" / "models" / "mlp.py").unlink()
    expected = Changes(commit, ("dvc.yaml", "headrace/models/added.py", "recipes/tiny.yaml"), ("headrace/models/mlp.py",))
    assert found() == expected and found().git_commit == f"{commit}-dirty"
    assert found().uncommitted == ["headrace/models/added.py", "recipes/tiny.yaml", "headrace/models/mlp.py"]


def test_a_recipe_that_git_does_not_know_or_ignores_is_not_committed(project: Project) -> None:
    recipe, ignored = project.recipes / "fresh.yaml", project.root / "private.py"
    recipe.write_text("name: fresh\n")
    ignored.touch()
    with (project.root / ".gitignore").open("a") as file:
        file.write("/private.py\n")
    assert provenance.changes(project, [recipe, ignored]).uncommitted == ["private.py", "recipes/fresh.yaml"]
    inner = Project(project.root / "recipes")  # a project in a folder of a repository
    assert provenance.changes(inner, [recipe]).uncommitted == ["fresh.yaml"]


def test_outside_of_git_all_of_the_code_is_kept(tmp_path: Path) -> None:
    bare = Project(tmp_path / "bare")
    (bare.root / "headrace").mkdir(parents=True)
    for name in ("headrace/code.py", "dvc.yaml", "mine.py", "notes.txt"):
        (bare.root / name).touch()
    found = provenance.changes(bare, [bare.root / "mine.py"])
    assert found == Changes("none", ("dvc.yaml", "headrace/code.py", "mine.py"), ())
    assert (found.git_commit, found.uncommitted) == ("none", [])
