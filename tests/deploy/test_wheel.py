"""The wheel, installed in an empty virtual environment: what `headrace init` writes there works without the clone.

The environment has the packages of the one that runs the tests, without its Headrace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import headrace
from headrace.tracking.database_templates import template_path
from tests.paths import ROOT
from tests.projects import git

OURS = ("headrace", "__editable__", "__pycache__", "pip-", "setuptools", "distutils-precedence")
"""Beginnings of names in site-packages that the empty environment does not get from the other one."""
RECIPE = """
name: churn
task: classification
data: {source: churn.csv, target: left, split: {test: 0.3, validation: 0.2, seed: 7}}
expect: []
model: {name: "gated:GatedMLP", width: 8}
train: {epochs: 2, batch_size: 32, learning_rate: 0.02}
serve: {replicas: 1}
"""


class Installed:
    """A project beside a virtual environment with the wheel."""

    def __init__(self, folder: Path) -> None:
        self.wheel = build_wheel(folder / "dist")
        self.environment = empty_environment(folder / "venv")
        self.run(folder, self.bin / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", self.wheel)
        self.folder = folder
        self.project = folder / "shop"
        self.printed = self.run(folder, "headrace", "init", "shop").stdout

    @property
    def bin(self) -> Path:
        return self.environment / "bin"

    @property
    def package(self) -> Path:
        """Where the wheel's package is."""
        (found,) = self.environment.glob("lib/python*/site-packages/headrace")
        return found

    def run(self, folder: Path, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command with the environment's programs; only it can be imported from, not the clone."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environment = {**kept, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


def build_wheel(folder: Path) -> Path:
    """Builds it from a copy of what git would have: a build writes into its folder."""
    copy = folder / "repository"
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
    for name in names:
        if (ROOT / name).is_file() and not name.startswith(("tests/", "benchmarks/", "docs/images/")):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('..')"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def empty_environment(folder: Path) -> Path:
    """Makes it with links to the installed packages, and with the migrated databases, which take a minute to make."""
    venv.create(folder, with_pip=True, symlinks=True)
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(pd.__file__).parent.parent.iterdir():
        if not entry.name.startswith(OURS) and entry.name != "pip":
            (packages / entry.name).symlink_to(entry)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    for package in ("prefect", "mlflow"):
        if (made := template_path(package)).exists():
            place = folder / made.relative_to(sys.prefix)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, place)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_one_package_and_all_files_of_the_served_code(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"headrace", f"headrace-{headrace.__version__}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]
    for folder in ("bentos", "flows", "tasks", "deploy/serving"):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        assert {f"{folder}/{file.relative_to(ROOT / folder)}" for file in files} <= {
            name.removeprefix("headrace/_bundled/code/").removeprefix("headrace/_bundled/repository/") for name in names
        }


def test_only_the_installed_package_is_imported(installed: Installed) -> None:
    where = "import headrace, importlib.util as u; print(headrace.__file__, *map(u.find_spec, ('bentos', 'flows', 'tasks')))"
    printed = installed.run(installed.folder, "python", "-c", where).stdout
    assert printed == f"{installed.package / '__init__.py'} None None None\n"


def test_outside_of_a_project_a_command_says_how_to_make_one(installed: Installed) -> None:
    done = installed.run(installed.folder, "headrace", "status", check=False)
    assert done.returncode == 2
    assert "no Headrace project" in done.stderr and "headrace init NAME makes a project" in done.stderr


def test_a_model_of_its_own_is_one_file_of_a_project(installed: Installed) -> None:
    """The model is the one that the project's README shows, as one file."""
    project = installed.project
    assert "is a project. Next:\n  cd shop\n" in installed.printed
    assert git(project, "status", "--porcelain") == ""
    code = (project / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    (project / "gated.py").write_text(code)
    (project / "recipes" / "churn.yaml").write_text(RECIPE)
    assert "gated:GatedMLP, target left" in installed.run(project, "headrace", "check", "churn").stdout
    printed = installed.run(project, "make", "test", "PYTEST_ARGS=-vv -k 'valid or deployments'").stdout
    assert "test_recipe_is_valid[churn] PASSED" in printed and "exist PASSED" in printed
    assert (project / "gated.py").read_text() == (ROOT / "docs" / "examples" / "gated.py").read_text()


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_all_tests_of_a_new_project_pass(installed: Installed) -> None:
    printed = installed.run(installed.project, "make", "test", "PYTEST_ARGS=-vv").stdout
    assert "test_a_table_becomes_a_model_that_predicts PASSED" in printed


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_a_release_serves_and_a_later_wheel_repeats_what_its_code_changes(
    installed: Installed, free_ports: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = installed.project
    for name, value in free_ports().items():
        monkeypatch.setenv(name, value)
    (project / "gated.py").write_text((ROOT / "docs" / "examples" / "gated.py").read_text())
    (project / "recipes" / "churn.yaml").write_text(RECIPE)
    table().to_csv(project / "churn.csv", index=False)
    try:
        assert "released churn@1 serves" in installed.run(project, "make", "run").stdout
        assert '"label": ' in installed.run(project, "headrace", "predict", "churn", "--sample").stdout
        assert "unchanged" in installed.run(project, "headrace", "run", "churn", "--json").stdout
        assert (
            "Stage 'train@churn' didn't change" in installed.run(project, "python", "-m", "dvc", "repro", "train@churn").stdout
        )

        edit(installed.package / "pipeline" / "export.py", "PARITY_TEST_ROWS = 1000", "PARITY_TEST_ROWS = 999")
        printed = installed.run(project, "python", "-m", "dvc", "repro", "export@churn").stdout
        assert "Stage 'train@churn' didn't change" in printed and "Running stage 'export@churn'" in printed

        edit(installed.package / "runtime" / "__init__.py", headrace.__version__, "99.0")
        edit(installed.package / "_bundled" / "repository" / "tasks" / "settings.py", "HOUR = ", "HOUR = 2 * ")
        edit(project / "Makefile", "make run", "make  run")
        assert "+HOUR = 2 * " in installed.run(project, "headrace", "upgrade").stdout
        installed.run(project, "headrace", "upgrade", "--apply")
        assert "HOUR = 2 * " in (project / "tasks" / "settings.py").read_text()
        assert "make  run" in (project / "Makefile").read_text()
        assert '"headrace==99.0"' in (project / "pyproject.toml").read_text()
    finally:
        installed.run(project, "headrace", "down")


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    spend, age = rng.normal(50, 9, 400).round(2), rng.integers(18, 80, 400)
    return pd.DataFrame({"age": age, "spend": spend, "left": np.where(spend + rng.normal(0, 2, 400) > 50, "yes", "no")})


def edit(file: Path, old: str, new: str) -> None:
    assert old in file.read_text(), file
    file.write_text(file.read_text().replace(old, new, 1))
