"""Headrace's own protocol: `/v1/models/...`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bentos.models.generation import GenerationModel
from bentos.models.served_model import ServedModel
from bentos.protocols.images import instance_of, work_of
from bentos.scheduling.streams import Streaming
from headrace.runtime.contract import ContractViolation, Feeds
from headrace.runtime.http import (
    Refused,
    media_type,
    parse_json,
    read_body,
    read_json_body,
    require_json,
    require_plain,
    to_json,
)
from headrace.runtime.images import MAX_FILE_BYTES, MEDIA_TYPES
from headrace.runtime.openai_models import card, listing

if TYPE_CHECKING:
    from bentos.app import PredictionApp

MAX_INSTANCES = int(os.environ.get("HEADRACE_MAX_INSTANCES", 10_000))


class V1:
    """The routes of this protocol, for the model that `app` holds."""

    def __init__(self, app: PredictionApp) -> None:
        self.app = app
        self.routes = [
            Route("/v1/models/{name}/predict", self.predict, methods=["POST"]),
            Route("/v1/models/{name}", self.describe, methods=["GET"]),
            Route("/v1/models", self.list_models, methods=["GET"]),
        ]

    async def predict(self, request: Request) -> Response:
        """`{"instances": [...]}` or one bare instance; answers `{"id", "model", "version", "request_id", "predictions"}`.

        A model that can answer piece by piece takes `"stream": true` beside them, and sends its answer to one instance as
        server-sent events. A model of images takes a PNG or JPEG file as the whole body too.
        """
        model = self.app.model_for(request, request.path_params["name"])
        if media_type(request) in MEDIA_TYPES:
            return await self._look(request, model)
        require_json(request)
        with self.app.held_body() as hold:
            body = await read_json_body(request, hold)
            if self.app.is_streaming:
                return await self._write(request, model, await self.app.convert(len(body), lambda: parse_json(body)))
            predictions = await self._predict(request, model, body)
        self.app.account(request, rows=len(predictions), answers=predictions)
        return to_json({**_identity(request, model), "predictions": predictions})

    async def _predict(self, request: Request, model: ServedModel, body: bytes) -> list[dict[str, Any]]:
        app, weight = self.app, work_of(body)
        if app.runs_here(weight) and not app.runs_together:  # what follows, without what a small prediction cannot afford
            instances = to_instances(parse_json(body))
            await app.spend(request, len(instances))
            return predict_instances(model, instances)
        instances = await app.convert(weight, lambda: to_instances(parse_json(body)))
        await app.spend(request, len(instances))
        if not app.runs_together:
            return await app.work(weight, lambda: predict_instances(model, instances))
        feeds = await app.convert(weight, lambda: feeds_of(model, instances))
        outputs = await app.run_together(feeds, len(instances))
        return await app.convert(weight, lambda: model.to_answers(outputs))

    async def _look(self, request: Request, model: ServedModel) -> Response:
        """The answer to a picture."""
        require_plain(request)
        with self.app.held_body() as hold:
            body = await read_body(request, hold)
            await self.app.spend(request, 1)
            predictions = await self.app.work(MAX_FILE_BYTES, lambda: predict_picture(model, body))
        self.app.account(request, rows=1, answers=predictions)
        return to_json({**_identity(request, model), "predictions": predictions})

    async def _write(self, request: Request, model: Any, payload: Any) -> Response:
        """Whole answers, or the events of one."""
        payload, is_stream = take_stream(payload)
        instances = to_instances(payload)
        if is_stream and len(instances) > 1:
            raise _refusal(ContractViolation("instances", "one instance, to stream its answer", f"{len(instances)}"))
        try:
            streams = model.streams(instances)
        except ContractViolation as violation:
            raise _refusal(violation) from None
        await self.app.spend(request, len(instances))
        identity = _identity(request, model)
        self.app.account(request, rows=len(instances))
        if is_stream:
            return self.app.streams.respond(request, streams[0], identity)
        predictions = await self.app.streams.join(request, model, streams)
        self.app.account(request, tokens=sum(answer.get("tokens", 0) for answer in predictions), answers=predictions)
        return to_json({**identity, "predictions": predictions})

    async def describe(self, request: Request) -> Response:
        return to_json(self._description(self.app.model_for(request, request.path_params["name"])))

    async def list_models(self, request: Request) -> Response:
        model = self.app.model
        if not request.state.caller.may(model.name):
            return to_json(listing([], []))
        return to_json(listing([self._description(model)], [self._card(model)] if isinstance(model, GenerationModel) else []))

    def _description(self, model: ServedModel) -> dict[str, Any]:
        return {
            **(self._card(model) if isinstance(model, GenerationModel) else {}),
            "model": model.name,
            "version": model.version,
            "identity": model.identity,
            "streams": isinstance(model, Streaming),
            "batching": model.batching,
            "contract": model.contract.model_dump(mode="json"),
        }

    def _card(self, model: ServedModel) -> dict[str, Any]:
        return card(model.name, self.app.loaded_at)


def predict_instances(model: ServedModel, instances: list[Any]) -> list[dict[str, Any]]:
    """Predictions of a request's rows; runs in a thread when it would hold up other requests.

    Raises:
        Refused: 422, with the field at fault.
    """
    try:
        return model.predict(instances)
    except ContractViolation as violation:
        raise _refusal(violation) from None


def feeds_of(model: ServedModel, instances: list[Any]) -> Feeds:
    """A request's rows as arrays.

    Raises:
        Refused: 422, with the field at fault.
    """
    try:
        return model.to_feeds(instances)
    except ContractViolation as violation:
        raise _refusal(violation) from None


def take_stream(payload: Any) -> tuple[Any, bool]:
    """The payload without its `stream`, and what that says."""
    if not isinstance(payload, dict) or "stream" not in payload:
        return payload, False
    if not isinstance(payload["stream"], bool):
        raise _refusal(ContractViolation("stream", "true or false", _kind(payload["stream"])))
    return {name: value for name, value in payload.items() if name != "stream"}, payload["stream"]


def predict_picture(model: ServedModel, body: bytes) -> list[dict[str, Any]]:
    """From a PNG or JPEG file to its prediction.

    Raises:
        Refused: 415 or 422, with what was expected.
    """
    try:
        return model.predict([instance_of(body, model)])
    except ContractViolation as violation:
        raise _refusal(violation) from None


def to_instances(payload: Any) -> list[Any]:
    """The rows that a request asks for."""
    if not isinstance(payload, dict):
        raise _refusal(ContractViolation("body", 'an object such as {"instances": [...]}', _kind(payload)))
    if "instances" not in payload:
        return [payload]
    instances = payload["instances"]
    if not isinstance(instances, list) or not instances:
        raise _refusal(
            ContractViolation(
                "instances",
                "a list with at least one instance",
                "an empty list" if instances == [] else _kind(instances),
            )
        )
    if len(instances) > MAX_INSTANCES:
        raise Refused(
            413, "too_many_instances", f"{len(instances)} instances exceed the limit of {MAX_INSTANCES}", limit=MAX_INSTANCES
        )
    if others := sorted(payload.keys() - {"instances"}):
        raise _refusal(ContractViolation(others[0], "nothing beside instances", "an unknown field"))
    return instances


def _refusal(violation: ContractViolation) -> Refused:
    return Refused(
        422, "contract_violation", str(violation), path=violation.path, expected=violation.expected, got=violation.got
    )


def _identity(request: Request, model: ServedModel) -> dict[str, Any]:
    """What every answer says of where it came from."""
    request_id = request.state.request_id
    answer_id = f"{model.name}@{model.version}:{request_id}"  # `headrace trace` takes it
    return {"id": answer_id, "model": model.name, "version": model.version, "request_id": request_id}


def _kind(value: Any) -> str:
    """What a client sent, in the terms of JSON."""
    kinds = {type(None): "null", bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")
