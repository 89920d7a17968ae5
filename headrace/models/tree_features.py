"""The features of a table for trees, which need no scaling and can split on a gap: computed inside the served graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from headrace.models.schema import Schema
from headrace.models.served import MAX_DEVIATION
from headrace.models.time_features import TimeParts

MOST_INDICATORS = 256
"""Most levels of a categorical column that get a feature each."""


class TreeFeatures(nn.Module):
    """Turns the columns of a table into one matrix of features, `(rows, features)` float32, with NaN for what is missing.

    Takes `numeric`, `times` and `categorical`, whichever the table has. Numbers stay as they are, except those that float32
    cannot tell apart, which are scaled in float64. Times become their calendar parts. A level of a categorical column is one
    feature, 0 or 1, and so is an unknown level; of a column with very many levels the one feature is their order.

    Each operation is exact or rounds once, so that torch and ONNX Runtime give the same bits: a tree answers differently for
    the smallest difference at a threshold.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.has_numeric, self.has_categorical = bool(schema.numeric), bool(schema.categorical)
        self.is_wide = any(column.wide for column in schema.numeric)
        self.mean: Tensor
        self.std: Tensor
        self.limit: Tensor
        largest = float(torch.finfo(torch.float32).max)
        scales = [(c.mean, c.std, MAX_DEVIATION) if c.wide else (0.0, 1.0, largest) for c in schema.numeric]
        columns = torch.tensor(scales if self.is_wide else [], dtype=torch.float64).reshape(-1, 3)
        for name, values in zip(("mean", "std", "limit"), columns.T, strict=True):
            self.register_buffer(name, values.clone())
        self.times = CalendarParts(schema.times) if schema.times else None
        self.cardinalities = [len(column.levels) + 1 for column in schema.categorical]

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        found: list[Tensor] = []
        if self.has_numeric:
            found.append(self._numbers(inputs[0]))
        if self.times is not None:
            found.append(self.times(inputs[1 if self.has_numeric else 0]))
        if self.has_categorical:
            found += [_levels(inputs[-1][:, i : i + 1], n) for i, n in enumerate(self.cardinalities)]
        return (torch.cat(found, dim=1) if len(found) > 1 else found[0],)

    def _numbers(self, numbers: Tensor) -> Tensor:
        if not self.is_wide:
            return numbers
        is_missing = torch.isnan(numbers)
        scaled = (torch.where(is_missing, torch.zeros_like(numbers), numbers) - self.mean) / self.std
        limited = torch.minimum(torch.maximum(scaled, -self.limit), self.limit)
        return torch.where(is_missing, torch.full_like(numbers, math.nan), limited).float()


class CalendarParts(TimeParts):
    """Times to their parts `(rows, parts)` float32; missing times give NaN. Unlike a network, a tree needs no sine and cosine
    of parts that repeat."""

    def forward(self, times: Tensor) -> Tensor:
        found = [
            torch.where(is_missing, torch.full_like(value, math.nan), value).float()
            for _, _, value, is_missing in self.parts(times)
        ]
        return torch.stack(found, dim=1)


def _levels(index: Tensor, cardinality: int) -> Tensor:
    """Returns an indicator for each level `(rows, levels)` of an index `(rows, 1)`, or the index if there are too many."""
    if cardinality > MOST_INDICATORS:
        return index.float()
    return (index == torch.arange(cardinality)).float()
