"""The reference profile of a model for monitoring: its training rows, and its answers to the test rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.data.chunks import open_chunks
from headrace.files import write_with
from headrace.monitoring.profile import ProfileBuilder
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.tokenizer import Encoder
from headrace.task_types.lookup import task_type_for

if TYPE_CHECKING:
    import pandas as pd

PROFILE = "profile.json"
MAX_ROWS = 50_000
"""Training rows that a profile is made of, where they are not read in chunks: the first ones, which are in random order."""


def write_profile(recipe: Recipe, artifacts: Path, outputs: NDArray[Any]) -> None:
    """Writes `evaluation/profile.json`; an empty object where a model's rows cannot be profiled one by one (graphs, texts that
    are generated).

    Args:
        outputs: the model's answers to the test rows, rows first.
    """
    import pandas as pd

    contract = Contract.read(artifacts / "export" / "contract.json")
    path = artifacts / "evaluation" / PROFILE
    if contract.output == "text" or recipe.data.graph is not None:
        write_with(path, lambda beside: beside.write_text("{}\n", encoding="utf-8"))
        return
    tokenizer = artifacts / "export" / "tokenizer.json"
    encoder = Encoder(tokenizer.read_text(encoding="utf-8")) if tokenizer.exists() else None
    builder = ProfileBuilder(contract, exclude=contract.personal, encoder=encoder)
    for frame in _training_rows(recipe, artifacts):
        feeds = task_type_for(recipe).feeds(frame, contract, recipe)
        if any(len(values) != len(frame) for values in feeds.values()):  # a row is a graph
            write_with(path, lambda beside: beside.write_text("{}\n", encoding="utf-8"))
            return
        builder.add(rows_of(feeds))
    if encoder is not None:
        test = pd.read_parquet(artifacts / "prepared" / "test.parquet").head(MAX_ROWS)
        builder.add_held_out(rows_of(task_type_for(recipe).feeds(test, contract, recipe)))
    if np.asarray(outputs).shape[1:] == contract.answer_shape:
        builder.add_answers(outputs)
    builder.finish().write(path)


def rows_of(feeds: Feeds) -> pd.DataFrame:
    """Returns inputs of the served graph as a frame with a column for each field."""
    import pandas as pd

    return pd.DataFrame({name: values if values.ndim == 1 else list(values) for name, values in feeds.items()})


def _training_rows(recipe: Recipe, artifacts: Path) -> Iterator[pd.DataFrame]:
    import pandas as pd

    path = artifacts / "prepared" / "train.parquet"
    if task_type_for(recipe).learner(recipe) is None:
        yield pd.read_parquet(path).head(MAX_ROWS)
        return
    yield from open_chunks([path], recipe.data.model_copy(update={"columns": None})).frames()
