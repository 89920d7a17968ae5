"""The hashes of Headrace's own modules, on which the stages of a project depend."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from headrace.files import read_json
from headrace.pipeline import custom_code
from headrace.pipeline.installed_code import PARTS, file_of, write_installed_code
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import parse_recipe
from headrace.release.up_to_date import is_unchanged, remember
from tests.paths import ROOT
from tests.projects import TINY_TABLE


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, as if it was installed there."""
    copy = tmp_path / "site-packages"
    for name in ("headrace", "bentos"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "project_template", "services"))
    shutil.copy(ROOT / "dvc.yaml", copy)
    for module in ("headrace.pipeline.installed_code", "headrace.release.up_to_date"):
        monkeypatch.setattr(f"{module}.path_of", lambda name: copy / name)
    return copy


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    (tmp_path / "shop" / "recipes").mkdir(parents=True)
    return Project(tmp_path / "shop")


def listed(stage: str) -> list[str]:
    """Code that the dvc.yaml of the repository names for a stage."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    return [dep for dep in deps if dep.startswith(("headrace/", "bentos/"))]


def hashes(project: Project) -> dict[str, dict[str, str]]:
    return {part: read_json(project.root / file_of(part)) for part in (*STAGES, *PARTS)}


def test_each_stage_has_the_modules_that_it_can_reach(installed: Path, shop: Project) -> None:
    write_installed_code(shop)
    found = hashes(shop)
    for stage in STAGES:
        assert all(any(file == dep or file.startswith(f"{dep}/") for dep in listed(stage)) for file in found[stage])
        assert {dep for dep in listed(stage) if dep.endswith(".py")} <= found[stage].keys()
    assert "headrace/task_types/base.py" in found["task_type"] and "headrace/models/mlp.py" in found["model"]


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("headrace/training/loop.py", {"train", "export"}),  # `compress` can train during the export
        ("headrace/pipeline/export.py", {"export"}),
        ("bentos/models/generation.py", {"export", "evaluate"}),
        ("headrace/models/mlp.py", {*STAGES, "model"}),
        ("headrace/cli/run.py", set()),
    ],
)
def test_a_newer_module_changes_the_stages_that_reach_it(
    installed: Path, shop: Project, module: str, changed: set[str]
) -> None:
    write_installed_code(shop)
    before = hashes(shop)
    times = {part: (shop.root / file_of(part)).stat().st_mtime_ns for part in before}
    with (installed / module).open("a") as file:
        file.write("# newer\n")
    write_installed_code(shop)
    after = hashes(shop)
    assert {part for part in before if before[part] != after[part]} == changed
    assert {part for part in times if (shop.root / file_of(part)).stat().st_mtime_ns != times[part]} == changed


def test_a_release_is_not_unchanged_after_an_installation(installed: Path, shop: Project) -> None:
    (shop.recipes / "tiny.yaml").write_text(TINY_TABLE)
    recipe = parse_recipe(TINY_TABLE, "recipes/tiny.yaml")
    remember(recipe, shop, began_ns=2**63)
    assert is_unchanged(recipe, shop)
    with (installed / "headrace" / "cli" / "run.py").open("a") as file:
        file.write("# newer\n")
    assert not is_unchanged(recipe, shop)


def test_a_class_of_the_project_is_beside_the_installed_code(shop: Project) -> None:
    own = parse_recipe(TINY_TABLE, "recipes/tiny.yaml")
    assert custom_code.dependencies(own, shop) == {
        "task_type": "artifacts/installed_code/task_type.json",
        "model": "artifacts/installed_code/model.json",
    }
    assert custom_code.dependencies(own, Project(ROOT)) == {"task_type": "headrace/task_types", "model": "headrace/models"}
