"""The rows of a field of texts or pictures that an embedding is learned from, and that it is computed of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from headrace.monitoring.embedding import (
    LEARNED_SHARE,
    MOST_LEARNED,
    Embedding,
    Row,
    learn_pictures,
    learn_text,
    picture_row,
    text_row,
)
from headrace.monitoring.features import Values, column_of, is_image, is_text
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 20_000
"""Rows of a field that are kept while a profile is made; a random sample of more."""


class EmbeddedRows:
    """A random sample of the training rows of one field; none of fields that are neither texts nor pictures."""

    def __init__(self, field: InputField) -> None:
        self._field = field
        self._is_embedded = is_text(field) or is_image(field)
        self._rows: list[tuple[float, Row]] = []
        """With a random key each: the rows with the smallest keys are a simple random sample of all rows."""
        self._largest = 1.0

    def add(self, frame: pd.DataFrame, rng: np.random.Generator) -> None:
        """Adds rows of training."""
        column = column_of(frame, self._field) if self._is_embedded else None
        if column is None:
            return
        keys = rng.random(len(frame))
        for place in np.flatnonzero(keys < self._largest).tolist():
            self._rows.append((float(keys[place]), row_of(frame[column].iloc[place], self._field)))
        if len(self._rows) > 2 * MOST_ROWS:
            self._keep()

    def learn(self, rng: np.random.Generator) -> tuple[Embedding, list[Row]] | None:
        """Returns the embedding, and the rows that it was not learned from; None if there are too few."""
        self._keep()
        rows = [row for _, row in self._rows]
        order = rng.permutation(len(rows))
        learned = min(MOST_LEARNED, int(LEARNED_SHARE * len(rows)))
        learn = learn_text if is_text(self._field) else learn_pictures
        found = learn(self._field.name, [rows[place] for place in order[:learned]]) if learned else None
        return None if found is None else (found, [rows[place] for place in order[learned:]])

    def _keep(self) -> None:
        if len(self._rows) > MOST_ROWS:
            self._rows = sorted(self._rows, key=lambda one: one[0])[:MOST_ROWS]
            self._largest = self._rows[-1][0]


def embedding_values(frame: pd.DataFrame, contract: Contract, embeddings: Iterable[Embedding]) -> dict[str, Values]:
    """Returns the values of the features of each embedding in a frame of rows, whose columns are texts or pixels."""
    fields = {field.name: field for field in contract.inputs}
    found: dict[str, Values] = {}
    for one in embeddings:
        field = fields.get(one.field)
        column = None if field is None else column_of(frame, field)
        if field is not None and column is not None:
            found |= one.values([row_of(value, field) for value in frame[column]])
        else:
            found |= {feature.name: np.full(len(frame), np.nan) for feature in one.features}
    return found


def row_of(value: object, field: InputField) -> Row:
    """Returns the words of a text, or the thumbnail of a picture."""
    return text_row(value) if is_text(field) else picture_row(value)
