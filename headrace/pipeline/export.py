"""The `export` stage: turns trained weights into the served graph and its contract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.files import write_json, write_text
from headrace.models.schema import Schema
from headrace.project import Project
from headrace.recipe.monitor import personal_fields
from headrace.recipe.recipe import Recipe
from headrace.task_types.base import TaskType
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    import pandas as pd

    from headrace.models.served import ServedModel

PARITY_TEST_ROWS = 1000
"""Rows of the test set that are read, for a task type whose table may be larger than memory."""


def export_model(recipe: Recipe, project: Project) -> None:
    """Writes `export/model.onnx`, `export/contract.json` and `export/parity.json` from the trained weights.

    Raises:
        ExportError: the graph's answers differ from torch's.
    """
    artifacts = project.artifacts(recipe.name)
    out = artifacts / "export"
    out.mkdir(parents=True, exist_ok=True)
    task_type, schema = task_type_for(recipe), Schema.read(artifacts / "prepared" / "schema.json")
    test = _test_rows(task_type, artifacts / "prepared" / "test.parquet", recipe)
    model = load_weights(recipe, schema, artifacts / "train" / "model.pt")
    contract = task_type.contract(schema, recipe, test.iloc[:1]).model_copy(update=model.describe())
    contract = contract.model_copy(update={"personal": personal_fields(recipe.monitor, recipe.data, contract)})
    parity = task_type.export(model, schema, recipe, contract, test, out)
    if schema.tokenizer is not None:
        write_text(out / "tokenizer.json", schema.tokenizer)
    contract.write(out / "contract.json")
    write_json(out / "parity.json", parity)


def _test_rows(task_type: TaskType, test: Path, recipe: Recipe) -> pd.DataFrame:
    """Reads test rows on which the graph is compared with torch: all of them, or the first ones of a large table."""
    import pandas as pd

    from headrace.data.chunks import read_head

    return pd.read_parquet(test) if task_type.learner(recipe) is None else read_head(test, PARITY_TEST_ROWS)


def load_weights(recipe: Recipe, schema: Schema, path: Path) -> ServedModel:
    """Loads the trained model, in evaluation mode."""
    import torch

    model = task_type_for(recipe).module(recipe.model, schema)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()
