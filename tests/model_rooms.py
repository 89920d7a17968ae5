"""Recipes and tables for tests of kinds, models, training and export; no project needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from headrace.config import Recipe, parse_recipe
from headrace.kinds.base import Schema
from headrace.kinds.registry import kind_of
from headrace.models.served import ServedModel


def make_recipe(
    task: str = "classification",
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    name: str = "toy",
    **data: Any,
) -> Recipe:
    """A recipe whose target is `y`; keywords go into its data section."""
    fields = {
        "name": name,
        "task": task,
        "data": {"source": "toy.csv", "target": "y", **data},
        "expect": [],
        "model": model or {"name": "cnn" if task.startswith("image") else "mlp"},
        "train": {"device": "cpu", **(train or {})},
        "serve": {},
    }
    return parse_recipe(yaml.safe_dump(fields), "recipes/toy.yaml")


def fitted(frame: pd.DataFrame, recipe: Recipe) -> Schema:
    return kind_of(recipe.task).fit(frame, recipe)


def through_parquet(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The frame as a stage would read it: with the types that Parquet gives back."""
    frame.to_parquet(folder / "frame.parquet", index=False)
    return pd.read_parquet(folder / "frame.parquet")


def make_model(recipe: Recipe, schema: Schema, seed: int = 0) -> ServedModel:
    import torch

    torch.manual_seed(seed)
    return ServedModel(recipe.model, schema).eval()
