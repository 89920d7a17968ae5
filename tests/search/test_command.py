"""The command `headrace search`: killed and interrupted it continues, and no trial is lost or counted twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from headrace.cli.main import cli
from headrace.errors import Busy, UsageError
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.search.place import search_lock, searches
from tests.projects import make_project
from tests.search.searching import SPACE, write_recipe

HEADRACE = Path(sys.executable).with_name("headrace")
TRIALS = 3


@pytest.fixture(scope="module")
def command_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("command") / "clone")
    write_recipe(project, "tiny", {"space": SPACE, "trials": TRIALS, "pruner": "none"}, train={"epochs": 12})
    return project


def start(project: Project, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [HEADRACE, "search", "tiny", *options],
        cwd=project.root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stop(process: subprocess.Popen[str], project: Project, trials: int, how: signal.Signals) -> str:
    """Stops a command within a trial, once this many are over."""
    folder = searches("tiny", project)
    while len(list(folder.glob("*/trials/*.npy"))) < trials or not list(folder.glob("*/trials/*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(how)
    return process.communicate(timeout=60)[1]


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_killed_search_continues_and_its_winner_is_applied(command_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project = command_project
    first = start(project)
    stop(first, project, 1, signal.SIGKILL)
    with search_lock("tiny", project):  # the system has freed the lock
        monkeypatch.chdir(project.root)
        done = CliRunner().invoke(cli, ["search", "tiny"])
        assert isinstance(done.exception, Busy) and "searches for tiny since" in str(done.exception)
    found = result(start(project, "--json", "--apply"))
    assert (found["trials"], found["counts"]["complete"]) == (TRIALS, TRIALS)
    recipe = load_recipe("tiny", project)
    assert recipe.train.learning_rate == found["winner"]["values"]["train.learning_rate"]
    assert found["written"] == "recipes/tiny.yaml"
    lock = (project.root / "dvc.lock").read_text()
    assert "prepare@tiny" in lock and "train@tiny" not in lock


@pytest.mark.exhaustive
def test_an_interrupted_search_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    projects = [make_project(tmp_path / name) for name in ("calm", "disturbed")]
    for project in projects:
        write_recipe(project, "tiny", {"space": SPACE, "trials": TRIALS, "pruner": "none"}, train={"epochs": 12})
    calm = result(start(projects[0], "--json"))
    said = stop(start(projects[1]), projects[1], 1, signal.SIGINT)
    assert "interrupted; the trials that are done are kept" in said and "to continue: headrace search tiny" in said
    stop(start(projects[1]), projects[1], 2, signal.SIGKILL)
    found = result(start(projects[1], "--json"))
    for name in ("best", "expected", "importances", "counts"):
        for one in (*calm["best"], *found["best"]):
            one.pop("seconds", None)
        assert found[name] == calm[name], name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timeout", "5"], "--timeout: expected a duration of at least a minute"),
        (["--apply", "--write", "other"], "--apply and --write exclude each other"),
        (["--write", "Other"], "'Other' is not a valid name of a recipe"),
        (["--write", "pictures"], "the recipe 'pictures' exists"),
    ],
)
def test_wrong_options_are_errors_before_anything_runs(
    command_project: Project, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(command_project.root)
    done = CliRunner().invoke(cli, ["search", "tiny", *options])
    assert isinstance(done.exception, UsageError) and message in str(done.exception)


def test_an_unknown_recipe_has_a_near_miss(command_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(command_project.root)
    done = CliRunner().invoke(cli, ["search", "tny"])
    assert "did you mean 'tiny'?" in str(done.exception)
