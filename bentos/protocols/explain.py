"""`POST /v1/models/NAME/explain`: attributions of an answer to the parts of its instance.

Fields of a table get Shapley values. Patches of an image are covered (Zeiler & Fergus 2014); words of a text, nodes of a graph
and neighbours of a new node are left out one at a time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.graphs import GraphModel
from bentos.models.nodes import NodeModel
from bentos.models.served_model import ServedModel
from bentos.protocols.server import ModelServer
from headrace.runtime.attributions import coalitions, patches, smallest_patch, word_spans
from headrace.runtime.http import Refused, invalid_field, parse_json, read_json_body, require_json, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.violations import ContractViolation, describe

EVALUATIONS = 1000
"""Default number of rows that the model predicts for one explanation."""
MAX_EVALUATIONS = 10_000
ROWS_PER_JOB = 64
"""Rows predicted in one job, so that other requests run between two jobs."""
JOB_BYTES = 2**40
"""Size of a job for scheduling: large enough never to run on the event loop."""


class ExplainRequest(msgspec.Struct, forbid_unknown_fields=True):
    instance: dict[str, Any]
    target: str | int | None = None
    """The class or label to explain, by default the most probable one; of several values the one to explain, by default the
    first."""
    baseline: dict[str, Any] | None = None
    """For a table: the instance to compare with; by default the contract's sample."""
    evaluations: Annotated[int, Meta(ge=4, le=MAX_EVALUATIONS)] = EVALUATIONS
    seed: Annotated[int, Meta(ge=0)] = 0
    patch: Annotated[int, Meta(ge=1)] | None = None
    """For an image: the side of a patch in pixels."""


EXPECTED = (
    f'{{"instance": {{...}}}}, and optionally target, baseline, seed, patch, or evaluations from 4 to {MAX_EVALUATIONS:,}'
)


class Explanation(ABC):
    """`rows` variations of an instance, the instance itself last, and the attributions that follow from their predictions."""

    method: str
    rows: int

    @abstractmethod
    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        """Returns the model's outputs for variations `start` to `stop`, `(stop - start, ...)`."""

    @abstractmethod
    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        """Returns `attributions`, `base_value` and further fields, from the explained number of each variation `(rows,)`."""


class Explain:
    """The route of explanations for the model of `app`."""

    def __init__(self, app: ModelServer) -> None:
        self.app = app
        self.routes = [Route("/v1/models/{name}/explain", self.explain, methods=["POST"])]

    async def explain(self, request: TrackedRequest) -> Response:
        """Takes `{"instance", "target", "baseline", "evaluations", "seed", "patch"}`; only the first is required.

        Answers `{"id", "model", "version", "request_id", "method", "target", "value", "base_value", "attributions",
        "evaluations"}`. `value` is the probability of `target`, or its predicted value. `evaluations`, the rows
        that the model predicted for it, count as usage of the caller.
        """
        model = self.app.model_for(request, request.path_params["name"])
        require_json(request)
        with self.app.body_memory() as reserve:
            body = await read_json_body(request, reserve)
            try:
                asked = _read(await self.app.convert(len(body), lambda: parse_json(body)))
                explanation = await self.app.run(JOB_BYTES, lambda: explanation_for(model, asked))
                await self.app.take_quota(request, explanation.rows)
                outputs = [await self._outputs(explanation, start) for start in range(0, explanation.rows, ROWS_PER_JOB)]
                target, values = _explained(model, asked, np.concatenate(outputs))
            except ContractViolation as violation:
                raise invalid_field(violation.path, violation.expected, violation.got) from None
        found = {"target": target, "value": float(values[-1]), **explanation.attribute(values), "evaluations": explanation.rows}
        self.app.record_usage(request, rows=explanation.rows)
        request_id = request.request_id
        identity = {"id": f"{model.name}@{model.version}:{request_id}", "model": model.name, "version": model.version}
        return to_json({**identity, "request_id": request_id, "method": explanation.method, **found})

    async def _outputs(self, explanation: Explanation, start: int) -> NDArray[Any]:
        return await self.app.run(JOB_BYTES, lambda: explanation.outputs(start, min(start + ROWS_PER_JOB, explanation.rows)))


def explanation_for(model: ServedModel, asked: ExplainRequest) -> Explanation:
    """Chooses how the answer of this model is explained.

    Raises:
        ContractViolation: the instance or another field is invalid.
        Refused: 422, answers of this model cannot be explained.
    """
    if isinstance(model, GraphModel):
        explanation: Explanation = _nodes_of(model, asked)
    elif isinstance(model, NodeModel):
        explanation = _neighbours_of(model, asked)
    elif type(model).predict is not ServedModel.predict or model.contract.output == "text":
        raise Refused(
            422, "no_explanation", f"answers of {model.name!r} cannot be explained: they are neither a class nor a number"
        )
    else:
        fields = model.contract.inputs
        explanation_class: type[_Fields | _Patches | _Words] = _Fields
        if len(fields) == 1 and (len(fields[0].shape) == 2 or fields[0].picture is not None):
            explanation_class = _Patches
        elif len(fields) == 1 and fields[0].tokens is not None:
            explanation_class = _Words
        explanation = explanation_class(model, asked)
    for name, of in (("baseline", _Fields), ("patch", _Patches)):
        if getattr(asked, name) is not None and not isinstance(explanation, of):
            raise ContractViolation(name, "no value, for this model", "a value")
    return explanation


class _Fields(Explanation):
    """Shapley values of a table's fields."""

    def __init__(self, model: ServedModel, asked: ExplainRequest) -> None:
        self._run = model.run
        baseline = model.contract.sample if asked.baseline is None else asked.baseline
        self._instance = _feeds(model, asked.instance, "instance")
        self._baseline = _feeds(model, baseline, "baseline")
        self._asked = coalitions(len(self._instance), asked.evaluations, asked.seed)
        self.rows = len(self._asked.present)
        self.method = "Shapley values" if self._asked.orders is None else "Shapley values, sampled"

    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        feeds = {}
        for (name, value), present in zip(self._instance.items(), self._asked.present[start:stop].T, strict=True):
            chosen = present.reshape(-1, *[1] * (value.ndim - 1))
            feeds[name] = np.where(chosen, value, self._baseline[name])
        return self._run(feeds)

    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        found, error = self._asked.attribute(values)
        named = dict(zip(self._instance, found.tolist(), strict=True))
        errors = {name: None if math.isnan(e) else e for name, e in zip(self._instance, error.tolist(), strict=True)}
        return {"base_value": float(values[0]), "attributions": named, "standard_errors": errors}


class _Patches(Explanation):
    """Occlusion of an image's patches: how much the value falls when one is covered by the image's median."""

    method = "occlusion"

    def __init__(self, model: ServedModel, asked: ExplainRequest) -> None:
        self._run = model.run
        ((self._name, images),) = _feeds(model, asked.instance, "instance").items()
        self._image = images[0]
        height, width = self._image.shape[:2]
        self._side = asked.patch or smallest_patch(height, width, asked.evaluations - 2)
        self._patches = patches(height, width, self._side)
        self._across = math.ceil(width / self._side)
        self.rows = len(self._patches) + 2
        if self.rows > asked.evaluations:
            expected = f"patches of which at most {asked.evaluations - 2} (evaluations less 2) cover {height} x {width} pixels"
            raise ContractViolation("patch", expected, f"{self._side}")

    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        images = np.repeat(self._image[None], stop - start, axis=0)
        cover = np.median(self._image, axis=(0, 1)).astype(self._image.dtype)  # of each colour
        for image, row in zip(images, range(start, stop), strict=True):
            if row == 0:
                image[:] = cover
            elif row <= len(self._patches):
                image[self._patches[row - 1]] = cover
        return self._run({self._name: images})

    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        fall = (values[-1] - values[1:-1]).reshape(-1, self._across)
        return {"base_value": float(values[0]), "attributions": fall.tolist(), "patch": self._side}


class _Words(Explanation):
    """Words of a text: how much the value falls when one is left out."""

    method = "leave one word out"

    def __init__(self, model: ServedModel, asked: ExplainRequest) -> None:
        self._run = model.run
        ((self._name, texts),) = _feeds(model, asked.instance, "instance").items()
        self._text: str = texts[0]
        self._spans = word_spans(self._text, asked.evaluations - 2)
        self.rows = len(self._spans) + 2

    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        texts = ["", *(self._text[:begin] + self._text[end:] for begin, end in self._spans), self._text]
        return self._run({self._name: np.array(texts[start:stop], dtype=object)})

    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        found = zip(self._spans, (values[-1] - values[1:-1]).tolist(), strict=True)
        spans = [
            {"start": begin, "end": end, "text": self._text[begin:end], "attribution": fall} for (begin, end), fall in found
        ]
        return {"base_value": float(values[0]), "attributions": spans}


class _LeaveOneOut(Explanation):
    """Parts of an instance: how much the value falls when one is left out."""

    def __init__(
        self, model: ServedModel, asked: ExplainRequest, method: str, parts: int, without: Callable[[int], Any]
    ) -> None:
        self.method = method
        self._model = model
        self._parts = parts
        self._instance_without = without
        self._instance = asked.instance
        self.rows = parts + 1
        if self.rows > asked.evaluations:
            raise ContractViolation("evaluations", f"at least {self.rows} for this instance", f"{asked.evaluations}")

    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        instances = [self._instance_without(i) if i < self._parts else self._instance for i in range(start, stop)]
        answers = self._model.predict(instances)
        return np.array([list(answer["probabilities"].values()) for answer in answers])

    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        return {"base_value": None, "attributions": (values[-1] - values[:-1]).tolist()}


def _nodes_of(model: ServedModel, asked: ExplainRequest) -> Explanation:
    """Leaves out each node of a graph in turn, with its edges."""
    graph = asked.instance

    def without(node: int) -> dict[str, Any]:
        kept = [edge for edge in graph.get("edges") or [] if node not in edge]
        edges = [[end - (end > node) for end in edge] for edge in kept]
        return {"nodes": graph["nodes"][:node] + graph["nodes"][node + 1 :], "edges": edges}

    _check(model, graph)
    if len(graph["nodes"]) < 2:
        raise ContractViolation("instance.nodes", "two nodes or more, to leave one out", "1 node")
    return _LeaveOneOut(model, asked, "leave one node out", len(graph["nodes"]), without)


def _neighbours_of(model: ServedModel, asked: ExplainRequest) -> Explanation:
    """Leaves out each neighbour of a new node in turn."""
    _check(model, asked.instance)
    given = asked.instance.get("neighbours")
    names = given.split() if isinstance(given, str) else given
    if asked.instance.get("features") is None or not names:
        raise ContractViolation("instance", "features and neighbours, each of which is left out in turn", "none")
    return _LeaveOneOut(
        model,
        asked,
        "leave one neighbour out",
        len(names),
        lambda i: {**asked.instance, "neighbours": names[:i] + names[i + 1 :]},
    )


def _check(model: ServedModel, instance: dict[str, Any]) -> None:
    """Predicts the instance first, so that any contract violation is found before its parts are left out."""
    try:
        model.predict([instance])
    except ContractViolation as violation:
        path = violation.path.replace("instances.0", "instance", 1)
        raise ContractViolation(path, violation.expected, violation.got) from None


def _read(payload: Any) -> ExplainRequest:
    if not isinstance(payload, dict):
        raise ContractViolation("body", 'an object such as {"instance": {...}}', describe(payload))
    try:
        return msgspec.convert(payload, ExplainRequest)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise ContractViolation(path.rstrip("`") or "body", EXPECTED, message) from None


def _feeds(model: ServedModel, instance: dict[str, Any], start: str) -> dict[str, NDArray[Any]]:
    try:
        return model.to_feeds([instance])
    except ContractViolation as violation:
        path = violation.path.replace("instances.0", start, 1)
        raise ContractViolation(path, violation.expected, violation.got) from None


def _explained(model: ServedModel, asked: ExplainRequest, outputs: NDArray[Any]) -> tuple[Any, NDArray[np.float64]]:
    """Returns the explained class or target, and its number in each output `(rows,)`."""
    labels = model.contract.labels
    if model.contract.output == "values":
        targets = model.contract.targets or []
        if asked.target is not None and asked.target not in targets:
            raise ContractViolation("target", f"one of {', '.join(targets[:20])}", describe(asked.target))
        place = 0 if asked.target is None else targets.index(str(asked.target))
        return targets[place], outputs[:, place].astype(np.float64)
    if model.contract.output not in ("probabilities", "labels") or labels is None:
        if asked.target is not None:
            raise ContractViolation("target", "no value, for a regression", describe(asked.target))
        return model.contract.target, outputs.reshape(len(outputs), -1)[:, 0].astype(np.float64)
    target = labels[int(outputs[-1].argmax())] if asked.target is None else asked.target
    names = [str(label) for label in labels]
    if str(target) not in names:
        raise ContractViolation("target", f"one of {', '.join(names[:20])}", describe(target))
    place = names.index(str(target))
    return labels[place], outputs[:, place].astype(np.float64)
