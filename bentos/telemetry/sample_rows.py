"""What a sample keeps of a row: numbers and categories as the model got them, the beginning of texts, a summary of a picture,
and of a graph the number of its parts. Never a personal field.

`SampleEncoder` runs in the writer's thread, for the few rows that are taken; no answer waits for it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from bentos.models.graphs import GraphModel
from bentos.models.nodes import NodeModel
from bentos.models.served_model import ServedModel
from bentos.telemetry.records import MAX_ANSWERS
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.images import FORMATS, MAX_FILE_BYTES, MAX_PIXELS, InvalidImage, open_picture
from headrace.runtime.sample_file import TEXT_CHARACTERS
from headrace.runtime.thumbnail import thumbnail, to_text

ROW_BYTES = 64 * 1024
"""Largest row of a sample, encoded."""
ROW_OVERHEAD_BYTES = 1000
"""What a row takes in memory beside its texts and pictures, about."""
MOST_PROBABILITIES = 100
"""Labels whose probabilities are kept."""
ITEM_BYTES = 100
"""What an item of a list takes in memory, about."""
HEADER_CHARACTERS = 256 * 1024
"""What is kept of a picture's file until its size is read: a JPEG has it behind its metadata."""


class SampledRow(NamedTuple):
    """One row of a request, as it is taken; `SampleEncoder` makes a line of it later, in another thread."""

    at: float
    """Seconds since 1970."""
    request_id: str
    tenant: str
    row: int
    inputs: Mapping[str, Any]
    """The row's part of the feeds, or its instance where the model does not get feeds."""
    answer: Any
    """As in an answer of `/v1`; None for a stream."""
    is_instance: bool

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        found = ROW_OVERHEAD_BYTES
        for value in self.inputs.values():  # a loop: this runs on the event loop
            kind = type(value)
            if kind is Picture:
                found += value.pixels.nbytes + len(value.file)
            elif kind is str or kind is bytes:
                found += len(value)
            elif kind is np.ndarray:
                found += value.nbytes
            elif kind is list or kind is dict:
                found += len(value) * ITEM_BYTES
        return found


class Picture(NamedTuple):
    """A picture until it is summarised."""

    pixels: NDArray[Any]
    """As the model got them."""
    file: str | bytes
    """The beginning of the client's file, in base64 if it is a text; empty if the client sent pixels."""


def row_of_feeds(feeds: Feeds, row: int, instance: Any = None) -> dict[str, Any]:
    """Returns a row of the feeds, copied: a view would keep all rows of the request in memory.

    Args:
        instance: the same row as the client sent it, for the size of a picture's file.
    """
    found: dict[str, Any] = {}
    for name, values in feeds.items():
        value = values[row]
        if isinstance(value, np.ndarray):
            sent = instance.get(name) if isinstance(instance, dict) else None
            file = sent[:HEADER_CHARACTERS] if isinstance(sent, str | bytes) else b""
            value = Picture(value.copy(), file) if value.ndim > 1 else value.copy()
        found[name] = value
    return found


class SampleEncoder:
    """Encodes rows of one model as lines of JSON."""

    def __init__(self, model: ServedModel) -> None:
        self._contract: Contract = model.contract
        self._personal = frozenset(model.contract.personal)
        self._texts = {field.name for field in model.contract.inputs if field.dtype == "string" and field.levels is None}
        self._is_graph = isinstance(model, NodeModel | GraphModel)

    def without_personal(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the fields that may be kept."""
        if not self._personal:
            return inputs
        return {name: value for name, value in inputs.items() if name not in self._personal}

    def encode(self, sampled: SampledRow) -> bytes | None:
        """Returns the line of a row, without its end; None if it is too large.

        Raises:
            ValueError: the instance does not fit the contract, which only a model with a `predict` of its own accepts.
        """
        answer, confidence = self.answer_of(sampled.answer)
        row = {
            "at": round(sampled.at, 3),
            "id": sampled.request_id,
            "row": sampled.row,
            "tenant": sampled.tenant,
            "inputs": self._inputs_of(sampled),
            "answer": answer,
            "confidence": confidence,
        }
        if probabilities := self._probabilities_of(sampled.answer):
            row["probabilities"] = probabilities
        line = _encode(row)
        return line if len(line) <= ROW_BYTES else None

    def answer_of(self, answer: Any) -> tuple[Any, float | None]:
        """Returns what was answered, and the probability of that: of a label its own, of several labels the mean over all
        labels of the probability that each was given or left out rightly."""
        contract = self._contract
        if not isinstance(answer, dict):
            return (None if answer is None else _short(answer)), None
        if contract.output == "text":
            return self._text_answer(answer), None
        if contract.output == "values":
            return {name: answer.get(name) for name in contract.targets or ()}, None
        if contract.output == "value":
            return _short(answer.get(contract.target)), None
        if isinstance(nodes := answer.get("nodes"), list):  # of a whole graph
            return [node.get("label") for node in nodes[:MAX_ANSWERS]], None
        probabilities = answer.get("probabilities")
        found = list(probabilities.values()) if isinstance(probabilities, dict) else []
        if contract.output == "probabilities":
            return _short(answer.get("label")), max(found, default=None)
        given = {str(label) for label in answer.get("labels") or ()}
        if not isinstance(probabilities, dict) or not found:
            return answer.get("labels"), None
        right = sum(p if label in given else 1.0 - p for label, p in probabilities.items())
        return answer.get("labels"), round(right / len(found), 6)

    def _probabilities_of(self, answer: Any) -> list[float] | None:
        """Returns the probabilities of all labels in the contract's order, of at most `MOST_PROBABILITIES`: the quality is
        estimated from them."""
        labels = self._contract.labels or ()
        given = answer.get("probabilities") if isinstance(answer, dict) else None
        if not isinstance(given, dict) or len(given) != len(labels) or len(labels) > MOST_PROBABILITIES:
            return None
        return list(given.values())

    def _text_answer(self, answer: Mapping[str, Any]) -> Any:
        """A generated text may repeat its input: where a field is personal, only its length is kept."""
        text = next((value for value in answer.values() if isinstance(value, str)), "")
        return {"characters": len(text)} if self._personal else _text(text)

    def _inputs_of(self, sampled: SampledRow) -> dict[str, Any]:
        if not sampled.is_instance:
            return {name: self._value(name, value) for name, value in sampled.inputs.items()}
        if self._is_graph:
            return {name: {"size": _parts(value)} for name, value in sampled.inputs.items() if value is not None}
        names = [field.name for field in self._contract.inputs if field.name not in self._personal]
        fields = [field for field in self._contract.inputs if field.name in names]
        instances = [dict(sampled.inputs)]
        feeds = self._contract.model_copy(update={"inputs": fields, "unknown": "warn"}).to_feeds(instances)
        return {name: self._value(name, value) for name, value in row_of_feeds(feeds, 0, sampled.inputs).items()}

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, Picture):
            return _picture(value)
        if isinstance(value, np.ndarray):
            return {"mean": _number(np.mean(value, dtype=np.float64)), "std": _number(np.std(value, dtype=np.float64))}
        if isinstance(value, str):
            return _text(value) if name in self._texts else value[:TEXT_CHARACTERS]
        return _number(value)


def _text(text: str) -> dict[str, Any]:
    return {"text": text[:TEXT_CHARACTERS], "characters": len(text)}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT_CHARACTERS]
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any) -> float | int | None:
    """Returns a number of numpy as Python's, of 32 bits with the digits that it has; None for a missing one."""
    if isinstance(value, np.float32):
        value = float(str(value))
    found = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _picture(picture: Picture) -> dict[str, Any]:
    """Returns brightness and contrast, the mean and standard deviation of the pixels as the model got them, the width and
    height of the client's file, or of the pixels if it sent none, and a thumbnail of the pixels."""
    pixels = picture.pixels
    width, height = _size_of_file(picture.file) or (pixels.shape[1], pixels.shape[0])
    values = pixels.astype(np.float64).ravel()  # several times faster than np.std for small pictures
    mean = float(values.sum()) / len(values)
    values -= mean
    return {
        "brightness": round(mean, 3),
        "contrast": round(math.sqrt(float(values @ values) / len(values)), 3),
        "width": width,
        "height": height,
        "thumbnail": to_text(thumbnail(pixels)),
    }


def _size_of_file(beginning: str | bytes) -> tuple[int, int] | None:
    """Returns the width and height of a picture's file from its beginning; None if it is none, or they come later."""
    if not beginning:
        return None
    try:
        raw = beginning if isinstance(beginning, bytes) else _from_base64(beginning)
        return open_picture(raw, FORMATS, MAX_FILE_BYTES, MAX_PIXELS).size
    except (ValueError, InvalidImage):
        return None


def _from_base64(text: str) -> bytes:
    text = text.partition(";base64,")[2] if text.startswith("data:") else text
    text = "".join(text.split())
    return base64.urlsafe_b64decode(text[: len(text) // 4 * 4].replace("+", "-").replace("/", "_"))


def _parts(value: Any) -> int:
    """Returns the number of parts of a list, or of names in a text."""
    if isinstance(value, str):
        return len(value.split())
    if isinstance(value, dict):  # features that are present
        return sum(map(_parts, value.values()))
    return len(value) if isinstance(value, Sequence) else 1


_encode = msgspec.json.Encoder().encode
