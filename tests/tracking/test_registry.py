"""MLflow's registry on SQLite: one version for one graph from one data version, aliases that move, errors that hint."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.errors import RegistryError, UsageError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.serving.replicas.ports import next_free
from headrace.tracking import artifact, registry, runs
from headrace.tracking.registry import Version
from tests.bento_projects import another
from tests.paths import ROOT

numbers = itertools.count()
IDENTITY = {"data_md5": "aaa.dir", "data_rows": "400", "git_commit": "c0ffee", "lock_sha256": "10c4", "validation": "4 of 4"}


def registered(recipe: Recipe, project: Project, data_md5: str = "aaa.dir") -> Version:
    return registry.register(recipe, project, {**IDENTITY, "data_md5": data_md5})


@pytest.fixture
def recipe(built: Project) -> Recipe:
    """A model of this test's own."""
    return another(built, f"model-{next(numbers)}")


def test_the_same_graph_from_the_same_data_gets_the_version_it_has(recipe: Recipe, built: Project) -> None:
    first, again = registered(recipe, built), registered(recipe, built)
    assert first == again
    assert (first.version, first.name) == ("1", f"{recipe.name}@1")


def test_the_same_graph_from_other_data_is_another_version(recipe: Recipe, built: Project) -> None:
    first, second = registered(recipe, built), registered(recipe, built, "bbb.dir")
    assert (first.version, second.version) == ("1", "2")
    assert first.run_id == second.run_id, "the weights are those of one run"
    assert registered(recipe, built) == first


def test_other_threads_may_read_environment_variables_meanwhile(recipe: Recipe, built: Project) -> None:
    """As that of a flow does which asks Prefect whether a person has cancelled the run."""
    ended = threading.Event()

    def read() -> None:
        for number in itertools.count():
            os.environ[f"SOME_VARIABLE_{number}"] = "x"
            os.environ.get(f"SOME_VARIABLE_{number}")
            del os.environ[f"SOME_VARIABLE_{number}"]
            if ended.is_set():
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert registered(recipe, built).version == "1"
    finally:
        ended.set()
        thread.join()


def test_another_graph_is_another_version(recipe: Recipe, built: Project) -> None:
    first = registered(recipe, built)
    contract = built.artifacts(recipe.name) / "export" / "contract.json"
    contract.write_text(contract.read_text().replace('"threads": 1', '"threads": 2'))
    assert registered(recipe, built).version == "2"
    assert first.identity["content_sha256"] != registered(recipe, built).identity["content_sha256"]


def test_the_served_files_are_those_that_were_exported(recipe: Recipe, built: Project) -> None:
    folder = registered(recipe, built).folder
    for name in ("model.onnx", "contract.json"):
        assert (folder / name).read_bytes() == (built.artifacts(recipe.name) / "export" / name).read_bytes()


def test_a_version_whose_files_were_changed_is_not_taken_for_the_export(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    graph = version.folder / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(RegistryError, match=rf"model\.onnx: model\.onnx of {version.name} changed") as caught:
        registered(recipe, built)
    assert caught.value.where == str(graph)
    assert f"delete {version.name} in the MLflow UI, then: headrace run {recipe.name}" in str(caught.value.hint)
    runs.client(built).set_model_version_tag(version.model, version.version, registry.CONTENT, "0" * 64)
    evidence = registry.evidence(registry.get(version.name, built))
    assert evidence["content_sha256"] == artifact.content_hash(version.folder), "of the files, whatever the tag says"
    assert evidence["files"]["model.onnx"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    assert registered(recipe, built).version == "2", "the export is registered again, with its own files"


def test_aliases_move_and_go(recipe: Recipe, built: Project) -> None:
    first, second = registered(recipe, built), registered(recipe, built, "bbb.dir")
    assert registry.aliased(recipe.name, registry.CHAMPION, built) is None
    registry.set_alias(first, registry.CHAMPION, built)
    registry.set_alias(second, registry.CHALLENGER, built)
    assert {v.version: v.aliases for v in registry.versions(recipe.name, built)} == {"2": ("challenger",), "1": ("champion",)}
    registry.set_alias(second, registry.CHAMPION, built)
    registry.drop_alias(recipe.name, registry.CHALLENGER, built)
    registry.drop_alias(recipe.name, registry.CHALLENGER, built)  # again: nothing to do
    assert registry.aliased(recipe.name, registry.CHAMPION, built) == "2"
    champion = registry.find_version(recipe.name, "2", built)
    assert champion is not None and champion.aliases == ("champion",)


def test_versions_are_found_by_number_alias_and_name(recipe: Recipe, built: Project) -> None:
    first, second = registered(recipe, built), registered(recipe, built, "bbb.dir")
    registry.set_alias(first, registry.CHAMPION, built)
    for reference, wanted in (("@2", second), ("@v2", second), ("@1", first), ("@champion", first), ("", first), ("@", first)):
        assert registry.get(recipe.name + reference, built).version == wanted.version, reference


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("{name}@9", "has no version '9'; known: 1, champion"), ("{name}@champoin", "did you mean 'champion'?"),
     ("{name}x", "did you mean '{name}'?"), ("it's", "no registered model \"it's\""), ("", "no registered model ''")],
)  # fmt: skip
def test_a_wrong_name_is_offered_the_near_miss(wanted: str, message: str, recipe: Recipe, built: Project) -> None:
    registry.set_alias(registered(recipe, built), registry.CHAMPION, built)
    with pytest.raises(UsageError) as caught:
        registry.get(wanted.format(name=recipe.name), built)
    assert message.format(name=recipe.name) in caught.value.message and caught.value.hint


def test_a_model_without_its_champion_yet_lists_what_there_is(recipe: Recipe, built: Project) -> None:
    registered(recipe, built)
    with pytest.raises(UsageError, match="no version 'champion'; known: 1"):
        registry.get(recipe.name, built)


def test_a_model_that_a_kill_left_without_a_version_says_so(built: Project) -> None:
    runs.client(built).create_registered_model("bare")
    with pytest.raises(UsageError, match="'bare' has no version yet"):
        registry.get("bare", built)


def test_identity_never_changes_while_the_gate_and_people_write_tags(recipe: Recipe, built: Project) -> None:
    before = registered(recipe, built)
    content = artifact.content_hash(built.artifacts(recipe.name) / "export")
    assert before.identity == IDENTITY | {"content_sha256": content, "run_id": before.run_id}
    registry.set_tags(before, {"gate": "passed", "approval": "approved"}, built)
    after = registry.get(before.name, built)
    assert after.identity == before.identity
    assert registry.tag(before, "approval", built) == "approved"
    assert registry.tag(before, "nothing", built) is None


def test_a_person_may_set_a_tag_in_mlflow_without_our_prefix(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    runs.client(built).set_model_version_tag(version.model, version.version, "approval", "approved")
    assert registry.tag(version, "approval", built) == "approved"


def test_the_run_has_curve_settings_and_evaluation(recipe: Recipe, built: Project) -> None:
    version, store = registered(recipe, built), runs.client(built)
    run = store.get_run(version.run_id)
    assert run.data.params["train.batch_size"] == "32" and run.data.params["model.hidden"] == "[16]"
    assert [m.step for m in store.get_metric_history(version.run_id, "val_loss")] == [1, 2, 3]
    assert 0 <= run.data.metrics["test_accuracy"] <= 1
    assert {f.path for f in store.list_artifacts(version.run_id, "evaluation")} >= {"evaluation/evaluation.json"}


# Files that are gone.


def test_files_that_are_gone_are_reported(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    registry.set_alias(version, registry.CHAMPION, built)
    shutil.rmtree(version.folder)
    with pytest.raises(RegistryError, match="are gone") as caught:
        registry.get(recipe.name, built)
    assert f"headrace run {version.model} --force" in str(caught.value.hint)
    with pytest.raises(RegistryError, match="are gone"):
        registry.find_version(recipe.name, "1", built)
    runs.client(built).delete_model_version(version.model, version.version)
    assert registry.find_version(recipe.name, "1", built) is None


def test_an_old_version_without_files_does_not_matter(recipe: Recipe, built: Project) -> None:
    old, new = registered(recipe, built), registered(recipe, built, "bbb.dir")
    registry.set_alias(new, registry.CHAMPION, built)
    shutil.rmtree(old.folder)
    assert registry.find_version(recipe.name, "2", built) is not None
    assert registry.get(recipe.name, built).version == "2"
    assert [v.version for v in registry.versions(recipe.name, built)] == ["2", "1"]


def test_a_version_whose_files_are_gone_is_built_again_as_a_new_one(recipe: Recipe, built: Project) -> None:
    shutil.rmtree(registered(recipe, built).folder)
    again = registered(recipe, built)
    assert again.version == "2" and (again.folder / "model.onnx").is_file()


def test_a_contract_comes_back_from_where_mlflow_keeps_it(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    content = artifact.content_hash(version.folder)
    (version.folder / "contract.json").unlink()
    assert artifact.content_hash(registry.get(version.name + "", built).folder) == content
    (version.folder / "contract.json").unlink()
    shutil.rmtree(version.folder / "extra_files")
    with pytest.raises(RegistryError, match="are gone"):
        registry.get(version.name, built)


# A database that does not take it. Each in a process of its own, for what MLflow prints itself.

CHILD = """
import sys
from pathlib import Path
import sqlalchemy
from headrace.tracking import artifact, registry
from headrace.errors import RegistryError
from headrace.project import Project

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute", retval=True)
def raise_gc_threshold(connection, cursor, statement, parameters, context, many):
    return statement.replace("busy_timeout = 20000", "busy_timeout = 500"), parameters  # how long MLflow waits for a lock

project = Project(Path(sys.argv[1]))
version = registry.get(sys.argv[2], project)
try:
    registry.set_alias(version, "challenger", project)
except RegistryError as error:
    print(error)
"""


def in_a_process(project: Project, reference: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(ROOT)
    command = [sys.executable, "-c", CHILD, str(project.root), reference]
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, cwd=project.root)


def test_a_locked_database_is_reported_with_a_hint_and_without_a_traceback(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    with contextlib.closing(sqlite3.connect(built.mlflow_database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        done = in_a_process(built, version.name)
        holder.execute("ROLLBACK")
    assert "database is locked" in done.stdout and "hint:" in done.stdout
    assert done.stderr == "" and done.returncode == 0
    registry.set_alias(version, registry.CHALLENGER, built)


def test_a_read_only_database_is_reported_with_a_hint_and_without_a_traceback(recipe: Recipe, built: Project) -> None:
    version = registered(recipe, built)
    uri = f"sqlite:///file:{built.mlflow_database}?mode=ro&uri=true"  # read-only for root too, whom file modes do not stop
    done = in_a_process(built, version.name, HEADRACE_TRACKING_URI=uri)
    assert "readonly database" in done.stdout and "hint: make it writable" in done.stdout
    assert done.stderr == "" and done.returncode == 0


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("file is not a database", "restore"),
        ("database disk image is malformed", "restore"),
        ("database or disk is full", "space"),
        ("unable to open database file", "folder that this user can write"),
    ],
)
def test_an_error_of_sqlite_is_reported_with_its_hint(message: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught, runs.registry_errors(Project(tmp_path)):
        raise sqlite3.OperationalError(message)
    assert hint in str(caught.value.hint)


def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.mlruns.mkdir()
    project.mlflow_database.write_bytes(b"this is not a database" * 100)
    with pytest.raises(RegistryError, match="file is not a database") as caught:
        registry.versions("tiny", project)
    assert caught.value.where == "mlruns/mlflow.db"


def test_an_experiment_deleted_in_mlflow_is_reported(recipe: Recipe, built: Project) -> None:
    store = runs.client(built)
    experiment = store.create_experiment(recipe.name)
    store.delete_experiment(experiment)
    with pytest.raises(RegistryError, match="MLflow refused") as caught:
        registered(recipe, built)
    assert caught.value.hint
    store.restore_experiment(experiment)
    assert registered(recipe, built).version == "1"


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    for error in (KeyError("x"), UsageError("x")):
        with pytest.raises(type(error)), runs.registry_errors(Project(tmp_path)):
            raise error


def test_runs_are_found_by_the_bytes_of_their_weights(recipe: Recipe, built: Project) -> None:
    weights = built.artifacts(recipe.name) / "train" / "model.pt"
    history: list[dict[str, float]] = [{"epoch": 1, "val_loss": 0.5}, {"epoch": 2, "val_loss": 0.25}]
    made = runs.run_of_weights(recipe, built, weights, history)  # DVC brought them: no run is known yet
    assert runs.run_of_weights(recipe, built, weights, []) == made
    points = runs.client(built).get_metric_history(made.id, "val_loss")
    assert [(p.step, p.value) for p in points] == [(1, 0.5), (2, 0.25)]
    weights.write_bytes(b"others")
    assert runs.run_of_weights(recipe, built, weights, history).id != made.id


def test_two_recipes_with_equal_weights_have_runs_of_their_own(recipe: Recipe, built: Project) -> None:
    weights: Any = built.artifacts(recipe.name) / "train" / "model.pt"
    copy = replace(runs.run_of_weights(another(built, f"{recipe.name[:20]}-copy"), built, weights, []))
    assert copy.id != runs.run_of_weights(recipe, built, weights, []).id


# MLflow elsewhere.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server that keeps artifacts itself."""
    port = next_free(31300)
    command = [
        str(Path(sys.executable).with_name("mlflow")),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes that no test needs
    process = subprocess.Popen(
        [*command, *stores], cwd=tmp_path, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/health").is_success:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


ELSEWHERE = """
import json, shutil, sys
from pathlib import Path
from headrace.tracking import artifact, registry
from headrace.recipe.recipe import load_recipe
from headrace.project import Project
project = Project(Path(sys.argv[1]))
recipe = load_recipe(sys.argv[2], project)
first = registry.register(recipe, project, {"data_md5": "aaa"})
again = registry.register(recipe, project, {"data_md5": "aaa"})
registry.set_alias(first, "champion", project)
shutil.rmtree(first.folder)
champion = registry.get(recipe.name, project)
same = artifact.content_hash(champion.folder) == artifact.content_hash(project.artifacts(recipe.name) / "export")
beside = [path.name for path in champion.folder.parent.iterdir()]
print(json.dumps([first.version, again.version, champion.version, same, beside == [champion.folder.name]]))
"""


def test_versions_on_a_server_are_downloaded_whole(server: str, recipe: Recipe, built: Project) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HEADRACE_TRACKING_URI": server}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, str(built.root), recipe.name], capture_output=True, text=True,
                          env=environment, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1", "1", "1", True, True], "and MLflow prints nothing there"
