"""`train.start: champion`: training starts with the weights of the version in production where they fit, and DVC knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from headrace.data.batches import add_batch
from headrace.data.ingest import ingest
from headrace.data.versions import data_version
from headrace.files import read_json, write_json
from headrace.pipeline.custom_code import write_custom_code
from headrace.pipeline.dvc import reproduce
from headrace.pipeline.evaluate import evaluate_export
from headrace.pipeline.export import export_model
from headrace.pipeline.prepare import prepare
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release.extract import write_sources
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.training.run import train_model
from tests.projects import table

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe_with(project: Project, **sections: dict[str, Any]) -> Recipe:
    path = project.recipes / "tiny.yaml"
    fields = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        fields[name] |= values
    path.write_text(yaml.safe_dump(fields))
    return load_recipe("tiny", project)


def train(recipe: Recipe, project: Project) -> dict[str, Any]:
    """Runs the stages up to the training in this process; returns its summary."""
    write_json(project.artifacts("tiny") / "validation.json", {"passed": 1, "total": 1})
    write_custom_code(recipe, project)
    prepare(recipe, project)
    train_model(recipe, project)
    found: dict[str, Any] = read_json(project.artifacts("tiny") / "train" / "summary.json")
    return found


def promote(recipe: Recipe, project: Project) -> Version:
    export_model(recipe, project)
    evaluate_export(recipe, project)
    version = registry.register_trained(recipe, data_version(project, "tiny"), project)
    registry.set_alias(version, registry.CHAMPION, project)
    return version


def start(project: Project) -> str:
    """What the stage `train` depends on beside code and rows."""
    return str(read_json(project.artifacts("tiny") / "custom_code" / "model.json")["train.start"])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "model.pt", weights_only=True)
    return found


def test_training_starts_with_the_champion_when_there_is_new_data_and_only_then(project: Project) -> None:
    recipe = recipe_with(project, train={"start": "champion", "epochs": 2}, model={"embedding": 2})
    ingest(recipe, project, lambda line: None)
    first = train(recipe, project)
    assert (first["start"], first["start_reason"]) == ("random", "no version is in production")
    before, identity = weights(project.artifacts("tiny") / "train")["network.embeddings.0.weight"], start(project)
    assert promote(recipe, project).version == "1"
    write_custom_code(recipe, project)
    assert start(project) == identity == "random", "the champion was trained from the same data: nothing has changed"

    new = table(200, seed=5)
    new.loc[new.index[:20], "colour"] = "amber"  # a level in front of the others, whose indices move
    new.to_csv(project.root / "new.csv", index=False)
    add_batch(recipe, project.root / "new.csv", project, lambda line: None)
    frozen = recipe_with(project, train={"learning_rate": 1e-12, "weight_decay": 0.0})
    assert train(frozen, project)["start"] == "tiny@1" and start(project).startswith("tiny@1 ")
    after = weights(project.artifacts("tiny") / "train")["network.embeddings.0.weight"]
    torch.testing.assert_close(after, before[torch.tensor([0, 0, 1, 2, 3])], rtol=0, atol=1e-8)
    second = promote(frozen, project)
    assert second.tags["headrace.start"] == "tiny@1"
    write_custom_code(frozen, project)
    assert start(project).startswith("tiny@1 "), "what the champion itself started from"

    # The version can be trained again: what it started from is among its sources.
    write_sources(second, project, project.state / "extracted")
    record = read_json(project.state / "extracted" / "artifacts" / "tiny" / "custom_code" / "start" / "start.json")
    assert record["version"] == "tiny@1"

    # Another architecture, and a split that makes training rows of the champion test rows.
    wider = train(recipe_with(project, model={"hidden": [24]}), project)
    assert wider["start"] == "random" and "has the shape (16, " in wider["start_reason"]
    fields = yaml.safe_load((project.recipes / "tiny.yaml").read_text())["data"]
    moved = train(recipe_with(project, model={"hidden": [16]}, data={"split": {**fields["split"], "seed": 8}}), project)
    assert moved["start"] == "random" and "data.split changed" in moved["start_reason"]


def test_a_window_is_part_of_what_dvc_compares(project: Project) -> None:
    rows = table(400)
    rows["day"] = [f"2024-{1 + i // 100:02d}-01" for i in range(400)]
    rows.to_csv(project.root / "source.csv", index=False)
    split = {"time": {"column": "day", "test": "1 month"}, "validation": 0.2}
    ingest(recipe_with(project, data={"split": split}), project, lambda line: None)

    def rows_to_train_on(window: str | None) -> int:
        recipe = recipe_with(project, train={"window": window})
        assert reproduce("prepare", recipe, project).ran
        counts = read_json(project.artifacts("tiny") / "prepared" / "rows.json")
        return int(counts["train"] + counts["validation"])

    reproduce("validate", load_recipe("tiny", project), project)
    assert [rows_to_train_on(window) for window in (None, "2 months", None)] == [300, 200, 300]
