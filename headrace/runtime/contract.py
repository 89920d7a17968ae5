"""Inputs and outputs of a model, shared by training and serving. Light: numpy and pydantic (Pillow for images).

A contract is stored beside every served graph as `contract.json`. Clients send *instances*, one mapping of field names to
values for each row; the graph takes *feeds*, one array for each field with the rows first.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from headrace.runtime.input_field import InputField
from headrace.runtime.unseen_values import MAX_WARNINGS, UnseenValues, unseen_values
from headrace.runtime.violations import ContractViolation, describe

Feeds = dict[str, NDArray[Any]]
RENAMED_CLASSES = {
    "bentos.model:ServedModel": "bentos.models.onnx_model:OnnxModel",
    "bentos.graph:NodeModel": "bentos.models.nodes:NodeModel",
    "bentos.graphs:GraphModel": "bentos.models.graphs:GraphModel",
    "bentos.text:TextModel": "bentos.models.text:TextModel",
    "bentos.generation:GenerationModel": "bentos.models.generation:GenerationModel",
    "bentos.summaries:SummaryModel": "bentos.models.summaries:SummaryModel",
}
"""Old to new names of served classes: the contract of a registered version has the name that was current at its training."""


class Contract(BaseModel):
    """The interface of one model version: its inputs, its output, and the class that serves it."""

    model_config = ConfigDict(frozen=True)
    model: str
    """The recipe's name."""
    task: str
    inputs: list[InputField]
    output: Literal["probabilities", "value", "text", "labels", "values"]
    """`probabilities`: the graph returns `(rows, classes)`; `value`: `(rows,)`, or `(rows, 3)` with an `interval`; `text`: the
    served class generates it; `labels`: a probability of its own for each label, `(rows, labels)`; `values`: one for each of
    `targets`, `(rows, targets)`."""
    interval: float | None = None
    """Coverage of a prediction interval, from 0 to 1; then the graph returns `(rows, 3)`: value, lower and upper bound."""
    quantiles: list[float] | None = Field(default=None, exclude_if=lambda value: value is None)
    """Quantiles beside the value; then the graph returns `(rows, 1 + quantiles)`: the value, and the quantiles in order."""
    temperature: float | None = None
    """Divisor of the logits, fitted on validation rows to calibrate probabilities."""
    labels: list[str | int] | None = None
    """Names of classes or labels in the order of the graph's output, for classification."""
    thresholds: list[float] | None = Field(default=None, exclude_if=lambda value: value is None)
    """For `labels`: the probability from which each label is given."""
    targets: list[str] | None = Field(default=None, exclude_if=lambda value: value is None)
    """For `values`: the predicted columns, in the order of the graph's output."""
    target: str
    """The predicted column; the name of a regression's answer."""
    sample: dict[str, Any] = Field(description="A valid instance, taken from the test rows.")
    examples: list[dict[str, Any]] = []
    """Further valid instances, if there are several kinds of queries."""
    personal: list[str] = Field(default=[], exclude_if=lambda value: not value)
    """Inputs with personal data, which samples of requests never hold."""
    unknown: Literal["warn", "refuse"] = "warn"
    """What happens to values that no training row had: an answer with a warning, or a refusal."""
    served_by: str = "bentos.models.onnx_model:OnnxModel"
    """The class that serves the model, `module:class`."""
    threads: int = 1
    """Threads of the runtime."""
    context: int | None = Field(default=None, exclude_if=lambda value: value is None)
    """For language models of llama.cpp: tokens of a prompt and its answer together; by default what the model says itself."""
    parallel: int | None = Field(default=None, exclude_if=lambda value: value is None)
    """For language models of llama.cpp: requests that are answered at once."""

    @field_validator("served_by")
    @classmethod
    def _current_name(cls, served_by: str) -> str:
        return RENAMED_CLASSES.get(served_by, served_by)

    def to_feeds(self, instances: list[Any], start: str = "instances") -> Feeds:
        """Converts instances to arrays for the graph; `start` is the beginning of paths in errors.

        Raises:
            ContractViolation: a field is missing, unknown, or has an invalid value.
        """
        names = {field.name for field in self.inputs}
        for i, instance in enumerate(instances):
            if not isinstance(instance, dict):
                raise ContractViolation(
                    f"{start}.{i}", "an object with the fields " + ", ".join(sorted(names)), describe(instance)
                )
            for extra in instance.keys() - names:
                raise ContractViolation(
                    f"{start}.{i}.{extra}", "one of the fields " + ", ".join(sorted(names)), "an unknown field"
                )
            for field in self.inputs:
                if field.name not in instance and not field.nullable and field.default is None:
                    expected = field.rule.expected if field.is_time and field.rule is not None else field.dtype
                    raise ContractViolation(f"{start}.{i}.{field.name}", expected, "nothing")
        feeds = {field.name: field.to_array([row.get(field.name) for row in instances], start) for field in self.inputs}
        self.check_seen(feeds, start)
        return feeds

    def unseen(self, feeds: Feeds, most: int | None = MAX_WARNINGS) -> UnseenValues:
        """Returns the values of `feeds` that no training row had; it names at most `most` of them, all if it is None."""
        return unseen_values(self.inputs, feeds, most)

    def check_seen(self, feeds: Feeds, start: str) -> None:
        """Refuses values that no training row had, if the contract says so; `start` is the beginning of the path in the error.

        Raises:
            ContractViolation: there is such a value.
        """
        if self.unknown == "refuse" and (found := self.unseen(feeds).values):
            first = found[0]
            raise ContractViolation(
                f"{start}.{first.row}.{first.field}", f"a value of the training data, {first.expected}", first.got
            )

    @property
    def answer_shape(self) -> tuple[int, ...]:
        """Shape of one row of the graph's output."""
        if self.output in ("probabilities", "labels"):
            return (len(self.labels or ()),)
        if self.output == "values":
            return (len(self.targets or ()),)
        if self.quantiles is not None:
            return (1 + len(self.quantiles),)
        return () if self.interval is None else (3,)

    @property
    def fields_of_columns(self) -> dict[str, str]:
        """The field that each column of the training data with another name is."""
        return {field.column: field.name for field in self.inputs if field.column is not None}

    def to_answers(self, outputs: NDArray[Any]) -> list[dict[str, Any]]:
        """Converts the graph's output to answers: a label or labels with probabilities, or values."""
        if self.output == "values":
            return [dict(zip(self.targets or (), row, strict=True)) for row in outputs.astype(float).tolist()]
        if self.output == "labels":
            return [
                {"labels": given, "probabilities": dict(zip(_as_text(tuple(self.labels or ())), row, strict=True))}
                for given, row in zip(self.labels_of(outputs), outputs.astype(float).round(6).tolist(), strict=True)
            ]
        if self.output == "value" and self.quantiles is not None:
            names = [f"{level:g}" for level in self.quantiles]
            return [
                {self.target: value, "quantiles": dict(zip(names, found, strict=True))}
                for value, *found in outputs.astype(float).tolist()
            ]
        if self.output == "value" and self.interval is not None:
            return [{self.target: value, "interval": [low, high]} for value, low, high in outputs.astype(float).tolist()]
        if self.output == "value":
            return [{self.target: float(value)} for value in outputs]
        assert self.labels is not None
        labels, names = self.labels, _as_text(tuple(self.labels))
        return [
            {"label": labels[best], "probabilities": dict(zip(names, [round(p, 6) for p in row], strict=True))}
            for best, row in zip(outputs.argmax(axis=1).tolist(), outputs.tolist(), strict=True)
        ]

    def labels_of(self, outputs: NDArray[Any]) -> list[list[str | int]]:
        """Returns the labels of each row whose probability `(rows, labels)` reaches the label's threshold."""
        labels = self.labels or []
        given = outputs >= np.array(self.thresholds or [0.5] * len(labels))
        return [[labels[i] for i in np.flatnonzero(row)] for row in given]

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Contract:
        return cls.model_validate_json(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _as_text(labels: tuple[str | int, ...]) -> list[str]:
    return [str(label) for label in labels]
