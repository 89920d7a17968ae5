"""The schema: what preprocessing learned from the training rows, and the shape for which a model is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

IGNORED = -100
"""Target where no token follows; torch's own choice for losses."""


class PretrainedBase(BaseModel):
    """A pretrained encoder, without its weights."""

    model_config = ConfigDict(frozen=True)
    config: dict[str, Any]
    """Its configuration, as `transformers` writes it."""
    start: int
    end: int
    """Tokens before and after each text."""
    sha256: str
    """Of configuration, tokenizer and weights."""


class Shape(BaseModel):
    """Sizes of a model's inputs and outputs."""

    model_config = ConfigDict(frozen=True)
    image: tuple[int, int, int] | None = None
    """Channels, height, width."""
    numeric: int = 0
    """Number of numeric columns."""
    cardinalities: tuple[int, ...] = ()
    """Number of entries in each categorical column's vocabulary, including 0 for unknown."""
    vocabulary: int = 0
    """Number of tokens in the vocabulary of texts, including the special ones."""
    length: int = 0
    """Maximum number of tokens in a text."""
    answer_length: int = 0
    """Maximum number of tokens in a text that is the answer."""
    features: int = 0
    """Number of features of a graph's node."""
    whole: bool = False
    """Whether there is one answer for a whole graph instead of one for each node."""
    outputs: int = 1
    """Number of classes or labels, or of values for a regression."""
    independent: bool = Field(default=False, exclude_if=lambda value: not value)
    """Whether each output is a label of its own, instead of a class among others: an ensemble averages accordingly."""
    base: PretrainedBase | None = Field(default=None, exclude_if=lambda value: value is None)
    """The pretrained encoder that the model adapts."""


class Numeric(BaseModel):
    """A numeric column, as seen in the training rows."""

    model_config = ConfigDict(frozen=True)
    name: str
    mean: float
    std: float
    nullable: bool
    """Missing values are filled with the mean."""
    boolean: bool = False
    """Values are true and false, encoded as 1 and 0."""
    wide: bool = False
    """float32 could not tell the values apart: they are close together and far from zero."""
    low: float | None = None
    high: float | None = None
    """Smallest and largest value."""


class Categorical(BaseModel):
    """A categorical column; level i has index i + 1, and 0 means unknown."""

    model_config = ConfigDict(frozen=True)
    name: str
    levels: list[str]
    nullable: bool


class Scale(BaseModel):
    """Mean and deviation of a number in the training rows."""

    model_config = ConfigDict(frozen=True)
    mean: float = 0.0
    std: float = 1.0


class Time(BaseModel):
    """A column of times; the network gets features of it."""

    model_config = ConfigDict(frozen=True)
    name: str
    features: list[str]
    """Parts, as `headrace.recipe.columns.TimePart` names them."""
    since: str | None = None
    """The column from which `elapsed` counts, if it counts from one."""
    reference: float = 0.0
    """The moment from which `elapsed` counts otherwise, in seconds since 1970."""
    scales: dict[str, Scale] = {}
    """Of `year` and `elapsed` (in days), by part."""
    nullable: bool = False
    low: float = 0.0
    high: float = 0.0
    """First and last time in the training rows, in seconds since 1970."""


class Schema(BaseModel):
    """Everything that preprocessing learned, from the training rows only."""

    model_config = ConfigDict(frozen=True)
    shape: Shape
    numeric: list[Numeric] = []
    categorical: list[Categorical] = []
    times: list[Time] = []
    labels: list[str | int] | None = None
    target_mean: float = 0.0
    target_std: float = 1.0
    """Mean and deviation of the target, after its transform."""
    target_transform: str | None = None
    tokenizer: str | None = None
    """For texts: the tokenizer, in the format of the `tokenizers` library (tokenizer.json)."""
    extra: dict[str, Any] = {}
    """Anything else that a task type learned, custom ones included."""

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Schema:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
