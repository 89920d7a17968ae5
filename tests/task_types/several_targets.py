"""Tables, texts and images whose rows have several labels or several values, for tests; and their recipes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from bentos.models.onnx_model import OnnxModel, load
from headrace.data.assembly import assemble
from headrace.data.ingest import ingest
from headrace.data.tables import write_batch
from headrace.files import read_json
from headrace.models.schema import Schema
from headrace.pipeline.stages import STAGES
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.task_types.lookup import task_type_for
from headrace.training.loading import to_device
from headrace.training.loop import TrainingRun, fit
from headrace.training.results import calibrate
from headrace.training.rows import Split
from tests.asgi import make_project
from tests.bento_projects import make_model
from tests.picture_files import file_of, noisy

TABLE = {
    "name": "several",
    "data": {"source": "several.csv", "split": {"test": 0.3, "validation": 0.2, "seed": 7}},
    "expect": [],
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 25, "batch_size": 32, "learning_rate": 0.02, "device": "cpu"},
    "serve": {"replicas": 1},
}
TEXT = {
    "model": {"name": "recurrent", "embedding": 8, "hidden": 8},
    "train": {"epochs": 15, "batch_size": 32, "learning_rate": 0.03, "device": "cpu"},
}
IMAGES = {**TEXT, "model": {"name": "cnn", "channels": [4], "dropout": 0.0}}
WORDS = {"late": "delayed", "paid": "invoice", "urgent": "now"}
LABELS = ["late", "paid", "urgent"]


def recipe_text(task: str, *, target: Any, **sections: Any) -> str:
    """A recipe as YAML; keywords replace sections, and `data` is added to that of `TABLE`."""
    fields = {**TABLE, "task": task, **sections, "data": {**TABLE["data"], "target": target, **sections.get("data", {})}}  # type: ignore[dict-item]
    return yaml.safe_dump(fields)


def labelled(rows: int, seed: int = 1) -> tuple[pd.DataFrame, list[list[str]]]:
    """Two numbers and a category, and the labels that they determine: none, some or all of `LABELS`."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "days": rng.normal(0, 3, rows).round(2),
            "amount": rng.normal(50, 20, rows).round(2),
            "channel": rng.choice(["mail", "shop"], rows),
        }
    )
    truths = {"late": frame.days > 1, "paid": frame.amount > 55, "urgent": (frame.channel == "mail") & (frame.days > -1)}
    return frame, [[label for label in LABELS if truths[label][i]] for i in range(rows)]


def one_column_each(frame: pd.DataFrame, labels: list[list[str]]) -> pd.DataFrame:
    """The labels as columns of true and false."""
    return frame.assign(**{label: [label in given for given in labels] for label in LABELS})


def texts_of(labels: list[list[str]], seed: int = 2) -> list[str]:
    """Texts in which a word says that the row has a label."""
    rng = np.random.default_rng(seed)
    filler = ["the", "parcel", "order", "was", "my", "for"]
    return [" ".join([*rng.choice(filler, 3), *(WORDS[label] for label in given)]) for given in labels]


def pictures_of(labels: list[list[str]], seed: int = 3) -> pd.DataFrame:
    """Images of 4 × 4 pixels: a bright row for each label."""
    pixels = np.random.default_rng(seed).integers(0, 60, (len(labels), 4, 4))
    for image, given in zip(pixels, labels, strict=True):
        for place, label in enumerate(LABELS):
            image[place] += 180 * (label in given)
    return pd.DataFrame(pixels.reshape(len(labels), 16)).add_prefix("pixel_")


def measured(rows: int, seed: int = 4) -> pd.DataFrame:
    """Two numbers and a category, and two targets in units of different size."""
    rng = np.random.default_rng(seed)
    size, age, town = rng.uniform(20, 120, rows).round(1), rng.uniform(0, 60, rows).round(1), rng.choice(["a", "b"], rows)
    rent = 300 + 9 * size + 200 * (town == "b") + rng.normal(0, 20, rows)
    rating = 4 - age / 30 + 0.5 * (town == "b") + rng.normal(0, 0.1, rows)
    return pd.DataFrame({"size": size, "age": age, "town": town, "rent": rent.round(2), "rating": rating.round(3)})


class Built:
    """A recipe after all stages."""

    def __init__(self, root: Path, file: str, text: str) -> None:
        self.project = make_project(root)
        (self.project.recipes / "several.yaml").write_text(text)
        self.file = file

    def with_pictures(self, count: int) -> Built:
        """Writes `p/0.png` and so on: the first have little red, the last have much."""
        (self.project.root / "p").mkdir()
        for i in range(count):
            (self.project.root / "p" / f"{i}.png").write_bytes(file_of(noisy((30 + 190 * i // count, 90, 60), 14, 12, i)))
        return self

    def run(self, frame: pd.DataFrame, trained: bool = True) -> Built:
        path = self.project.root / self.file
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
        self.artifacts = self.project.artifacts("several")
        self.recipe = self._stages(path, trained)
        self.model: OnnxModel = load(self.artifacts / "export")
        self.metrics = read_json(self.artifacts / "evaluation" / "metrics.json")
        self.evaluation = read_json(self.artifacts / "evaluation" / "evaluation.json")
        self.test = pd.read_parquet(self.artifacts / "prepared" / "test.parquet")
        return self

    def _stages(self, source: Path, trained: bool) -> Recipe:
        """Runs the stages, with a training that no server records, or none: then the weights are random."""
        recipe, stored = load_recipe("several", self.project), self.project.raw_data("several") / "0000-first.parquet"
        if recipe.data.pictures is not None:
            ingest(recipe, self.project, lambda line: None)
        else:
            stored.parent.mkdir(parents=True)
            write_batch(assemble([source], recipe.data).table, stored)
        STAGES["prepare"](recipe, self.project)
        schema, out = Schema.read(self.artifacts / "prepared" / "schema.json"), self.artifacts / "train"
        out.mkdir()
        model = make_model(recipe, schema)
        if trained:
            train, validation = (self._rows(recipe, schema, name) for name in ("train", "validation"))
            fit(model, train, validation, recipe.train, TrainingRun(out / "checkpoint", "test"))
            calibrate(model, validation, recipe.train)
        torch.save(model.state_dict(), out / "model.pt")
        (out / "curves.csv").write_text("epoch,train_loss,val_loss,val_label_accuracy\n1,0.7,0.7,0.5\n")
        for stage in ("export", "evaluate"):
            STAGES[stage](recipe, self.project)
        return recipe

    def _rows(self, recipe: Recipe, schema: Schema, name: str) -> Split:
        frame = pd.read_parquet(self.artifacts / "prepared" / f"{name}.parquet")
        return to_device(frame, task_type_for(recipe), schema, recipe, torch.device("cpu"))


def instances(built: Built, rows: int = 20) -> list[dict[str, Any]]:
    """Test rows as a client sends them."""
    if built.recipe.data.pictures is not None:
        return [{"image": base64.b64encode(raw).decode()} for raw in built.test["image"].head(rows)]
    if built.recipe.data.image is not None:
        pixels = built.test.filter(like="pixel_").head(rows).to_numpy().reshape(-1, 4, 4)
        return [{"image": image.tolist()} for image in pixels]
    if built.recipe.task_type.is_text:
        return [{"text": text} for text in built.test["body"].head(rows)]
    names = [field.name for field in built.model.contract.inputs]
    found: list[dict[str, Any]] = built.test[names].head(rows).to_dict("records")
    return found
