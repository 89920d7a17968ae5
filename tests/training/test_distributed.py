"""Several processes train the same weights as one; what happens if one of them dies, fails or is stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.data.ingest import ingest
from headrace.errors import RecipeError, SettingsError
from headrace.files import read_json
from headrace.pipeline.prepare import prepare
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.settings import Settings
from headrace.training.single_process import local_rows
from tests.bento_projects import another, make_recipe
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.projects import make_project
from tests.training.distributed_runs import run, shared
from tests.training.toys import largest_difference

TOLERANCE = 1e-5
numbers = itertools.count()


# --- the same weights -------------------------------------------------------------------------------------------------

EVERYTHING = {
    "averaging": {"decay": 0.9},
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.3,
    "l1": 1e-3,
    "class_weights": "balanced",
}
SAME: dict[str, dict[str, Any]] = {
    "a table": {"model": "table"},
    "a table, everything": {"model": "table", "train": {"optimizer": "sgd", "learning_rate": 0.1, **EVERYTHING}},
    "stopped early": {
        "model": "table",
        "train": {"epochs": 12, "learning_rate": 0.1, "early_stopping": {"patience": 1}, "label_smoothing": 0.1},
    },
    "augmented images": {"model": "images", "train": {"augment": {"shift": 0.2, "rotate": 20}, "optimizer": "rmsprop"}},
    "texts": {"model": "attention"},
    "texts, recurrent": {"model": "recurrent"},
    "texts, an adapted encoder": {"model": "lora"},
    "tokens of tied weights": {"model": "gpt", "train": {"max_grad_norm": 1.0}},
}
STRATEGIES = ("ddp", "fsdp")


def job(strategy: str, described: dict[str, Any], size: int = 2) -> dict[str, Any]:
    train = {**described.get("train", {}), "processes": size, "strategy": strategy}
    return {**described, "strategy": strategy, "train": train}


DROPPED = {"model": "table", "dropout": 0.5, "train": {"averaging": {"decay": 0.9}}}
"""Dropout draws in each process; a resumed run draws what a stopped one would have drawn."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What two processes made: of everything in `SAME` by both strategies; of dropout as a whole, once more, stopped in its
    second epoch and resumed."""
    named = {(strategy, name): job(strategy, described) for strategy in STRATEGIES for name, described in SAME.items()}
    for strategy in STRATEGIES:
        dropped = job(strategy, DROPPED)
        named[strategy, "whole"], named[strategy, "again"] = dropped, dropped
        named[strategy, "stopped"] = {**dropped, "place": f"stopped-{strategy}", "die_in": [2, 3]}
        named[strategy, "resumed"] = {**dropped, "place": f"stopped-{strategy}"}
    results = iter(shared(tmp_path_factory.mktemp("shared"), *named.values()))
    return {key: next(results) for key, described in named.items() if "die_in" not in described}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SAME)
def test_two_processes_make_the_weights_of_one(name: str, strategy: str, made: Any, tmp_path: Path) -> None:
    """37 rows in batches of 8: the last batch has 5, which two processes cannot share evenly."""
    wanted, progress = run({"train": {}, **SAME[name]}, tmp_path)
    found = made[strategy, name]
    assert found["weights"].keys() == wanted.keys()
    assert largest_difference(found["weights"], wanted) < TOLERANCE
    assert len(found["history"]) == len(progress.history)
    for row, other in zip(found["history"], progress.history, strict=True):
        assert row == pytest.approx(other, abs=TOLERANCE)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_give_the_same_again_and_when_resumed(strategy: str, made: Any) -> None:
    whole, again, resumed = (made[strategy, name] for name in ("whole", "again", "resumed"))
    assert largest_difference(whole["weights"], again["weights"]) == 0
    assert largest_difference(whole["weights"], resumed["weights"]) == 0
    assert whole["history"] == again["history"] == resumed["history"]


@pytest.mark.exhaustive
def test_three_processes_have_rows_for_two_of_them_in_the_last_batch(tmp_path: Path) -> None:
    """37 rows in batches of 7 leave 2 at the end; one process resumes what three left."""
    described = {"model": "table", "train": {"batch_size": 7, "epochs": 2}}
    stopped = {"place": "left", "die_in": [2, 2]}
    wanted, _ = run(described, tmp_path / "one")
    (found,) = shared(tmp_path, job("fsdp", described, 3), {**job("fsdp", described, 3), **stopped}, size=3)
    resumed, _ = run(described, tmp_path / "left")
    assert largest_difference(found["weights"], wanted) < TOLERANCE
    assert largest_difference(resumed, wanted) < TOLERANCE


def test_rows_are_distributed_once_each_in_order() -> None:
    for of, size in itertools.product((1, 2, 5, 8, 9), (1, 2, 3, 8)):
        distributed = [local_rows(rank, size, of) for rank in range(size)]
        assert [row for part in distributed for row in range(of)[part]] == list(range(of))
        taken = [len(range(of)[part]) for part in distributed]
        assert max(taken) - min(taken) <= 1 and taken[0] == max(taken)


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `tiny` is ready to be trained."""
    project = make_project(tmp_path_factory.mktemp("prepared") / "clone")
    recipe = load_recipe("tiny", project)
    ingest(recipe, project, lambda line: None)
    prepare(recipe, project)
    return project


def untrained(prepared: Project, **train: Any) -> Recipe:
    return another(prepared, f"together-{next(numbers)}", train={"processes": 2, "device": "cpu", **train})


@pytest.fixture
def stage(prepared: Project, tmp_path: Path) -> Iterator[Callable[[Recipe], subprocess.Popen[str]]]:
    """Starts the `train` stage of a recipe."""
    started: list[subprocess.Popen[str]] = []

    def start(recipe: Recipe) -> subprocess.Popen[str]:
        environment = {**os.environ, "HEADRACE_ROOT": str(prepared.root), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "headrace.pipeline.stages", "train", recipe.name]
        environment["HEADRACE_STAGE_ERROR"] = str(tmp_path / f"{recipe.name}.json")
        made = subprocess.Popen(command, cwd=prepared.root, env=environment, stderr=subprocess.PIPE, text=True)
        started.append(made)
        return made

    yield start
    for process in started:
        process.kill()
        process.communicate()


def workers(of: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(of.pid).children() if "headrace.training.worker" in child.cmdline()]


def wait_for(what: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def in_the_middle(recipe: Recipe, prepared: Project) -> bool:
    """Returns whether an epoch is over, and another one running."""
    return (prepared.state / "checkpoints" / f"{recipe.name}.pt").exists()


def test_a_killed_process_is_started_again_and_the_weights_are_those_of_a_run_never_killed(
    prepared: Project, stage: Callable[[Recipe], subprocess.Popen[str]], tmp_path: Path
) -> None:
    never, recipe = (untrained(prepared, epochs=12, batch_size=4) for _ in range(2))
    whole, cut = stage(never), stage(recipe)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(cut.stderr or []))
    reader.start()
    wait_for(lambda: in_the_middle(recipe, prepared))
    first, second = sorted(workers(cut), key=lambda process: process.pid)
    first.suspend()  # so that the agent, which ends it with SIGTERM, sees the death earlier than it
    second.kill()
    wait_for(lambda: not second.is_running() or second.status() == psutil.STATUS_ZOMBIE)
    time.sleep(0.5)
    first.resume()
    ended = cut.wait(300)
    reader.join()
    assert ended == 0, (
        said,
        *map(Path.read_text, tmp_path.glob("*.json")),
        *map(Path.read_text, prepared.state.rglob("*.log")),
    )
    assert whole.wait(300) == 0, whole.stderr and whole.stderr.read()
    (line,) = (line for line in said if "SIGKILL" in line)
    assert "killed by SIGKILL: all processes resume from the last checkpoint" in line
    assert not any("Traceback" in line for line in said)
    files = [
        [(prepared.artifacts(r.name) / "train" / n).read_bytes() for n in ("model.pt", "curves.csv")] for r in (never, recipe)
    ]
    assert files[0] == files[1]
    summary = read_json(prepared.artifacts(recipe.name) / "train" / "summary.json")
    assert (summary["processes"], summary["strategy"], summary["epochs"]) == (2, "ddp", 12)
    assert not (prepared.state / "checkpoints" / f"{recipe.name}.pt").exists()


@pytest.mark.exhaustive
def test_an_error_is_reported_once_as_with_one_process(
    prepared: Project, stage: Callable[[Recipe], subprocess.Popen[str]], tmp_path: Path
) -> None:
    recipe = untrained(prepared, learning_rate=1e30, epochs=3, strategy="fsdp")
    failed = stage(recipe)
    _, said = failed.communicate(timeout=300)
    assert failed.returncode == 1
    left = json.loads((tmp_path / f"{recipe.name}.json").read_text())
    assert left["error"] == "TrainingError" and "the loss became" in left["message"]
    assert "lower train.learning_rate" in left["hint"]
    assert "Traceback" not in said and "resume from the last checkpoint" not in said


@pytest.mark.parametrize("how", [exhaustive(signal.SIGINT), signal.SIGKILL])
def test_a_stopped_training_leaves_no_process(
    how: signal.Signals, prepared: Project, stage: Callable[[Recipe], subprocess.Popen[str]], tmp_path: Path
) -> None:
    recipe = untrained(prepared, epochs=100_000)
    stopped = stage(recipe)
    children = wait_for(lambda: len(workers(stopped)) == 2 and workers(stopped))
    wait_for(lambda: in_the_middle(recipe, prepared))
    stopped.send_signal(how)
    assert stopped.wait(60) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children), 60)
    if how == signal.SIGINT:
        assert json.loads((tmp_path / f"{recipe.name}.json").read_text())["error"] == "Interrupted"


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"processes": 9, "batch_size": 8}, "processes: 9 cannot share batches of 8 rows"),
        ({"processes": 2, "compile": "on"}, "compile: supports one process only"),
        ({"processes": 2, "strategy": "fsdp", "optimizer": "muon"}, "strategy: muon needs whole matrices"),
    ],
)
def test_a_recipe_says_which_field_keeps_processes_from_sharing(train: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(train=train)


def test_a_graph_is_not_shared_out() -> None:
    with pytest.raises(RecipeError, match=r"train\.processes: each step needs the whole graph"):
        graph = {"node": "id", "edges": "edges.txt"}
        make_recipe("node-classification", {"name": "gcn"}, {"processes": 2}, graph=graph)


def test_machines_divide_the_processes_and_need_an_address() -> None:
    from headrace.training.launch import processes_here

    recipe = make_recipe(train={"processes": 4})
    assert processes_here(recipe, Settings(train_nodes=2, train_rendezvous="127.0.0.1:29400")) == 2
    with pytest.raises(RecipeError, match="4 cannot be divided among 3 machines"):
        processes_here(recipe, Settings(train_nodes=3, train_rendezvous="127.0.0.1:29400"))
    with pytest.raises(SettingsError, match="train_rendezvous"):
        processes_here(recipe, Settings(train_nodes=2))


def test_settings_do_not_change_what_a_checkpoint_fits(prepared: Project) -> None:
    from headrace.training.results import fingerprint_of

    one, several = untrained(prepared, processes=1), untrained(prepared, processes=2, strategy="fsdp")
    rows = prepared.artifacts("tiny") / "prepared"
    assert fingerprint_of(one, rows, prepared.root) == fingerprint_of(several, rows, prepared.root)
