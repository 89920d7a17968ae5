"""Searches that really train: what they find, what they leave, and what happens to trials that end early or fail."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from headrace.errors import DamagedFile, DiskFull, RecipeError, TrainingError
from headrace.files import read_json
from headrace.pipeline.stages import STAGES
from headrace.recipe.recipe import load_recipe
from headrace.recipe.search import value_in
from headrace.search import run
from headrace.search.apply import apply_values
from headrace.search.place import searches
from headrace.search.result import result_of
from headrace.search.study import Finished
from headrace.tracking.runs import client
from headrace.tracking.searches import experiment_name
from tests.projects import table
from tests.search.searching import SPACE, Searching, write_recipe

Make = Callable[..., Searching]


def folders(one: Searching) -> list[Path]:
    return [path for path in searches(one.recipe, one.project).iterdir() if path.is_dir()]


def test_a_search_finds_values_and_leaves_the_pipeline_alone(searching: Make) -> None:
    one = searching({"space": SPACE, "trials": 5, "pruner": "none", "workers": 2})
    project, recipe = one.project, load_recipe(one.recipe, one.project)
    artifacts = sorted(project.artifacts(one.recipe).rglob("*"))
    result = one.run()

    assert (result["trials"], result["counts"]) == (5, {"complete": 5, "pruned": 0, "failed": 0})
    values = [trial["value"] for trial in result["best"]]
    assert values == sorted(values, reverse=True) and result["winner"] == result["best"][0]
    assert result["expected"]["lower"] <= result["expected"]["value"] <= result["expected"]["upper"]
    assert set(result["importances"]) == set(SPACE)
    assert sum("trial" in line and "accuracy 0." in line for line in one.lines) == 5

    # the first trial is the recipe as it is: the stage `train` gives the same figures
    assert result["as_in_recipe"]["values"] == {name: value_in(recipe, name) for name in SPACE}
    (folder,) = folders(one)
    assert not list(folder.rglob("test*")) and sorted(project.artifacts(one.recipe).rglob("*")) == artifacts
    assert not (project.root / "dvc.lock").exists()
    STAGES["train"](recipe, project)
    summary = read_json(project.artifacts(one.recipe) / "train" / "summary.json")
    curve = np.genfromtxt(project.artifacts(one.recipe) / "train" / "curves.csv", delimiter=",", names=True)
    assert result["as_in_recipe"]["value"] == pytest.approx(curve["val_accuracy"][summary["best_epoch"] - 1])

    again = one.run()
    assert again == result and any("5 of 5 trials are done" in line for line in one.lines), "nothing is left to do"
    more = one.run(trials=6)
    assert more["trials"] == 6 and more["run_id"] == result["run_id"], "further trials of the same search"
    store = client(project)
    experiment = store.get_experiment_by_name(experiment_name(one.recipe))
    nested = store.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{result['run_id']}'")
    assert {run.info.run_name for run in nested} == {f"trial {number}" for number in range(6)}
    assert all(set(run.data.params) == set(SPACE) and run.info.status == "FINISHED" for run in nested)
    history = store.get_metric_history(nested[0].info.run_id, "val_accuracy_by_epoch")
    assert [point.step for point in history] == [1, 2, 3]
    parent = store.get_run(result["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["winner"] == str(more["winner"]["number"])
    pictures = {artifact.path for artifact in store.list_artifacts(result["run_id"])}
    assert pictures == {"history.png", "slices.png", "importances.png"}


def test_bad_trials_end_early_and_failing_ones_are_recorded(searching: Make) -> None:
    space = {"train.learning_rate": ["0.02", "1e-7", "1e30"], "train.weight_decay": "0..0.1"}
    one = searching({"space": space, "trials": 16, "sampler": "random"}, train={"optimizer": "sgd", "epochs": 6})
    result = one.run()
    states = {state: [t for t in one.open().study.finished() if t.state == state] for state in result["counts"]}
    assert result["trials"] == 16 and all(states.values()), result["counts"]
    assert all("the loss became" in str(trial.reason) and trial.values["train.learning_rate"] > 1 for trial in states["failed"])
    assert all(1 < trial.epochs < 6 for trial in states["pruned"])
    assert any(trial.values["train.learning_rate"] < 1e-6 for trial in states["pruned"])
    store = client(one.project)
    experiment = store.get_experiment_by_name(experiment_name(one.recipe)).experiment_id
    runs = store.search_runs([experiment], "tags.state = 'failed'")
    assert len(runs) == len(states["failed"]) and {run.info.status for run in runs} == {"FAILED"}
    assert not list(folders(one)[0].rglob("*.pt")), "checkpoints are gone"


def test_a_search_all_of_whose_trials_fail_ends_soon(searching: Make) -> None:
    one = searching({"space": {"train.learning_rate": "log 1e29..1e30"}, "trials": 50}, train={"optimizer": "sgd"})
    with pytest.raises(TrainingError, match="the first 5 trials all failed; the last one: the loss became"):
        one.run()


def test_a_killed_process_fails_its_trial_alone(searching: Make) -> None:
    one = searching({"space": SPACE, "trials": 2, "pruner": "none"}, train={"epochs": 40})
    search = one.open()
    found: list[Finished] = []

    def kill(number: int, trial: Callable[[], Finished]) -> Finished:
        if number == 0:
            import threading

            threading.Thread(target=kill_worker).start()
        return trial()

    def kill_worker() -> None:
        while not (workers := running_workers()):
            time.sleep(0.05)
        while not search.study.interrupted()[0].storage.get_trial(search.study.interrupted()[0]._trial_id).intermediate_values:
            time.sleep(0.05)
        workers[0].send_signal(signal.SIGKILL)

    run.Runner(search, one.project, found.append, kill).run()
    assert [trial.state for trial in found] == ["failed", "complete"]
    assert found[0].reason == "its process was killed by SIGKILL; the system may be out of memory"
    assert running_workers() == []


def running_workers() -> list[psutil.Process]:
    return [one for one in psutil.Process(os.getpid()).children() if "headrace.search.worker" in one.cmdline()]


def test_another_space_recipe_or_data_is_another_search(searching: Make) -> None:
    search: dict[str, Any] = {"space": {"train.learning_rate": ["0.01", "0.02"]}}
    one = searching(search)
    first = one.open()
    first.study.tell(first.study.ask(), "complete", 0.5)
    assert not any("changed" in line for line in one.lines)

    def changed() -> str:
        one.open()
        return next(line for line in one.lines if "changed" in line)

    write_recipe(one.project, one.recipe, search | {"space": {"train.learning_rate": ["0.01", "0.03"]}})
    assert changed().startswith("the space has changed since the search of ")
    write_recipe(one.project, one.recipe, search, train={"epochs": 2})
    assert "the values of other fields have changed" in changed()
    write_recipe(one.project, one.recipe, search)
    rows = one.project.artifacts(one.recipe) / "prepared" / "train.parquet"
    before = rows.read_bytes()
    table(200, seed=4).to_parquet(rows, index=False)
    assert changed().startswith("the data")
    assert len(folders(one)) == 4, "earlier searches are kept"

    rows.write_bytes(before)
    write_recipe(one.project, one.recipe, search, train={"learning_rate": 0.01})
    one.open()
    assert any("continues: 1 of 20" in line for line in one.lines), "the value of a searched field does not matter"
    one.open(restart=True)
    assert not any("continues" in line for line in one.lines)


def test_without_a_section_the_space_suits_the_model(searching: Make) -> None:
    one = searching(None)
    search = one.open()
    assert {name: str(entry) for name, entry in search.space.items()} == {
        "train.learning_rate": "log 0.002..0.2",
        "train.batch_size": "16, 32, 64",
        "train.weight_decay": "log 0.001..0.1",
        "model.dropout": "0..0.5",
        "model.hidden": "[8], [16], [32]",
    }
    assert any("a section `search` in the recipe replaces it" in line for line in one.lines)
    assert search.study.begin_with(search.recipe) == [], "the values of the recipe are in it"


@pytest.mark.parametrize("recipe", ["cora", "shakespeare-gpt", "solubility", "summaries", "topics", "emoji"])
def test_default_spaces_suit_all_families(recipe: str) -> None:
    from headrace.project import Project
    from headrace.recipe.search import SearchConfig, space_of
    from headrace.search.default_space import default_space
    from headrace.search.study import contains
    from tests.paths import ROOT

    found = load_recipe(recipe, Project(ROOT))
    space = space_of(SearchConfig(space=default_space(found)), found)
    assert len(space) >= 4
    assert all(contains(entry, value_in(found, name)) for name, entry in space.items())


def test_the_winner_is_written_and_the_rest_of_the_recipe_stays(searching: Make) -> None:
    one = searching({"space": SPACE})
    path = one.project.recipes / f"{one.recipe}.yaml"
    text = f"# why\n{path.read_text()}# the end\n"
    path.write_text(text)
    apply_values(one.recipe, {"train.learning_rate": 0.0123, "model.hidden": [4, 2]}, one.project)
    found = load_recipe(one.recipe, one.project)
    assert (found.train.learning_rate, getattr(found.model, "hidden", None)) == (0.0123, [4, 2])
    lines = path.read_text().splitlines()
    assert lines[0] == "# why" and lines[-1] == "# the end" and "  learning_rate: 0.0123" in lines
    before = path.read_text()
    with pytest.raises(RecipeError, match=r"train\.batch_size"):
        apply_values(one.recipe, {"train.batch_size": 0}, one.project)
    assert path.read_text() == before
    copy = apply_values(one.recipe, {"train.batch_size": 8}, one.project, f"{one.recipe}-copy")
    assert load_recipe(copy.stem, one.project).train.batch_size == 8 and path.read_text() == before


@pytest.mark.exhaustive
def test_the_loss_is_compared_where_the_gate_has_another_metric(searching: Make) -> None:
    one = searching({"space": SPACE, "trials": 2, "metric": "loss", "pruner": "none"})
    result = one.run()
    assert (result["metric"], result["better"]) == ("loss", "lower")
    assert result["best"][0]["value"] < result["best"][1]["value"] and result["expected"]["value"] > 0


def test_a_full_disk_is_reported_and_the_same_command_continues(searching: Make) -> None:
    one = searching({"space": SPACE, "trials": 2, "pruner": "none"})
    folder = one.project.state / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        search = one.open()
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(DiskFull, match="no space left") as caught:
            run.Runner(search, one.project, lambda trial: None).run()
        assert "free some space, then run the same command" in str(caught.value) and running_workers() == []
        filler.unlink()
        assert one.run()["trials"] == 2
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_damaged_storage_is_an_error_with_a_hint(searching: Make) -> None:
    one = searching({"space": SPACE, "trials": 2, "pruner": "none"})
    one.open().place.storage.write_bytes(b"no database" * 1000)
    with pytest.raises(DamagedFile, match=r"earlier trials cannot be read"):
        one.run()
    assert result_of(one.open(restart=True))["winner"] is None


def test_boosted_trees_are_searched_too(searching: Make) -> None:
    model = {"name": "lightgbm", "hidden": None, "rounds": 30}
    one = searching({"trials": 2, "pruner": "none"})
    path = one.project.recipes / f"{one.recipe}.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["model"] = {name: value for name, value in model.items() if value is not None}
    del fields["train"]
    path.write_text(yaml.safe_dump(fields | {"train": {"seed": 7}}))
    result = one.run()
    assert list(result["space"]) == ["model.learning_rate", "model.num_leaves", "model.subsample", "model.colsample_bytree"]
    assert result["counts"]["complete"] == 2 and result["as_in_recipe"]["number"] == 0
