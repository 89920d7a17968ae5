"""The Open Inference Protocol v2, as KServe's and Triton's clients speak it: `/v2/...`."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.graphs import GraphModel
from bentos.models.nodes import NodeModel
from bentos.models.served_model import ServedModel
from bentos.protocols.tensors import Inference, TensorReader, Values, chosen, datatype_of, encode, parse
from bentos.telemetry.records import MOST_ANSWERS
from headrace import __version__
from headrace.runtime.contract import ContractViolation, Feeds
from headrace.runtime.http import Refused, header, read_body, require_plain, to_json
from headrace.runtime.http_call import Answer
from headrace.runtime.images import MAX_FILE_BYTES

if TYPE_CHECKING:
    from bentos.app import PredictionApp

Endpoint = Callable[[Any, Request], Awaitable[Response]]


def _in_its_shape(endpoint: Endpoint) -> Endpoint:
    """Refusals as this protocol has them: `{"error": "what was expected"}`."""

    @functools.wraps(endpoint)
    async def answer(self: Any, request: Request) -> Response:
        try:
            return await endpoint(self, request)
        except ContractViolation as violation:
            request.state.code = "contract_violation"
            return to_json({"error": str(violation)}, 422)
        except Refused as refused:
            if refused.status in (401, 403):
                raise  # one shape, at the door and here, whatever was asked for
            request.state.code = refused.code
            return to_json({"error": refused.message}, refused.status, refused.headers)

    return answer


class V2:
    """The routes of this protocol, for the model that `app` holds."""

    def __init__(self, app: PredictionApp) -> None:
        self.app = app
        self._tensors: tuple[ServedModel, ModelTensors] | None = None
        self.routes = [
            *(
                route
                for at in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
                for route in (
                    Route(f"{at}/infer", self.infer, methods=["POST"]),
                    Route(f"{at}/ready", self.is_ready, methods=["GET"]),
                    Route(at, self.describe, methods=["GET"]),
                )
            ),
            Route("/v2/health/live", self.server_live, methods=["GET"]),
            Route("/v2/health/ready", self.server_ready, methods=["GET"]),
            Route("/v2", self.describe_server, methods=["GET"]),
        ]

    @_in_its_shape
    async def infer(self, request: Request) -> Response:
        """`{"id", "inputs": [{"name", "shape", "datatype", "data"}], "outputs", "parameters"}`; or tensors behind the JSON.

        Answers `{"model_name", "model_version", "id", "outputs": [...]}`: `label` and `probabilities` of a classification,
        the target's name (and `interval`) of a value, and what else a model answers as a tensor each.
        """
        model = self._named_model(request)
        require_plain(request)
        with self.app.held_body() as hold:
            body = await read_body(request, hold)
            declared = header(request, b"inference-header-content-length")
            tensors = self._tensors_of(model)
            weight = tensors.work_of(body)
            asked, feeds = await self.app.convert(weight, lambda: tensors.read(body, declared))
            rows = len(next(iter(feeds.values())))
            await self.app.spend(request, rows)
            if self.app.is_streaming:
                found = await self._write(request, model, tensors, feeds)
            elif self.app.runs_together and tensors.is_graph_alone:
                found = tensors.named(await self.app.run_together(feeds, rows))
            elif self.app.runs_here(weight):
                found = tensors.answer(feeds)
            else:
                found = await self.app.work(weight, lambda: tensors.answer(feeds))
            picked = chosen(asked, found)
            self.app.account(request, rows=rows, answers=tensors.shown(found))
        head = {"model_name": model.name, "model_version": model.version, "id": asked.id or request.state.request_id}
        content, json_bytes = encode(head, picked)
        if json_bytes is None:
            return Answer(content, media_type="application/json")
        return Answer(content, 200, {"inference-header-content-length": str(json_bytes)}, "application/octet-stream")

    async def _write(self, request: Request, model: Any, tensors: ModelTensors, feeds: Feeds) -> dict[str, Values]:
        """Texts that are written step by step, together with whatever else is being written."""
        instances = tensors.instances_of(feeds)
        return tensors.columns(await self.app.streams.join(request, model, model.streams(instances)))

    @_in_its_shape
    async def describe(self, request: Request) -> Response:
        """`{"name", "versions", "platform", "inputs", "outputs"}`; -1 in a shape stands for any number of rows."""
        model = self._named_model(request)
        tensors = self._tensors_of(model)
        inputs = tensors.reader.describe()
        outputs = await self.app.work(MAX_FILE_BYTES, tensors.describe_outputs)
        platform = "onnxruntime_onnx"
        return to_json(
            {"name": model.name, "versions": [model.version], "platform": platform, "inputs": inputs, "outputs": outputs}
        )

    @_in_its_shape
    async def is_ready(self, request: Request) -> Response:
        return to_json({"name": self._named_model(request).name, "ready": True})

    @_in_its_shape
    async def server_live(self, request: Request) -> Response:
        return to_json({"live": True})

    @_in_its_shape
    async def server_ready(self, request: Request) -> Response:
        return to_json({"ready": self.app.ready}, 200 if self.app.ready else 503)

    @_in_its_shape
    async def describe_server(self, request: Request) -> Response:
        return to_json({"name": "headrace", "version": __version__, "extensions": ["binary_tensor_data"]})

    def _named_model(self, request: Request) -> ServedModel:
        model = self.app.model_for(request, request.path_params["name"])
        version = request.path_params.get("version", model.version)
        if version != model.version:
            raise Refused(404, "unknown_version", f"no version {version[:100]!r} of {model.name!r} here, but {model.version!r}")
        return model

    def _tensors_of(self, model: ServedModel) -> ModelTensors:
        if self._tensors is None or self._tensors[0] is not model:
            self._tensors = (model, ModelTensors(model))
        return self._tensors[1]


class ModelTensors:
    """One model, asked and answering in tensors.

    Raises:
        Refused: 422, what it takes has no tensor's shape.
    """

    def __init__(self, model: ServedModel) -> None:
        if isinstance(model, NodeModel | GraphModel):
            raise _no_tensors(model, "graphs")
        self.model = model
        self.reader = TensorReader(model.contract)
        kind = type(model)
        self.is_graph_alone = kind.predict is ServedModel.predict and kind.to_answers is ServedModel.to_answers
        self._labels = [str(label) for label in model.contract.labels or ()]
        self._answers = dict(zip(self._labels, model.contract.labels or (), strict=True))

    def work_of(self, body: bytes) -> int:
        """What a body weighs: a picture of few bytes may unpack to many pixels."""
        return MAX_FILE_BYTES if self.reader.takes_pictures and b'"BYTES"' in body else len(body)

    def read(self, body: bytes, declared: str) -> tuple[Inference, Feeds]:
        asked, start = parse(body, declared)
        if not asked.inputs:
            raise ContractViolation("inputs", "a tensor for each field of the contract", "none")
        return asked, self.reader.read(asked, body, start)

    def answer(self, feeds: Feeds) -> dict[str, Values]:
        """All outputs, rows first."""
        if self.is_graph_alone:
            return self.named(self.model.run(feeds))
        return self.columns(self.model.predict(self.instances_of(feeds)))

    def named(self, outputs: NDArray[Any]) -> dict[str, Values]:
        """What the graph gave, under the names that `/v1` answers with."""
        contract = self.model.contract
        if contract.output == "probabilities":
            return {"label": [self._labels[i] for i in outputs.argmax(axis=1).tolist()], "probabilities": outputs}
        if contract.interval is None:
            return {contract.target: outputs}
        return {contract.target: outputs[:, 0], "interval": outputs[:, 1:]}

    def instances_of(self, feeds: Feeds) -> list[dict[str, Any]]:
        """The rows as a client of `/v1` would name them."""
        columns = [[None if value != value else value for value in array.tolist()] for array in feeds.values()]
        return [dict(zip(feeds, row, strict=True)) for row in zip(*columns, strict=True)]

    def columns(self, answers: list[dict[str, Any]]) -> dict[str, Values]:
        """Answers in the user's terms, as tensors: texts, numbers, or lists of as many numbers each."""
        return {name: self._column([answer.get(name) for answer in answers]) for name in answers[0]}

    def describe_outputs(self) -> list[dict[str, Any]]:
        """Of each output its name, datatype and shape, as the contract's sample is answered."""
        found = self.answer(self.model.to_feeds([self.model.contract.sample]))
        return [
            {"name": name, "datatype": datatype_of(values), "shape": [-1, *np.shape(values)[1:]]}
            for name, values in found.items()
        ]

    def shown(self, found: dict[str, Values]) -> list[Any]:
        """A label, value or text a row, for the records."""
        if self.is_graph_alone and self._labels:
            return [self._answers[label] for label in found["label"][:MOST_ANSWERS]]
        first = next((values for values in found.values() if isinstance(values, list)), [])
        values = found.get(self.model.contract.target, first)[:MOST_ANSWERS]
        return values if isinstance(values, list) else values.tolist()

    def _column(self, values: list[Any]) -> Values:
        if all(isinstance(value, str) for value in values):
            return values
        try:
            numbers = np.asarray(values)
        except ValueError:
            raise _no_tensors(self.model, "such answers") from None
        if numbers.dtype.name not in ("float64", "int64"):
            raise _no_tensors(self.model, "such answers")
        return numbers


def _no_tensors(model: ServedModel, what: str) -> Refused:
    return Refused(422, "no_tensors", f"{what} have no tensor's shape: ask POST /v1/models/{model.name}/predict")
