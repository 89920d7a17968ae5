"""Tables, texts and images whose rows have several labels or several values, for tests; and their recipes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import yaml

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
