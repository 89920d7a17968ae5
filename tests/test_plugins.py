"""A custom model and a custom task type, in files of the project, named by their paths in the recipe."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

import pytest
import yaml

from bentos.models.onnx_model import load
from headrace.data.ingest import ingest
from headrace.errors import RecipeError
from headrace.pipeline.dvc import reproduce
from headrace.plugins import custom_sources, load_class
from headrace.project import Project
from headrace.recipe.models import MODELS, ModelConfig
from headrace.recipe.recipe import load_recipe
from headrace.recipe.task_types import TASK_TYPES
from headrace.release.up_to_date import snapshot
from headrace.serving.packaging.bento import package
from headrace.settings import Settings
from tests.bento_projects import run_stages
from tests.paths import ROOT

EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture
def custom_project(project: Project) -> Project:
    """A project with the examples of the docs: `gated.py` (a model), `signals.py` (a task type) and `served_signals.py`."""
    for example in EXAMPLES.glob("*.py"):
        (project.root / example.name).write_text(example.read_text())
    return project


def recipe_with(project: Project, name: str, **sections: object) -> None:
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())
    (project.recipes / f"{name}.yaml").write_text(yaml.safe_dump({**fields, "name": name, **sections}))


def test_a_custom_model_is_trained_and_served(custom_project: Project) -> None:
    recipe_with(custom_project, "mine", model={"name": "gated:GatedMLP", "width": 24})
    run_stages(custom_project, "mine")
    metrics = json.loads((custom_project.artifacts("mine") / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.7
    served = load(custom_project.artifacts("mine") / "export")
    assert served.predict([{"length": 30.0, "width": 1.0, "colour": "red"}])[0]["label"] == "big"


def test_a_new_built_in_model_needs_one_entry(custom_project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    class GatedConfig(ModelConfig):
        builds = "gated:GatedMLP"
        name: Literal["gated"] = "gated"
        width: int = 24

    monkeypatch.setitem(MODELS, "gated", GatedConfig)
    fits = replace(TASK_TYPES["classification"], models=(*TASK_TYPES["classification"].models, "gated"))
    monkeypatch.setitem(TASK_TYPES, "classification", fits)
    recipe_with(custom_project, "wide", model={"name": "gated", "width": 16})
    run_stages(custom_project, "wide")
    assert (
        load(custom_project.artifacts("wide") / "export").predict([{"length": 30.0, "width": 1.0, "colour": "red"}])[0]["label"]
        == "big"
    )


def test_a_custom_task_type_is_trained_and_served(custom_project: Project) -> None:
    recipe_with(custom_project, "waves", task="signals:SignalClassification", model={"name": "gated:GatedMLP", "width": 8})
    fields = yaml.safe_load((custom_project.recipes / "waves.yaml").read_text())
    rise = [(i % 7 / 10, 0.9 if i % 2 else -0.9) for i in range(300)]
    rows = ["signal,kind", *(f'"{start},{start + by}",{"up" if by > 0 else "down"}' for start, by in rise)]
    (custom_project.root / "waves.csv").write_text("\n".join(rows) + "\n")
    fields["data"] = {"source": "waves.csv", "target": "kind", "split": {"test": 0.3, "validation": 0.2, "seed": 7}}
    (custom_project.recipes / "waves.yaml").write_text(yaml.safe_dump({**fields, "expect": []}))
    run_stages(custom_project, "waves")
    bento = package(custom_project.artifacts("waves") / "export", "waves", "1", {}, custom_project)
    assert (bento.path / "src" / "served_signals.py").is_file() and not (bento.path / "src" / "signals.py").exists()
    served = load(custom_project.artifacts("waves") / "export")
    assert served.predict([{"signal": "0.1,0.95"}, {"signal": "0.1, -0.8"}]) == [{"direction": "up"}, {"direction": "down"}]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model", {"name": "gatd:GatedMLP"}, "no module 'gatd'; did you mean 'gated'?"),
        ("model", {"name": "gated:GatdMLP"}, "gated has no class 'GatdMLP'; did you mean 'GatedMLP'?"),
        ("model", {"name": "gated:GatedMLP", "widht": 3}, "model.widht: unknown field"),
        ("task", "signals:Nothing", "signals has no class 'Nothing'"),
        ("task", "gated:GatedMLP", "has no metrics"),
        ("model", {"name": "broken:Net"}, "'broken:Net' cannot be imported: ZeroDivisionError"),
        ("model", {"name": "needy:Net"}, "No module named 'a_package_nobody_has'"),
    ],
)
def test_a_wrong_path_is_reported_with_the_near_miss(field: str, value: object, message: str, custom_project: Project) -> None:
    (custom_project.root / "broken.py").write_text("1 / 0\n")
    (custom_project.root / "needy.py").write_text("import a_package_nobody_has\n")
    recipe_with(custom_project, "mine", **{field: value})
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine", custom_project)
    assert message in str(caught.value)


@pytest.mark.exhaustive
def test_a_change_of_custom_code_is_detected(custom_project: Project) -> None:
    recipe_with(custom_project, "mine", model={"name": "gated:GatedMLP", "width": 4}, train={"epochs": 1})
    recipe = load_recipe("mine", custom_project)
    ingest(recipe, custom_project, lambda line: None)
    for stage in ("validate", "prepare", "train"):
        assert reproduce(stage, recipe, custom_project).ran
    listed = "mine: {task_type: headrace/task_types, model: artifacts/mine/custom_code/model.json}"
    assert listed in (custom_project.root / "dvc.yaml").read_text()
    before = snapshot(recipe, custom_project.using(Settings()))
    assert not reproduce("train", recipe, custom_project).ran
    with (custom_project.root / "gated.py").open("a") as file:
        file.write("# changed\n")
    assert snapshot(recipe, custom_project.using(Settings())) != before
    assert not reproduce("prepare", recipe, custom_project).ran
    assert reproduce("train", recipe, custom_project).ran


def test_sources_are_distinguished_from_installed_packages(custom_project: Project) -> None:
    load_recipe("tiny", custom_project)  # makes the project importable
    (custom_project.root / "whole").mkdir()
    (custom_project.root / "whole" / "__init__.py").touch()
    (custom_project.root / "whole" / "part.py").write_text("class Net: ...\n")
    assert load_class("whole.part:Net").__name__ == "Net"
    found = custom_sources(["gated:GatedMLP", "whole.part:Net", "torch.nn:Linear"], custom_project.root)
    assert [path.name for path in found] == ["gated.py", "whole"]


def test_sources_include_all_modules_of_the_project_that_a_class_imports(custom_project: Project) -> None:
    root = custom_project.root
    files = {
        "net.py": "import json, torch, blocks.dense\nfrom headrace.models.mlp import MLP\nSERVED = 'served:Model'\n",
        "blocks/dense.py": "from . import scale\ndef late():\n    import lazy\n",  # a folder without __init__.py
        "blocks/scale.py": "",
        "blocks/unused.py": "",
        "lazy.py": "from package import part\n",
        "package/__init__.py": "",
        "package/part.py": "",
        "served.py": "import net\n",
        "json.py": "import unrelated\n",  # the standard library's comes first
        "unrelated.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    found = custom_sources(["net:Net"], root)
    names = {path.relative_to(root.resolve()).as_posix() for path in found}
    assert names == {"net.py", "blocks/dense.py", "blocks/scale.py", "lazy.py", "package", "served.py"}
    (root / "net.py").write_text("def broken(:\n")
    assert [path.name for path in custom_sources(["net:Net"], root)] == ["net.py"]
