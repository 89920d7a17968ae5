"""A model and a kind of a user's own, in files of the user's repository, named by their paths in the recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import yaml

from bentos.models.served_model import load
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
def own(project: Project) -> Iterator[Project]:
    """A project with the examples of the docs: `gated.py` (a model), `signals.py` (a kind) and `served_signals.py`."""
    for example in EXAMPLES.glob("*.py"):
        (project.root / example.name).write_text(example.read_text())
    yield project
    for name in ("gated", "signals", "served_signals"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(project.root)]


def recipe_with(project: Project, name: str, **sections: object) -> None:
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())
    (project.recipes / f"{name}.yaml").write_text(yaml.safe_dump({**fields, "name": name, **sections}))


def test_a_model_of_ones_own_goes_from_recipe_to_answer(own: Project) -> None:
    recipe_with(own, "mine", model={"name": "gated:GatedMLP", "width": 24})
    run_stages(own, "mine")
    metrics = json.loads((own.artifacts("mine") / "evaluation" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.7
    served = load(own.artifacts("mine") / "export")
    assert served.predict([{"length": 30.0, "width": 1.0, "colour": "red"}])[0]["label"] == "big"


def test_a_family_in_the_registry_needs_one_entry(own: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    class GatedConfig(ModelConfig):
        builds = "gated:GatedMLP"
        name: Literal["gated"] = "gated"
        width: int = 24

    monkeypatch.setitem(MODELS, "gated", GatedConfig)
    fits = replace(TASK_TYPES["classification"], models=(*TASK_TYPES["classification"].models, "gated"))
    monkeypatch.setitem(TASK_TYPES, "classification", fits)
    recipe_with(own, "wide", model={"name": "gated", "width": 16})
    run_stages(own, "wide")
    assert (
        load(own.artifacts("wide") / "export").predict([{"length": 30.0, "width": 1.0, "colour": "red"}])[0]["label"] == "big"
    )


def test_a_kind_of_ones_own_decodes_and_answers_in_its_own_terms(own: Project) -> None:
    recipe_with(own, "waves", task="signals:SignalClassification", model={"name": "gated:GatedMLP", "width": 8})
    fields = yaml.safe_load((own.recipes / "waves.yaml").read_text())
    rise = [(i % 7 / 10, 0.9 if i % 2 else -0.9) for i in range(300)]
    rows = ["signal,kind", *(f'"{start},{start + by}",{"up" if by > 0 else "down"}' for start, by in rise)]
    (own.root / "waves.csv").write_text("\n".join(rows) + "\n")
    fields["data"] = {"source": "waves.csv", "target": "kind", "split": {"test": 0.3, "validation": 0.2, "seed": 7}}
    (own.recipes / "waves.yaml").write_text(yaml.safe_dump({**fields, "expect": []}))
    run_stages(own, "waves")
    bento = package(own.artifacts("waves") / "export", "waves", "1", {}, own)
    assert (bento.path / "src" / "served_signals.py").is_file() and not (bento.path / "src" / "signals.py").exists()
    served = load(own.artifacts("waves") / "export")
    assert served.predict([{"signal": "0.1,0.95"}, {"signal": "0.1, -0.8"}]) == [{"direction": "up"}, {"direction": "down"}]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model", {"name": "gatd:GatedMLP"}, "no module 'gatd'; did you mean 'gated'?"),
        ("model", {"name": "gated:GatdMLP"}, "gated has no class 'GatdMLP'; did you mean 'GatedMLP'?"),
        ("model", {"name": "gated:GatedMLP", "widht": 3}, "model.widht: no such field"),
        ("task", "signals:Nothing", "signals has no class 'Nothing'"),
        ("task", "gated:GatedMLP", "says no metrics"),
        ("model", {"name": "broken:Net"}, "'broken:Net' cannot be imported: ZeroDivisionError"),
        ("model", {"name": "needy:Net"}, "No module named 'a_package_nobody_has'"),
    ],
)
def test_a_wrong_path_is_told_with_the_near_miss(field: str, value: object, said: str, own: Project) -> None:
    (own.root / "broken.py").write_text("1 / 0\n")
    (own.root / "needy.py").write_text("import a_package_nobody_has\n")
    recipe_with(own, "mine", **{field: value})
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine", own)
    assert said in str(caught.value)


def test_a_change_of_ones_own_code_is_a_change(own: Project) -> None:
    recipe_with(own, "mine", model={"name": "gated:GatedMLP", "width": 4}, train={"epochs": 1})
    recipe = load_recipe("mine", own)
    ingest(recipe, own, lambda line: None)
    for stage in ("validate", "prepare", "train"):
        assert reproduce(stage, recipe, own).ran
    assert "mine: {kind: headrace/task_types, model: gated.py}" in (own.root / "dvc.yaml").read_text()
    before = snapshot(recipe, own, Settings())
    assert not reproduce("train", recipe, own).ran
    with (own.root / "gated.py").open("a") as file:
        file.write("# changed\n")
    assert snapshot(recipe, own, Settings()) != before
    assert not reproduce("prepare", recipe, own).ran
    assert reproduce("train", recipe, own).ran


def test_sources_are_told_apart_from_installed_packages(own: Project) -> None:
    load_recipe("tiny", own)  # makes the project importable
    (own.root / "whole").mkdir()
    (own.root / "whole" / "__init__.py").touch()
    (own.root / "whole" / "part.py").write_text("class Net: ...\n")
    assert load_class("whole.part:Net").__name__ == "Net"
    found = custom_sources(["gated:GatedMLP", "whole.part:Net", "torch.nn:Linear"], own.root)
    assert [path.name for path in found] == ["gated.py", "whole"]
