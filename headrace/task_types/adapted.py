"""The tokenizer of a pretrained encoder, in place of a vocabulary learned from the training rows."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import DataError, RecipeError
from headrace.files import read_json
from headrace.models.pretrained_base import FILES, read_base
from headrace.models.schema import Schema
from headrace.project import MODEL_RECORD
from headrace.recipe.recipe import Recipe
from headrace.task_types.vocabulary import with_replacements

EDGES = 2
"""Tokens that the network adds to each text: the start and the end."""


def with_base(schema: Schema, recipe: Recipe, folder: Path) -> Schema:
    """Adds to a schema what the encoder in `folder` says: its configuration and its tokenizer. Schemas of other models stay.

    Raises:
        DataError: the encoder is not there, or it cannot be used (`UnusableBase`).
        RecipeError: its texts are shorter than `data.text.length`.
    """
    if recipe.base is None:
        return schema
    assert recipe.data.text is not None
    record = read_json(folder / MODEL_RECORD, "remove the folder; the model is fetched again")
    if not record or not all((folder / name).is_file() for name in FILES):
        raise DataError(
            f"data/{recipe.name} has no pretrained encoder", where=str(folder), hint=f"headrace run {recipe.name} fetches it"
        )
    base, tokenizer = read_base(folder, record["sha256"])
    longest = int(base.config.get("max_position_embeddings", 512)) - EDGES
    if recipe.data.text.length > longest:
        raise RecipeError(
            f"data.text.length is {recipe.data.text.length}, and the encoder takes texts of at most {longest} tokens",
            where=f"recipes/{recipe.name}.yaml",
            hint=f"write `length: {longest}` or less",
        )
    shape = schema.shape.model_copy(update={"vocabulary": int(base.config["vocab_size"]), "base": base})
    return schema.model_copy(update={"shape": shape, "tokenizer": with_replacements(tokenizer, recipe.data.text)})
