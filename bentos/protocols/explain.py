"""`POST /v1/models/NAME/explain`: which parts of an instance an answer rests on.

A table's fields share the credit by Shapley values; of an image patches are covered (Zeiler & Fergus 2014), of a text words
are left out, of a graph nodes, of a new node its neighbours.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.graphs import GraphModel
from bentos.models.nodes import NodeModel
from bentos.models.served_model import ServedModel
from headrace.runtime.attributions import coalitions, patches, smallest_patch, word_spans
from headrace.runtime.contract import ContractViolation, describe
from headrace.runtime.http import Refused, parse_json, read_json_body, require_json, to_json

if TYPE_CHECKING:
    from bentos.app import PredictionApp

EVALUATIONS = 1000
"""Rows that the model answers for one explanation, unless the client asks for another number."""
MOST_EVALUATIONS = 10_000
ROWS_AT_ONCE = 64
"""So many are answered in one job: others have their turn between two."""
JOB_BYTES = 2**40
"""What a job counts as: none is small."""


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    instance: dict[str, Any]
    target: str | int | None = None
    """The class to explain; the likeliest when it is not given."""
    baseline: dict[str, Any] | None = None
    """Of a table: the instance that this one is compared with; the contract's sample when it is not given."""
    evaluations: Annotated[int, Meta(ge=4, le=MOST_EVALUATIONS)] = EVALUATIONS
    seed: Annotated[int, Meta(ge=0)] = 0
    patch: Annotated[int, Meta(ge=1)] | None = None
    """Of an image: the side of a patch in pixels."""


EXPECTED = (
    '{"instance": {...}}, and beside it perhaps target, baseline, seed, patch, or evaluations '
    f"from 4 to {MOST_EVALUATIONS:,}"
)


class Plan(ABC):
    """What to ask a model, `rows` questions, the instance itself the last; and what its answers say."""

    method: str
    rows: int

    @abstractmethod
    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        """The model's answers to some of the questions, `(rows, ...)`."""

    @abstractmethod
    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        """`attributions`, `base_value` and what else there is to say, from the explained number of each answer `(rows,)`."""


class Explain:
    """The route of explanations, for the model that `app` holds."""

    def __init__(self, app: PredictionApp) -> None:
        self.app = app
        self.routes = [Route("/v1/models/{name}/explain", self.explain, methods=["POST"])]

    async def explain(self, request: Request) -> Response:
        """`{"instance", "target", "baseline", "evaluations", "seed", "patch"}`, all but the first may be left out.

        Answers `{"id", "model", "version", "request_id", "method", "target", "value", "base_value", "attributions",
        "evaluations"}`. `value` is the probability of `target`, or the predicted value. The rows that the model answers for it,
        `evaluations`, count as the caller's.
        """
        model = self.app.model_for(request, request.path_params["name"])
        require_json(request)
        with self.app.held_body() as hold:
            body = await read_json_body(request, hold)
            try:
                asked = _read(await self.app.convert(len(body), lambda: parse_json(body)))
                plan = await self.app.work(JOB_BYTES, lambda: plan_of(model, asked))
                await self.app.spend(request, plan.rows)
                outputs = [await self._ask(plan, start) for start in range(0, plan.rows, ROWS_AT_ONCE)]
                target, values = _explained(model, asked, np.concatenate(outputs))
            except ContractViolation as violation:
                raise _refusal(violation) from None
        found = {"target": target, "value": float(values[-1]), **plan.attribute(values), "evaluations": plan.rows}
        self.app.account(request, rows=plan.rows)
        request_id = request.state.request_id
        identity = {"id": f"{model.name}@{model.version}:{request_id}", "model": model.name, "version": model.version}
        return to_json({**identity, "request_id": request_id, "method": plan.method, **found})

    async def _ask(self, plan: Plan, start: int) -> NDArray[Any]:
        return await self.app.work(JOB_BYTES, lambda: plan.outputs(start, min(start + ROWS_AT_ONCE, plan.rows)))


def plan_of(model: ServedModel, asked: Asked) -> Plan:
    """How this model's answer to this instance is explained.

    Raises:
        ContractViolation: the instance, or what is asked beside it.
        Refused: 422, answers of this model cannot be explained.
    """
    if isinstance(model, GraphModel):
        plan: Plan = _nodes_of(model, asked)
    elif isinstance(model, NodeModel):
        plan = _neighbours_of(model, asked)
    elif type(model).predict is not ServedModel.predict or model.contract.output == "text":
        raise Refused(422, "no_explanation", f"answers of {model.name!r} cannot be explained: they are no class and no number")
    else:
        fields = model.contract.inputs
        kind: type[_Fields | _Patches | _Words] = _Fields
        if len(fields) == 1 and len(fields[0].shape) == 2:
            kind = _Patches
        elif len(fields) == 1 and fields[0].tokens is not None:
            kind = _Words
        plan = kind(model, asked)
    for name, of in (("baseline", _Fields), ("patch", _Patches)):
        if getattr(asked, name) is not None and not isinstance(plan, of):
            raise ContractViolation(name, "nothing, for this model", "a value")
    return plan


class _Fields(Plan):
    """A table's fields, by Shapley values."""

    def __init__(self, model: ServedModel, asked: Asked) -> None:
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


class _Patches(Plan):
    """An image's patches: how much the value falls when one is covered by the image's median."""

    method = "occlusion"

    def __init__(self, model: ServedModel, asked: Asked) -> None:
        self._run = model.run
        ((self._name, images),) = _feeds(model, asked.instance, "instance").items()
        self._image = images[0]
        height, width = self._image.shape
        self._side = asked.patch or smallest_patch(height, width, asked.evaluations - 2)
        self._patches = patches(height, width, self._side)
        self._across = math.ceil(width / self._side)
        self.rows = len(self._patches) + 2
        if self.rows > asked.evaluations:
            expected = f"patches of which at most {asked.evaluations - 2} (evaluations less 2) cover {height} x {width} pixels"
            raise ContractViolation("patch", expected, f"{self._side}")

    def outputs(self, start: int, stop: int) -> NDArray[Any]:
        images = np.repeat(self._image[None], stop - start, axis=0)
        cover = np.median(self._image).astype(self._image.dtype)
        for image, row in zip(images, range(start, stop), strict=True):
            if row == 0:
                image[:] = cover
            elif row <= len(self._patches):
                image[self._patches[row - 1]] = cover
        return self._run({self._name: images})

    def attribute(self, values: NDArray[np.float64]) -> dict[str, Any]:
        fall = (values[-1] - values[1:-1]).reshape(-1, self._across)
        return {"base_value": float(values[0]), "attributions": fall.tolist(), "patch": self._side}


class _Words(Plan):
    """A text's words: how much the value falls when one is left out."""

    method = "leave one word out"

    def __init__(self, model: ServedModel, asked: Asked) -> None:
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


class _Parts(Plan):
    """Instances that each lack one of `parts`: how much the value falls."""

    def __init__(self, model: ServedModel, asked: Asked, method: str, parts: int, without: Callable[[int], Any]) -> None:
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


def _nodes_of(model: ServedModel, asked: Asked) -> Plan:
    """A graph without each of its nodes in turn, and without that node's edges."""
    graph = asked.instance

    def without(node: int) -> dict[str, Any]:
        kept = [edge for edge in graph.get("edges") or [] if node not in edge]
        edges = [[end - (end > node) for end in edge] for edge in kept]
        return {"nodes": graph["nodes"][:node] + graph["nodes"][node + 1 :], "edges": edges}

    _check(model, graph)
    if len(graph["nodes"]) < 2:
        raise ContractViolation("instance.nodes", "two nodes or more, to leave one out", "1 node")
    return _Parts(model, asked, "leave one node out", len(graph["nodes"]), without)


def _neighbours_of(model: ServedModel, asked: Asked) -> Plan:
    """A new node without each of its neighbours in turn."""
    _check(model, asked.instance)
    given = asked.instance.get("neighbours")
    names = given.split() if isinstance(given, str) else given
    if asked.instance.get("features") is None or not names:
        raise ContractViolation("instance", "features with neighbours: of these each is left out in turn", "none")
    return _Parts(
        model,
        asked,
        "leave one neighbour out",
        len(names),
        lambda i: {**asked.instance, "neighbours": names[:i] + names[i + 1 :]},
    )


def _check(model: ServedModel, instance: dict[str, Any]) -> None:
    """Whatever an instance breaks is found before it is taken apart."""
    try:
        model.predict([instance])
    except ContractViolation as violation:
        path = violation.path.replace("instances.0", "instance", 1)
        raise ContractViolation(path, violation.expected, violation.got) from None


def _read(payload: Any) -> Asked:
    if not isinstance(payload, dict):
        raise ContractViolation("body", 'an object such as {"instance": {...}}', describe(payload))
    try:
        return msgspec.convert(payload, Asked)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise ContractViolation(path.rstrip("`") or "body", EXPECTED, message) from None


def _feeds(model: ServedModel, instance: dict[str, Any], start: str) -> dict[str, NDArray[Any]]:
    try:
        return model.to_feeds([instance])
    except ContractViolation as violation:
        path = violation.path.replace("instances.0", start, 1)
        raise ContractViolation(path, violation.expected, violation.got) from None


def _explained(model: ServedModel, asked: Asked, outputs: NDArray[Any]) -> tuple[Any, NDArray[np.float64]]:
    """What is explained, and its number in each answer `(rows,)`."""
    labels = model.contract.labels
    if model.contract.output != "probabilities" or labels is None:
        if asked.target is not None:
            raise ContractViolation("target", "nothing, for a model of one value", describe(asked.target))
        return model.contract.target, outputs.reshape(len(outputs), -1)[:, 0].astype(np.float64)
    target = labels[int(outputs[-1].argmax())] if asked.target is None else asked.target
    names = [str(label) for label in labels]
    if str(target) not in names:
        raise ContractViolation("target", f"one of {', '.join(names[:20])}", describe(target))
    place = names.index(str(target))
    return labels[place], outputs[:, place].astype(np.float64)


def _refusal(violation: ContractViolation) -> Refused:
    return Refused(
        422, "contract_violation", str(violation), path=violation.path, expected=violation.expected, got=violation.got
    )
