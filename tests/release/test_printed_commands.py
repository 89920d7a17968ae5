"""No command that Headrace prints destroys anything: those of `trace` are run, and those of all messages are read."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.data.batches import add_batch
from headrace.data.versions import data_version
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.release.lineage import trace_version
from headrace.serving.packaging import package
from headrace.settings import Settings
from headrace.tracking import registry
from tests.paths import ROOT
from tests.projects import git, table
from tests.release.candidates import SERVING, decide, finish

DESTRUCTIVE = re.compile(
    r"git (checkout|reset|clean|stash|restore|switch|rebase)|dvc (checkout|gc|remove|destroy|pull [^;,]*--force)|"
    r"\brm -|mlflow gc"
)


def state_of(project: Project) -> dict[str, str]:
    """What no printed command may change: data, recipes, pointers, and git's state."""
    root = project.root
    kept = [root / "data.dvc", root / "dvc.yaml", *(p for p in (*project.data.rglob("*"), *project.recipes.rglob("*")))]
    found = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept if path.is_file()}
    for command in (("rev-parse", "HEAD"), ("symbolic-ref", "HEAD"), ("status", "--porcelain"), ("stash", "list"), ("diff",)):
        found[" ".join(command)] = git(root, *command)
    return found


def commands_of(version: str, project: Project) -> list[str]:
    links = trace_version(version, project.using(Settings()))["chain"]
    found = dict.fromkeys(link["get_it"] for link in links if link["get_it"])
    return [line for line in found if not line.startswith(("http", "requirements.lock is"))]


def test_the_commands_of_a_trace_leave_data_recipes_and_git_as_they_are(
    built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # where `headrace` is
    project = Project(Path(shutil.copytree(built.root, tmp_path / "copy")))
    with (project.recipes / "tiny.yaml").open("a") as file:
        file.write("# not committed\n")
    recipe = load_recipe("tiny", project)
    version = registry.register_trained(recipe, data_version(project, "tiny"), project)
    assert version.identity["uncommitted"] == "recipes/tiny.yaml"
    bento = package(version.folder, "tiny", version.version, version.identity, project)
    finish(recipe, decide(recipe, version, project), project, {**SERVING, "bento": bento.tag})
    table(60, seed=2).to_csv(project.root / "more.csv", index=False)
    add_batch(recipe, project.root / "more.csv", project, lambda line: None)

    commands = commands_of(version.name, project)
    assert any("--extract" in command for command in commands) and any("bentoml get" in command for command in commands)
    before = state_of(project)
    environment = {**os.environ, "BROWSER": "true"}
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=project.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert state_of(project) == before, command
    extracted = Project(project.state / "extracted" / "tiny-1")
    assert data_version(extracted, "tiny").md5 == version.identity["data_md5"]
    assert (extracted.recipes / "tiny.yaml").read_text().endswith("# not committed\n")


def test_no_message_names_a_command_that_destroys_files() -> None:
    found = []
    for folder in ("headrace", "flows", "tasks", "bentos"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and DESTRUCTIVE.search(node.value):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value[:80]}")
    assert found == []


def test_no_command_of_messages_and_docs_has_a_token_or_password_in_its_arguments() -> None:
    """Every user of a machine can read the arguments of a running command; `echo` is part of the shell."""
    argument = re.compile(
        r"""(-H|--header)[ =]["'][^"']*(authorization|api-key)|(-u|--user)[ =]\S+:|Bearer [^"]*["'] +http""", re.I
    )
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "headrace").rglob("*.html"),
        *(ROOT / "headrace").rglob("*.py"),
    ]
    found = [f"{path}: {line.strip()}" for path in files for line in path.read_text().splitlines() if argument.search(line)]
    assert found == []
