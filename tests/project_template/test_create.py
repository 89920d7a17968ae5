"""`headrace init`: a project outside of the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.data.versions import open_repo
from headrace.errors import UsageError
from headrace.pipeline.installed_code import file_of
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.project_template.create import create_project
from headrace.project_template.files import package_name, template_files
from headrace.project_template.record import FILE
from tests.paths import ROOT
from tests.projects import git

TOP = {
    ".dvc", ".dvcignore", ".git", ".gitignore", ".headrace", FILE, "Makefile", "README.md", "data", "data.dvc", "dvc.yaml",
    "flows", "prefect.yaml", "pyproject.toml", "recipes", "tasks", "tests",
}  # fmt: skip


def test_a_project_has_the_top_level_of_a_clone_and_is_a_repository_without_changes(tmp_path: Path) -> None:
    reported: list[str] = []
    project = create_project(tmp_path / "My Shop", reported.append)
    assert reported == []
    assert {path.name for path in project.root.iterdir()} == TOP
    assert sorted(path.name for path in tmp_path.iterdir()) == ["My Shop"]
    assert not project.is_clone
    assert git(project.root, "status", "--porcelain") == ""
    assert git(project.root, "log", "--format=%s").startswith("headrace init, ")
    assert tomllib.loads((project.root / "pyproject.toml").read_text())["project"]["name"] == "my-shop"
    assert not [path for path, text in template_files("My Shop").items() if re.search("@[A-Z]+@", text)]


def test_flows_and_tasks_are_those_of_the_repository(tmp_path: Path) -> None:
    project = create_project(tmp_path / "shop", print)
    for folder in ("flows", "tasks"):
        for file in (ROOT / folder).glob("*.py"):
            assert (project.root / folder / file.name).read_bytes() == file.read_bytes()


def test_each_stage_depends_on_its_installed_code_and_dvc_reads_the_file(tmp_path: Path) -> None:
    project = create_project(tmp_path / "shop", print)
    content = yaml.safe_load((project.root / "dvc.yaml").read_text())
    theirs = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert list(content["stages"]) == ["installed_code", *theirs["stages"]]
    for stage in STAGES:
        ours, clone = content["stages"][stage]["do"], theirs["stages"][stage]["do"]
        assert ours["deps"].count(file_of(stage).as_posix()) == 1
        data = [dep for dep in clone["deps"] if not dep.startswith(("headrace/", "bentos/"))]
        assert [dep for dep in ours["deps"] if dep != file_of(stage).as_posix()] == data
        assert {key: value for key, value in ours.items() if key != "deps"} == {k: v for k, v in clone.items() if k != "deps"}
    with open_repo(project) as repo:
        assert sorted(Path(stage.addressing).name.rpartition(":")[2] for stage in repo.index.stages) == [
            "data.dvc",
            "installed_code",
        ]


def test_a_folder_with_other_files_keeps_them(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    project = create_project(tmp_path, print)
    assert {path.name for path in tmp_path.iterdir()} == TOP | {".venv", "notes.txt"}
    assert (project.root / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("taken", ["README.md", "flows", "data.dvc", FILE])
def test_nothing_is_written_over_what_exists(tmp_path: Path, taken: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / taken).write_text("mine")
    with pytest.raises(UsageError, match=f"already has {taken}; nothing was written"):
        create_project(tmp_path / "shop", print)
    assert [path.name for path in (tmp_path / "shop").iterdir()] == [taken]


def test_a_project_inside_of_a_repository_is_part_of_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    reported: list[str] = []
    project = create_project(tmp_path / "shop", reported.append)
    assert reported == [f"shop is in the git repository {tmp_path.resolve()}; commit its files there"]
    assert not (project.root / ".git").exists()
    with open_repo(project):
        pass


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(project: Project) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headrace.project_template.create.track", fail)
    with pytest.raises(OSError, match="No space"):
        create_project(tmp_path / "shop", print)
    assert list(tmp_path.iterdir()) == []


def test_a_command_outside_of_a_project_names_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(cli, ["status"]).exception
    assert isinstance(error, UsageError) and "headrace init NAME makes a project" in str(error.hint)


@pytest.mark.parametrize(("name", "expected"), [("My Shop_2", "my-shop-2"), ("Läden", "l-den"), ("…", "project")])
def test_the_name_in_pyproject_is_valid(name: str, expected: str) -> None:
    assert package_name(name) == expected
