"""Makes a compressed variant of an exported model: a folder with the same contract and a smaller graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict

from headrace.compression import half, quantise
from headrace.compression.graphs import NothingToCompress
from headrace.data.chunks import read_head
from headrace.errors import DataError, ExportError, RecipeError
from headrace.files import write_json, write_text
from headrace.models.schema import Schema
from headrace.project import Project
from headrace.recipe.compress import TRAINED_METHODS, CompressConfig, reason_of
from headrace.runtime.contract import Contract, Feeds
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    import pandas as pd

    from headrace.models.served import ServedModel
    from headrace.recipe.recipe import Recipe

GRAPH, RECORD = "model.onnx", "compression.json"
UNCOMPRESSED = "uncompressed"
"""The folder in `export/` with the uncompressed model, for the comparison."""
CALIBRATION_BATCH = 64
FEWEST_CALIBRATION_ROWS = 16
"""Of fewer rows the ranges of activations would be chance."""
CHECKED_ROWS = 256
"""Training rows that the compressed graph answers before it is accepted."""


class Outcome(BaseModel):
    """How a variant was made; `compression.json` beside its graph."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    settings: str
    """The method and its settings in a few words."""
    applied: bool
    """False if the graph has nothing that the method makes smaller: the graph is then the uncompressed one."""
    remarks: list[str]
    bytes: int
    """Size of the graph's file."""
    original_bytes: int

    @property
    def sentence(self) -> str:
        """What was done, for people."""
        if not self.applied:
            return f"{self.method} changes nothing, since {'; '.join(self.remarks)}: the uncompressed graph is exported"
        sizes = f"{self.settings}: {self.original_bytes:,} to {self.bytes:,} bytes"
        return f"{sizes}; {'; '.join(self.remarks)}" if self.remarks else sizes


def compress(
    config: CompressConfig,
    original: Path,
    folder: Path,
    recipe: Recipe,
    project: Project,
    load: Callable[[], ServedModel],
) -> Outcome:
    """Writes a compressed variant of the model in `original` to `folder`.

    Args:
        load: returns the trained torch model, for methods that train; it is changed.

    Raises:
        RecipeError: the method cannot be used for this model.
        DataError: too few training rows to calibrate with.
        ExportError: the compressed graph answers with NaN or infinity.
        DiskFull: no space is left.
    """
    if len(list(original.glob("*.onnx"))) != 1:
        raise RecipeError(reason_of(recipe.task), where="compress", hint="remove the section compress")
    folder.mkdir(parents=True, exist_ok=True)
    for path in original.iterdir():
        if path.is_file() and path.name not in (GRAPH, RECORD):
            shutil.copy(path, folder / path.name)
    is_applied, remarks = True, list[str]()
    try:
        if config.method in TRAINED_METHODS:
            remarks = _train(config, folder, recipe, project, load())
        else:
            remarks = _convert(config, original / GRAPH, folder, recipe, project)
    except NothingToCompress as found:
        shutil.copy(original / GRAPH, folder / GRAPH)
        is_applied, remarks = False, [str(found)]
    if is_applied:
        _require_finite(config, folder, recipe, project)
    sizes = [(at / GRAPH).stat().st_size for at in (folder, original)]
    outcome = Outcome(
        method=config.method,
        settings=config.described(),
        applied=is_applied,
        remarks=remarks,
        bytes=sizes[0],
        original_bytes=sizes[1],
    )
    write_json(folder / RECORD, outcome.model_dump())
    return outcome


def read_outcome(folder: Path) -> Outcome | None:
    """Returns how the model in `folder` was compressed; None if it was not."""
    path = folder / RECORD
    return Outcome.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _convert(config: CompressConfig, source: Path, folder: Path, recipe: Recipe, project: Project) -> list[str]:
    target = folder / GRAPH
    if config.method == "int8-dynamic":
        return quantise.quantise_dynamic(source, target)
    if config.method == "int8-static":
        return quantise.quantise_static(source, target, calibration(config, folder, recipe, project))
    return half.store_weights(source, target, cast(Literal["float16", "bfloat16"], config.method))


def calibration(config: CompressConfig, folder: Path, recipe: Recipe, project: Project) -> list[Feeds]:
    """Returns training rows as inputs of the graph, in batches.

    Raises:
        DataError: there are too few.
        RecipeError: the graph does not take rows.
    """
    frame = training_rows(config.calibration_rows, recipe, project)
    if len(frame) < FEWEST_CALIBRATION_ROWS:
        raise DataError(
            f"int8-static measures the ranges of activations on training rows, and there "
            f"{'is' if len(frame) == 1 else 'are'} {len(frame):,}: at least {FEWEST_CALIBRATION_ROWS} are needed",
            where=f"artifacts/{recipe.name}/prepared/train.parquet",
            hint="add data, or use int8-dynamic, which needs no rows",
        )
    schema = Schema.read(project.artifacts(recipe.name) / "prepared" / "schema.json")
    contract, task_type = Contract.read(folder / "contract.json"), task_type_for(recipe)
    starts = range(0, len(frame), CALIBRATION_BATCH)
    batches = [task_type.graph_feeds(frame[at : at + CALIBRATION_BATCH], schema, recipe, contract) for at in starts]
    found = [batch for batch in batches if batch is not None]
    if len(found) < len(batches):
        raise RecipeError(
            f"int8-static measures the ranges of activations on rows, and a graph of {recipe.task!r} takes no rows",
            where="compress.method",
            hint="use int8-dynamic",
        )
    return found


def training_rows(rows: int, recipe: Recipe, project: Project) -> pd.DataFrame:
    """Returns training rows, drawn at random, the same ones each time. Of a table that is read in chunks, the first ones: the
    split has them in the order of the data."""
    import pandas as pd

    path = project.artifacts(recipe.name) / "prepared" / "train.parquet"
    in_chunks = task_type_for(recipe).learner(recipe) is not None
    frame = read_head(path, 16 * rows) if in_chunks else pd.read_parquet(path)
    if len(frame) <= rows:
        return frame
    drawn = np.random.default_rng(recipe.data.split.seed).choice(len(frame), rows, replace=False)
    return frame.iloc[np.sort(drawn)].reset_index(drop=True)


def _train(config: CompressConfig, folder: Path, recipe: Recipe, project: Project, model: ServedModel) -> list[str]:
    from headrace.compression.sparse import store_sparse
    from headrace.compression.train_smaller import train_smaller

    artifacts, task_type = project.artifacts(recipe.name), task_type_for(recipe)
    schema = Schema.read(artifacts / "prepared" / "schema.json")
    smaller, remarks = train_smaller(model, config, recipe, schema, project)
    contract = Contract.read(folder / "contract.json")
    cleared = {name: type(contract).model_fields[name].default for name in model.describe()}
    contract = contract.model_copy(update={**cleared, **smaller.describe()})
    test = read_head(artifacts / "prepared" / "test.parquet", CHECKED_ROWS)
    parity = task_type.export(smaller, schema, recipe, contract, test, folder)
    contract.write(folder / "contract.json")
    write_json(folder / "parity.json", parity)
    if schema.tokenizer is not None:
        write_text(folder / "tokenizer.json", schema.tokenizer)
    if config.method == "prune":
        remarks += store_sparse(folder / GRAPH)
    return remarks


def _require_finite(config: CompressConfig, folder: Path, recipe: Recipe, project: Project) -> None:
    """Lets the compressed graph answer training rows.

    Raises:
        ExportError: an answer is NaN or infinite, or the graph cannot be run.
    """
    at = {"where": str(folder / GRAPH), "hint": "use another method, or remove the section compress"}
    try:
        answers: Any = task_type_for(recipe).answers(folder, training_rows(CHECKED_ROWS, recipe, project), recipe)
    except Exception as error:  # ONNX Runtime has classes of its own for operators that it lacks
        if type(error).__module__.startswith("onnxruntime"):
            reason = str(error).splitlines()[0][:300]
            raise ExportError(f"ONNX Runtime cannot run the graph of {config.method}: {reason}", **at) from None
        raise
    if not np.isfinite(answers.astype(np.float64)).all():
        wrong = int((~np.isfinite(answers.astype(np.float64).reshape(len(answers), -1)).all(axis=1)).sum())
        raise ExportError(
            f"the graph of {config.method} answers {wrong:,} of {len(answers):,} training rows with NaN or infinity", **at
        )
