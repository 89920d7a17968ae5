"""The Open Inference Protocol v2, as KServe's and Triton's clients speak it: `/v2/...`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.graphs import GraphModel
from bentos.models.nodes import NodeModel
from bentos.models.served_model import ServedModel
from bentos.protocols.error_forms import errors_in
from bentos.protocols.server import TOKENS, ModelServer
from bentos.protocols.tensors import InferenceRequest, TensorReader, Values, datatype_of, encode, parse, select_outputs
from bentos.protocols.token_limits import reserve_instances, reserve_texts
from bentos.telemetry.records import MAX_ANSWERS
from bentos.telemetry.sample_rows import row_of_feeds
from bentos.telemetry.samples import Samples
from headrace.runtime import __version__
from headrace.runtime.contract import Feeds
from headrace.runtime.http import Refused, header, read_body, require_uncompressed, to_json
from headrace.runtime.http_messages import BytesResponse, TrackedRequest
from headrace.runtime.images import MAX_FILE_BYTES
from headrace.runtime.violations import ContractViolation

_v2_errors = errors_in(
    lambda violation: to_json({"error": str(violation)}, 422),
    lambda refused: to_json({"error": refused.message}, refused.status, refused.headers),
)
"""Responds to refusals in the form of this protocol: `{"error": "what was expected"}`."""


class V2:
    """Routes of this protocol for the model of `app`."""

    def __init__(self, app: ModelServer) -> None:
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

    @_v2_errors
    async def infer(self, request: TrackedRequest) -> Response:
        """Takes `{"id", "inputs": [{"name", "shape", "datatype", "data"}], "outputs", "parameters"}`, and tensors as bytes.

        Answers `{"model_name", "model_version", "id", "outputs": [...]}`: `label` and `probabilities` of a classifier, or
        `labels`, for each row a JSON list; the targets' names (and `interval` or `quantiles`) of a regression; and one tensor
        for each further field of an answer.
        """
        model = self._named_model(request)
        require_uncompressed(request)
        with self.app.body_memory() as reserve:
            body = await read_body(request, reserve)
            declared = header(request, b"inference-header-content-length")
            tensors = self._tensors_of(model)
            weight = tensors.weight_of(body)
            asked, feeds = await self.app.convert(weight, lambda: tensors.read(body, declared))
            rows = len(next(iter(feeds.values())))
            await self.app.take_quota(request, rows)
            if self.app.is_streaming:
                found = await self._generate(request, model, tensors, feeds)
            elif self.app.is_batching and tensors.returns_outputs:
                found = tensors.named(await self.app.run_batched(feeds, rows))
            elif request.caller.limits_tokens and model.generates:
                limited, _ = await reserve_instances(self.app, request, model, tensors.instances_of(feeds))
                found = await self.app.run(weight, lambda: tensors.columns(model.predict(limited)))
            elif self.app.runs_inline(weight):
                found = tensors.answer(feeds)
            else:
                found = await self.app.run(weight, lambda: tensors.answer(feeds))
            selected = select_outputs(asked, found)
            counts = {name: int(sum(found[name])) for name in TOKENS if name in found} if model.generates else {}
            self.app.record_usage(request, rows=rows, answers=tensors.labels_or_values(found), **counts)
            if (samples := self.app.samples) is not None and samples.wants(rows):
                tensors.take_rows(samples, request, feeds, found)
        head: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "id": asked.id or request.request_id}
        if model.warns and (unseen := model.contract.unseen(feeds)).counts:
            self.app.count_unseen(unseen.counts)
            # parameters of this protocol are single values, so the warnings are one text
            head["parameters"] = {"warnings": "; ".join(f"{one['path']}: {one['message']}" for one in unseen.messages("rows"))}
        content, json_bytes = encode(head, selected)
        if json_bytes is None:
            return BytesResponse(content, media_type="application/json")
        return BytesResponse(content, 200, {"inference-header-content-length": str(json_bytes)}, "application/octet-stream")

    async def _generate(self, request: TrackedRequest, model: Any, tensors: ModelTensors, feeds: Feeds) -> dict[str, Values]:
        """Generates texts in the same batch as other requests."""
        texts = model.generation_requests(tensors.instances_of(feeds))
        prompt_tokens = sum(len(text.prompt) for text in texts)
        texts, _ = await reserve_texts(self.app, request, texts, prompt_tokens)
        found = tensors.columns(await self.app.streams.join(request, model, texts))
        self.app.record_usage(request, prompt_tokens=prompt_tokens)
        return found

    @_v2_errors
    async def describe(self, request: TrackedRequest) -> Response:
        """Answers `{"name", "versions", "platform", "inputs", "outputs"}`; -1 in a shape is any number of rows."""
        model = self._named_model(request)
        tensors = self._tensors_of(model)
        inputs = tensors.reader.describe()
        outputs = await self.app.run(MAX_FILE_BYTES, tensors.describe_outputs)
        platform = "onnxruntime_onnx"
        return to_json(
            {"name": model.name, "versions": [model.version], "platform": platform, "inputs": inputs, "outputs": outputs}
        )

    @_v2_errors
    async def is_ready(self, request: TrackedRequest) -> Response:
        return to_json({"name": self._named_model(request).name, "ready": True})

    @_v2_errors
    async def server_live(self, request: TrackedRequest) -> Response:
        return to_json({"live": True})

    @_v2_errors
    async def server_ready(self, request: TrackedRequest) -> Response:
        return to_json({"ready": self.app.ready}, 200 if self.app.ready else 503)

    @_v2_errors
    async def describe_server(self, request: TrackedRequest) -> Response:
        return to_json({"name": "headrace", "version": __version__, "extensions": ["binary_tensor_data"]})

    def _named_model(self, request: TrackedRequest) -> ServedModel:
        model = self.app.model_for(request, request.path_params["name"])
        version = request.path_params.get("version", model.version)
        if version != model.version:
            message = f"unknown version {version[:100]!r} of {model.name!r}; this server has {model.version!r}"
            raise Refused(404, "unknown_version", message)
        return model

    def _tensors_of(self, model: ServedModel) -> ModelTensors:
        if self._tensors is None or self._tensors[0] is not model:
            self._tensors = (model, ModelTensors(model))
        return self._tensors[1]


class ModelTensors:
    """Converts requests and answers of one model from and to tensors.

    Raises:
        Refused: 422, the model's inputs are not tensors.
    """

    def __init__(self, model: ServedModel) -> None:
        if isinstance(model, NodeModel | GraphModel):
            raise _no_tensors(model, "graphs")
        self.model = model
        self.reader = TensorReader(model.contract)
        cls = type(model)
        self.returns_outputs = cls.predict is ServedModel.predict and cls.to_answers is ServedModel.to_answers
        self._labels = [str(label) for label in model.contract.labels or ()]
        self._answers = dict(zip(self._labels, model.contract.labels or (), strict=True))

    def weight_of(self, body: bytes) -> int:
        """Returns the size of a body for scheduling: a small image file may hold many pixels."""
        return MAX_FILE_BYTES if self.reader.takes_images and b'"BYTES"' in body else len(body)

    def read(self, body: bytes, declared: str) -> tuple[InferenceRequest, Feeds]:
        asked, start = parse(body, declared)
        if not asked.inputs:
            raise ContractViolation("inputs", "a tensor for each field of the contract", "none")
        return asked, self.reader.read(asked, body, start)

    def answer(self, feeds: Feeds) -> dict[str, Values]:
        """Returns all outputs by name, rows first."""
        if self.returns_outputs:
            return self.named(self.model.run(feeds))
        return self.columns(self.model.predict(self.instances_of(feeds)))

    def named(self, outputs: NDArray[Any]) -> dict[str, Values]:
        """Returns the graph's output under the names of the `/v1` answers; several labels of a row as JSON text."""
        contract = self.model.contract
        if contract.output == "probabilities":
            return {"label": [self._labels[i] for i in outputs.argmax(axis=1).tolist()], "probabilities": outputs}
        if contract.output == "labels":
            return {
                "labels": [json.dumps(x, ensure_ascii=False) for x in contract.labels_of(outputs)],
                "probabilities": outputs,
            }
        if contract.output == "values":
            return {name: outputs[:, i] for i, name in enumerate(contract.targets or ())}
        if contract.quantiles is not None:
            return {contract.target: outputs[:, 0], "quantiles": outputs[:, 1:]}
        if contract.interval is None:
            return {contract.target: outputs}
        return {contract.target: outputs[:, 0], "interval": outputs[:, 1:]}

    def instances_of(self, feeds: Feeds) -> list[dict[str, Any]]:
        """Returns the rows as instances of `/v1`."""
        columns = [[None if value != value else value for value in array.tolist()] for array in feeds.values()]
        return [dict(zip(feeds, row, strict=True)) for row in zip(*columns, strict=True)]

    def columns(self, answers: list[dict[str, Any]]) -> dict[str, Values]:
        """Converts answers to tensors: texts, numbers, or lists of numbers of equal length."""
        return {name: self._column([answer.get(name) for answer in answers]) for name in answers[0]}

    def describe_outputs(self) -> list[dict[str, Any]]:
        """Returns name, datatype and shape of each output, taken from the answer to the contract's sample."""
        found = self.answer(self.model.to_feeds([self.model.contract.sample]))
        return [
            {"name": name, "datatype": datatype_of(values), "shape": [-1, *np.shape(values)[1:]]}
            for name, values in found.items()
        ]

    def labels_or_values(self, found: dict[str, Values]) -> list[Any]:
        """Returns a label, value or text for each row, for the records; several labels or values as in a `/v1` answer."""
        output = self.model.contract.output
        if output == "labels":
            return [{"labels": json.loads(given)} for given in found["labels"][:MAX_ANSWERS]]
        if output == "values":
            columns = [np.asarray(values[:MAX_ANSWERS]).tolist() for values in found.values()]
            return [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
        if self.returns_outputs and self._labels:
            return [self._answers[label] for label in found["label"][:MAX_ANSWERS]]
        first = next((values for values in found.values() if isinstance(values, list)), [])
        values = found.get(self.model.contract.target, first)[:MAX_ANSWERS]
        return values if isinstance(values, list) else values.tolist()

    def take_rows(self, samples: Samples, request: TrackedRequest, feeds: Feeds, found: dict[str, Values]) -> None:
        """Gives the rows of a request to the sample that wants them."""
        rows = len(next(iter(feeds.values())))
        samples.take(request, rows, lambda row: (row_of_feeds(feeds, row), self.answer_at(found, row), False))

    def answer_at(self, found: dict[str, Values], row: int) -> dict[str, Any]:
        """Returns the answer of one row as `/v1` has it, for the sample of rows."""
        one: dict[str, Values] = {name: values[row : row + 1] for name, values in found.items()}
        answer = self.labels_or_values(one)[0]
        if not isinstance(answer, dict):
            answer = {"label" if self._labels else self.model.contract.target: answer}
        if not self.returns_outputs or not self._labels:
            return answer
        probabilities = np.asarray(one["probabilities"])[0].astype(float).round(6).tolist()
        return {**answer, "probabilities": dict(zip(self._labels, probabilities, strict=True))}

    def _column(self, values: list[Any]) -> Values:
        if all(isinstance(value, str) for value in values):
            return values
        try:
            numbers = np.asarray(values)
        except ValueError:
            raise _no_tensors(self.model, "answers of this model") from None
        if numbers.dtype.name not in ("float64", "int64"):
            raise _no_tensors(self.model, "answers of this model")
        return numbers


def _no_tensors(model: ServedModel, what: str) -> Refused:
    return Refused(422, "no_tensors", f"{what} cannot be sent as tensors; use POST /v1/models/{model.name}/predict")
