"""A table's file to a served model without services: read, split, learned from, exported, and answered by the app."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from headrace.data.assembly import assemble
from headrace.data.splits import Splits, split
from headrace.data.tables import to_frame
from headrace.models.schema import Schema
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from headrace.scoring.open_rows import open_rows
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import make_model


def read_table(path: Path, recipe: Recipe) -> pd.DataFrame:
    return to_frame(assemble([path], recipe.data).table)


def learned(path: Path, recipe: Recipe) -> tuple[Splits, Schema]:
    splits = split(read_table(path, recipe), recipe)
    return splits, task_type_of(recipe.task).learn(splits, recipe)


def contract_for(path: Path, recipe: Recipe) -> Contract:
    splits, schema = learned(path, recipe)
    return task_type_of(recipe.task).contract(schema, recipe, splits.test.iloc[:1])


def served(path: Path, recipe: Recipe, folder: Path) -> PredictionApp:
    """Exports an untrained network for the table in `path`, and loads it as a replica does."""
    splits, schema = learned(path, recipe)
    task_type, model = task_type_of(recipe.task), make_model(recipe, schema)
    contract = task_type.contract(schema, recipe, splits.test.iloc[:1]).model_copy(update=model.describe())
    folder.mkdir(parents=True, exist_ok=True)
    task_type.export(model, schema, recipe, contract, splits.test, folder)
    contract.write(folder / "contract.json")
    app = PredictionApp()
    app.model = load(folder)
    return app


def rows_of(path: Path, contract: Contract) -> list[Any]:
    """Returns the rows of a file to score, as they are sent to the model."""
    return [row for chunk in open_rows(path, contract, "refuse").chunks() for row in chunk.values]


def predictions(response: Any) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]
