"""The identity of code: git commit and digest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.tracking import provenance
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


def test_git_commit_is_dirty_when_code_or_recipes_differ_from_it(project: Project, tmp_path: Path) -> None:
    commit = git(project.root, "rev-parse", "HEAD")
    assert provenance.git_commit(project) == commit
    (project.root / "notes.txt").write_text("prose")
    assert provenance.git_commit(project) == commit
    with (project.recipes / "tiny.yaml").open("a") as file:
        file.write("# edited\n")
    assert provenance.git_commit(project) == f"{commit}-dirty"
    (tmp_path / "bare").mkdir()
    assert provenance.git_commit(Project(tmp_path / "bare")) == "none"
