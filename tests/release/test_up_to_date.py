"""Whether anything changed, by files alone: never wrongly `unchanged`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release import up_to_date
from headrace.settings import Settings


@pytest.fixture
def released(project: Project) -> tuple[Recipe, Project]:
    """A project with data and artifacts, whose release is remembered."""
    for path in (project.raw_data("tiny") / "0000-first.parquet", project.artifacts("tiny") / "export" / "model.onnx"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"made")
    recipe = load_recipe("tiny", project)
    up_to_date.remember(recipe, project.using(Settings()), time.time_ns())
    return recipe, project


def test_nothing_touched_is_unchanged(released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    assert up_to_date.is_unchanged(recipe, project.using(Settings()))
    (project.root / "headrace" / "__pycache__").mkdir()
    (project.root / "headrace" / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"compiled")
    (project.root / "README.md").write_text("prose")
    (project.recipes / "pictures.yaml").write_text("another recipe's business")
    assert up_to_date.is_unchanged(recipe, project.using(Settings()))


def test_a_release_that_never_was_is_a_change(project: Project) -> None:
    assert not up_to_date.is_unchanged(load_recipe("tiny", project), project.using(Settings()))
    assert not up_to_date.is_unchanged(load_recipe("pictures", project), project.using(Settings()))


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _same_size_and_time(path: Path) -> None:
    """As an editor saves: another file under the name, of the same size and time."""
    stat = path.stat()
    beside = path.with_name("beside")
    beside.write_bytes(path.read_bytes()[::-1])
    os.utime(beside, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    beside.replace(path)


@pytest.mark.parametrize("touch", [_append, _same_size_and_time, Path.unlink])
@pytest.mark.parametrize(
    "path",
    [
        "recipes/tiny.yaml",
        "source.csv",
        "data/tiny/0000-first.parquet",
        "artifacts/tiny/export/model.onnx",
        "requirements.lock",
        "dvc.yaml",
        *("headrace/models/mlp.py", "flows/release.py", "tasks/model.py", "bentos/models/onnx_model.py"),
    ],
)
def test_any_touched_file_is_a_change(path: str, touch: Callable[[Path], None], released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    touch(project.root / path)
    assert not up_to_date.is_unchanged(recipe, project.using(Settings()))


@pytest.mark.parametrize("path", ["data/tiny/0001-more.parquet", "headrace/models/new.py", "artifacts/tiny/train/model.pt"])
def test_a_new_file_is_a_change(path: str, released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    (project.root / path).parent.mkdir(exist_ok=True)
    (project.root / path).write_text("new")
    assert not up_to_date.is_unchanged(recipe, project.using(Settings()))


def test_other_settings_are_a_change(released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    assert not up_to_date.is_unchanged(recipe, project.using(Settings(runner="docker")))


@pytest.mark.parametrize("path", ["recipes/tiny.yaml", "source.csv", "headrace/models/mlp.py"])
def test_edits_during_a_release_do_not_count_as_released(path: str, released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    began = time.time_ns()
    os.utime(project.root / path, ns=(began + 1000, began + 1000))
    up_to_date.remember(recipe, project.using(Settings()), began)
    assert not up_to_date.is_unchanged(recipe, project.using(Settings()))


def test_what_the_release_makes_is_newer_than_its_beginning(released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    began = time.time_ns()
    for path in ("data/tiny/0000-first.parquet", "artifacts/tiny/export/model.onnx", "dvc.yaml"):
        os.utime(project.root / path, ns=(began + 1000, began + 1000))
    up_to_date.remember(recipe, project.using(Settings()), began)
    assert up_to_date.is_unchanged(recipe, project.using(Settings()))


def test_a_remembered_file_that_is_damaged_is_a_change(released: tuple[Recipe, Project]) -> None:
    recipe, project = released
    (project.state / "released" / "tiny.json").write_text('{"snapshot": "')
    assert not up_to_date.is_unchanged(recipe, project.using(Settings()))


def test_a_source_elsewhere_on_this_machine_is_watched(released: tuple[Recipe, Project], tmp_path: Path) -> None:
    recipe, project = released
    outside = tmp_path / "outside.csv"
    outside.write_text("a,b\n1,2\n")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": f"file://{outside}"})})
    up_to_date.remember(recipe, project.using(Settings()), time.time_ns())
    assert up_to_date.is_unchanged(recipe, project.using(Settings()))
    _append(outside)
    assert not up_to_date.is_unchanged(recipe, project.using(Settings()))
