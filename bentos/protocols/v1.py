"""Headrace's own protocol: `/v1/models/...`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from bentos.models.served_model import ServedModel
from bentos.protocols import server
from bentos.protocols.images import instance_of, takes_file, weight_of
from bentos.protocols.server import TOKENS, ModelServer
from bentos.protocols.token_limits import reserve_instances, reserve_texts, say_why_ended
from bentos.scheduling.streams import Streaming
from bentos.telemetry.sample_rows import row_of_feeds
from bentos.telemetry.samples import Samples
from headrace.runtime.contract import Feeds
from headrace.runtime.http import (
    Refused,
    invalid_field,
    media_type,
    model_list,
    openai_model,
    parse_json,
    read_body,
    read_json_body,
    require_json,
    require_uncompressed,
    to_json,
)
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.images import MAX_FILE_BYTES
from headrace.runtime.unseen_values import UnseenValues
from headrace.runtime.violations import ContractViolation


class V1:
    """Routes of this protocol for the model of `app`."""

    def __init__(self, app: ModelServer) -> None:
        self.app = app
        self.routes = [
            Route("/v1/models/{name}/predict", self.predict, methods=["POST"]),
            Route("/v1/models/{name}", self.describe, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
        ]

    async def predict(self, request: TrackedRequest) -> Response:
        """Answers `{"instances": [...]}` or one bare instance with `{"id", "model", "version", "request_id", "predictions"}`.

        A model that generates text also takes `"stream": true`, and sends its answer to one instance as server-sent events.
        A model of images also takes a PNG or JPEG file (of pictures, a WebP file too) as the whole body.
        """
        model = self.app.model_for(request, request.path_params["name"])
        if takes_file(model, media_type(request)):
            return await self._predict_image(request, model)
        require_json(request)
        with self.app.body_memory() as reserve:
            body = await read_json_body(request, reserve)
            if self.app.is_streaming:
                return await self._generate(request, model, await self.app.convert(len(body), lambda: parse_json(body)))
            instances, feeds, predictions, unseen = await self._predict(request, model, body)
        counts = {name: sum(one.get(name, 0) for one in predictions) for name in TOKENS} if model.generates else {}
        self.app.record_usage(request, rows=len(predictions), answers=predictions, **counts)
        if (samples := self.app.samples) is not None and samples.wants(len(predictions)):
            take_rows(samples, request, instances, feeds, predictions)
        answer = {**_identity(request, model), "predictions": predictions}
        if unseen.counts:
            self.app.count_unseen(unseen.counts)
            answer["warnings"] = unseen.messages("instances")
        return to_json(answer)

    async def _predict(
        self, request: TrackedRequest, model: ServedModel, body: bytes
    ) -> tuple[list[Any], Feeds | None, list[dict[str, Any]], UnseenValues]:
        """Returns the instances, their feeds (see `predict_with_warnings`), their answers, and values that are unseen."""
        app, weight = self.app, weight_of(body)
        if app.runs_inline(weight) and not app.is_batching and not model.generates:
            # the same as below without its overhead, for small predictions
            instances = to_instances(parse_json(body))
            await app.take_quota(request, len(instances))
            return instances, *predict_with_warnings(model, instances)
        instances = await app.convert(weight, lambda: to_instances(parse_json(body)))
        await app.take_quota(request, len(instances))
        if not app.is_batching:
            limited, grant = await reserve_instances(app, request, model, instances)
            feeds, predictions, unseen = await app.run(weight, lambda: predict_with_warnings(model, limited))
            say_why_ended(predictions, grant)
            return instances, feeds, predictions, unseen
        feeds = await app.convert(weight, lambda: feeds_of(model, instances))
        outputs = await app.run_batched(feeds, len(instances))
        return instances, feeds, *await app.convert(weight, lambda: (model.to_answers(outputs), unseen_of(model, feeds)))

    async def _predict_image(self, request: TrackedRequest, model: ServedModel) -> Response:
        require_uncompressed(request)
        with self.app.body_memory() as reserve:
            body = await read_body(request, reserve)
            await self.app.take_quota(request, 1)
            instances, feeds, predictions = await self.app.run(MAX_FILE_BYTES, lambda: predict_image(model, body))
        self.app.record_usage(request, rows=1, answers=predictions)
        if (samples := self.app.samples) is not None and samples.wants(1):
            take_rows(samples, request, instances, feeds, predictions)
        return to_json({**_identity(request, model), "predictions": predictions})

    async def _generate(self, request: TrackedRequest, model: Any, payload: Any) -> Response:
        """Responds with whole texts, or with the events of one."""
        payload, is_stream = split_stream_flag(payload)
        instances = to_instances(payload)
        if is_stream and len(instances) > 1:
            raise invalid_field("instances", "one instance, to stream its answer", f"{len(instances)}")
        try:
            texts = model.generation_requests(instances)
        except ContractViolation as violation:
            raise invalid_field(violation.path, violation.expected, violation.got) from None
        await self.app.take_quota(request, len(instances))
        identity = _identity(request, model)
        prompt_tokens = sum(len(text.prompt) for text in texts)
        texts, grant = await reserve_texts(self.app, request, texts, prompt_tokens)
        self.app.record_usage(request, rows=len(instances), prompt_tokens=prompt_tokens)
        if is_stream:

            def end_of(finish_reason: str) -> dict[str, Any]:
                return identity | (grant.end_of(0, finish_reason) if grant else {})

            response = self.app.streams.respond(request, texts[0], end_of)
            if (samples := self.app.samples) is not None and samples.wants(1):
                take_rows(samples, request, instances, None, None)
            return response
        predictions = await self.app.streams.join(request, model, texts)
        say_why_ended(predictions, grant)
        tokens = sum(answer.get("tokens", 0) for answer in predictions)
        self.app.record_usage(request, tokens=tokens, answers=predictions)
        if (samples := self.app.samples) is not None and samples.wants(len(instances)):
            take_rows(samples, request, instances, None, predictions)
        return to_json({**identity, "predictions": predictions})

    async def describe(self, request: TrackedRequest) -> Response:
        return to_json(self._description(self.app.model_for(request, request.path_params["name"])))

    async def list_models(self, request: TrackedRequest) -> Response:
        model = self.app.model
        if not request.caller.may_call(model.name):
            return to_json(model_list([], []))
        openai = [openai_model(model.name, self.app.loaded_at)] if model.generates else []
        return to_json(model_list([self._description(model)], openai))

    def _description(self, model: ServedModel) -> dict[str, Any]:
        return {
            **(openai_model(model.name, self.app.loaded_at) if model.generates else {}),
            "model": model.name,
            "version": model.version,
            "identity": model.identity,
            "streams": isinstance(model, Streaming),
            "batching": model.batching,
            "contract": model.contract.model_dump(mode="json"),
        }


def predict_instances(model: ServedModel, instances: list[Any]) -> list[dict[str, Any]]:
    """Predicts the rows of a request; runs in the worker thread if it would delay other requests.

    Raises:
        Refused: 422, with the field that breaks the contract.
    """
    try:
        return model.predict(instances)
    except ContractViolation as violation:
        raise invalid_field(violation.path, violation.expected, violation.got) from None


def predict_with_warnings(model: ServedModel, instances: list[Any]) -> tuple[Feeds | None, list[dict[str, Any]], UnseenValues]:
    """Predicts like `predict_instances`; returns the feeds, the answers, and the values that no training row had. A model
    with a `predict` of its own has no feeds."""
    if not model.warns:
        return None, predict_instances(model, instances), UnseenValues()
    feeds = feeds_of(model, instances)
    return feeds, model.to_answers(model.run(feeds)), unseen_of(model, feeds)


def take_rows(
    samples: Samples, request: TrackedRequest, instances: list[Any], feeds: Feeds | None, predictions: list[Any] | None
) -> None:
    """Gives the rows of a request to the sample that wants them; a stream has no `predictions` yet."""

    def row_at(row: int) -> tuple[Mapping[str, Any], Any, bool]:
        answer = None if predictions is None else predictions[row]
        if feeds is None:
            return instances[row], answer, True
        return row_of_feeds(feeds, row, instances[row]), answer, False

    samples.take(request, len(instances), row_at)


def unseen_of(model: ServedModel, feeds: Feeds) -> UnseenValues:
    """Returns the values of a request that no training row had."""
    return model.contract.unseen(feeds) if model.warns else UnseenValues()


def feeds_of(model: ServedModel, instances: list[Any]) -> Feeds:
    """Returns the rows of a request as arrays.

    Raises:
        Refused: 422, with the field that breaks the contract.
    """
    try:
        return model.to_feeds(instances)
    except ContractViolation as violation:
        raise invalid_field(violation.path, violation.expected, violation.got) from None


def split_stream_flag(payload: Any) -> tuple[Any, bool]:
    """Returns the payload without its field `stream`, and the value of that field (false by default).

    Raises:
        Refused: 422, `stream` is not a boolean.
    """
    if not isinstance(payload, dict) or "stream" not in payload:
        return payload, False
    if not isinstance(payload["stream"], bool):
        raise invalid_field("stream", "true or false", _json_type(payload["stream"]))
    return {name: value for name, value in payload.items() if name != "stream"}, payload["stream"]


def predict_image(model: ServedModel, body: bytes) -> tuple[list[Any], Feeds | None, list[dict[str, Any]]]:
    """Predicts a PNG or JPEG file; returns the instance that it is, its feeds, and the answer.

    Raises:
        Refused: 415 or 422, with what was expected.
    """
    try:
        instances = [instance_of(body, model)]
    except ContractViolation as violation:
        raise invalid_field(violation.path, violation.expected, violation.got) from None
    feeds, predictions, _ = predict_with_warnings(model, instances)
    return instances, feeds, predictions


def to_instances(payload: Any) -> list[Any]:
    """Returns the rows of a request's JSON.

    Raises:
        Refused: 413, too many rows; 422, the JSON has another form.
    """
    if not isinstance(payload, dict):
        raise invalid_field("body", 'an object such as {"instances": [...]}', _json_type(payload))
    if "instances" not in payload:
        return [payload]
    instances = payload["instances"]
    if not isinstance(instances, list) or not instances:
        got = "an empty list" if instances == [] else _json_type(instances)
        raise invalid_field("instances", "a list with at least one instance", got)
    limit = server.MAX_INSTANCES
    if len(instances) > limit:
        raise Refused(413, "too_many_instances", f"{len(instances)} instances exceed the limit of {limit}", limit=limit)
    if others := sorted(payload.keys() - {"instances"}):
        raise invalid_field(others[0], "no field beside instances", "an unknown field")
    return instances


def _identity(request: TrackedRequest, model: ServedModel) -> dict[str, Any]:
    """Returns the fields of every answer that identify its request and model version; `headrace trace` takes the `id`."""
    answer_id = f"{model.name}@{model.version}:{request.request_id}"
    return {"id": answer_id, "model": model.name, "version": model.version, "request_id": request.request_id}


def _json_type(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")
