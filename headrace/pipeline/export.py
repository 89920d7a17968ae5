"""The `export` stage: turns trained weights into the served graph and its contract."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from headrace import console
from headrace.compression.compress import RECORD, UNCOMPRESSED, compress
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

    With the section `compress` the graph there is the compressed one, `export/compression.json` says how it was made, and the
    folder `export/uncompressed` has the graph before.

    Raises:
        ExportError: the graph's answers differ from torch's, or a compressed graph answers with NaN.
        RecipeError: the method of `compress` cannot be used for this model.
        DataError: too few training rows to calibrate the compressed graph with.
    """
    export = project.artifacts(recipe.name) / "export"
    rmtree(export / UNCOMPRESSED, ignore_errors=True)
    (export / RECORD).unlink(missing_ok=True)
    if recipe.compress is None:
        write_export(recipe, project, export)
        return
    write_export(recipe, project, export / UNCOMPRESSED)
    found = compress(recipe.compress, export / UNCOMPRESSED, export, recipe, project, partial(trained_model, recipe, project))
    console.report(found.sentence)


def write_export(recipe: Recipe, project: Project, out: Path) -> None:
    """Exports the trained weights to the folder `out`.

    Raises:
        ExportError: the graph's answers differ from torch's.
    """
    artifacts = project.artifacts(recipe.name)
    out.mkdir(parents=True, exist_ok=True)
    task_type, schema = task_type_for(recipe), Schema.read(artifacts / "prepared" / "schema.json")
    test = _test_rows(task_type, artifacts / "prepared" / "test.parquet", recipe)
    model = trained_model(recipe, project)
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


def trained_model(recipe: Recipe, project: Project) -> ServedModel:
    """Loads the model that the stage `train` made, in evaluation mode."""
    artifacts = project.artifacts(recipe.name)
    return load_weights(recipe, Schema.read(artifacts / "prepared" / "schema.json"), artifacts / "train" / "model.pt")


def load_weights(recipe: Recipe, schema: Schema, path: Path) -> ServedModel:
    """Loads the trained model, in evaluation mode; matrices that were added to a pretrained encoder are merged with it."""
    import torch

    from headrace.models.pretrained import merge_added

    model = task_type_for(recipe).module(recipe.model, schema)
    model.load_state_dict(torch.load(path, weights_only=True))
    merge_added(model)
    return model.eval()
