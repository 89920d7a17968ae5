"""The Open Inference Protocol v2 and OpenAI's API (for text generation) in the OpenAPI description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.services.api import openapi_errors as errors
from headrace.services.api.catalogue import CatalogueEntry

Json = dict[str, Any]
DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64", "uint8": "UINT8", "string": "BYTES"}
OBJECT: Json = {"type": "object"}
EVENT: Json = {
    "type": "object",
    "description": "One server-sent event; `data` is JSON.",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
    "required": ["data"],
}
INFERENCE_ERROR: Json = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
OPENAI_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def _operation(name: str, tag: str, summary: str, shape: Json, error: Json, refusals: Sequence[int], **more: Any) -> Json:
    """Describes one method; its errors have the protocol's schema (`error`) or Headrace's."""
    responses: Json = {"200": {"description": "The answer", "content": {"application/json": {"schema": shape}}}}
    either = {"anyOf": [error, {"$ref": "#/components/schemas/Error"}]}
    for refused in (*errors.ANYWHERE, *refusals):
        responses[str(refused)] = {"description": errors.MEANING[refused], "content": {"application/json": {"schema": either}}}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, "responses": dict(sorted(responses.items()))}


# -- Open Inference Protocol


def inference_paths(entry: CatalogueEntry) -> Json:
    """`/v2/models/<model>`, `/ready`, `/infer`."""
    model, path = entry.model, f"/v2/models/{entry.model}"
    assert entry.contract is not None
    shape = {
        "type": "object",
        "properties": {"model_name": {"type": "string"}, "outputs": {"type": "array", "items": OBJECT}},
        "required": ["model_name", "outputs"],
    }
    asked: Json = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": _tensor_schema(), "minItems": 1},
        },
        "required": ["inputs"],
    }
    example = {"sample": {"value": {"inputs": tensors(entry.contract)}}}
    return {
        path: {
            "get": _operation(
                f"metadata_{model}", model, "Input and output tensors of the model", OBJECT, INFERENCE_ERROR, (404,)
            )
        },
        f"{path}/ready": {
            "get": _operation(f"ready_{model}", model, "Whether the model is ready", OBJECT, INFERENCE_ERROR, (404,))
        },
        f"{path}/infer": {
            "post": _operation(
                f"infer_{model}",
                model,
                "Tensors in, tensors out (Open Inference Protocol v2)",
                shape,
                INFERENCE_ERROR,
                (400, 404, 408, 413, 415, 422),
                requestBody={"required": True, "content": {"application/json": {"schema": asked, "examples": example}}},
            )
        },
    }


def tensors(contract: Contract) -> list[Json]:
    """Returns the contract's sample as inputs of the protocol."""
    return [
        _tensor(field, contract.sample[field.name]) for field in contract.inputs if contract.sample.get(field.name) is not None
    ]


def _tensor(field: InputField, value: Any) -> Json:
    shape = [1, *np.shape(value)] if field.dtype != "string" else [1]
    flat = np.ravel(np.asarray(value, dtype=object)).tolist() if field.dtype != "string" else [value]
    numbers = [int(one) if isinstance(one, bool) else one for one in flat]
    datatype = "BYTES" if field.is_time else DATATYPES[field.dtype]
    return {"name": field.name, "shape": shape, "datatype": datatype, "data": numbers}


def _tensor_schema() -> Json:
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
            "datatype": {"enum": sorted(DATATYPES.values())},
            "data": {"type": "array"},
        },
        "required": ["name", "shape", "datatype", "data"],
    }


def server_paths() -> Json:
    """`/v2` and `/v2/health/...`."""
    paths: Json = {}
    for path, name, summary in (
        ("/v2", "server", "Name, version and extensions of the server"),
        ("/v2/health/live", "live", "Whether the server is alive"),
        ("/v2/health/ready", "ready", "Whether every model has a healthy replica"),
    ):
        found = {"200": {"description": "The answer", "content": {"application/json": {"schema": OBJECT}}}}
        waiting = {"503": {"description": errors.MEANING[503], "content": {"application/json": {"schema": OBJECT}}}}
        refused = {str(status): errors.reference(status) for status in errors.ANYWHERE if status != 503}
        paths[path] = {
            "get": {
                "operationId": f"v2_{name}",
                "tags": ["gateway"],
                "summary": summary,
                "security": [],
                "responses": dict(sorted((found | waiting | refused).items())),
            }
        }
    return paths


# -- OpenAI


def openai_paths(generators: Sequence[CatalogueEntry]) -> Json:
    """`/v1/completions` and `/v1/chat/completions`."""
    names = [entry.model for entry in generators]
    message = {
        "type": "object",
        "properties": {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": {"type": "string"}},
        "required": ["role", "content"],
    }
    common: Json = {
        "model": {"enum": names},
        "max_tokens": {"type": "integer", "minimum": 1},
        "temperature": {"type": "number", "minimum": 0, "maximum": 10},
        "top_p": {"type": "number", "minimum": 0, "maximum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": 8},
        "stop": {"type": "string"},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        "stream": {"type": "boolean", "default": False},
    }
    prompt = _prompt(generators[0])
    return {
        "/v1/completions": _completions(
            "complete",
            "Complete a prompt (OpenAI API)",
            common | {"prompt": {"type": "string"}},
            {"model": names[0], "prompt": prompt, "max_tokens": 3},
        ),
        "/v1/chat/completions": _completions(
            "chat",
            "Answer a conversation (OpenAI API)",
            common | {"messages": {"type": "array", "items": message, "minItems": 1}},
            {"model": names[0], "messages": [{"role": "user", "content": prompt}], "max_tokens": 3},
        ),
    }


def _completions(name: str, summary: str, properties: Json, example: Json) -> Json:
    needed = [field for field in ("model", "prompt", "messages") if field in properties]
    schema = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    asked = {"required": True, "content": {"application/json": {"schema": schema, "examples": {"sample": {"value": example}}}}}
    shape = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "object": {"type": "string"},
            "created": {"type": "integer"},
            "model": {"type": "string"},
            "choices": {"type": "array", "items": OBJECT},
            "usage": OBJECT,
        },
        "required": ["id", "object", "created", "model", "choices"],
    }
    found = _operation(name, "gateway", summary, shape, OPENAI_ERROR, (400, 404, 408, 413, 415, 422), requestBody=asked)
    found["responses"]["200"]["content"]["text/event-stream"] = {"schema": EVENT}
    return {"post": found}


def _prompt(entry: CatalogueEntry) -> str:
    assert entry.contract is not None
    return str(entry.contract.sample.get("prompt", "Once"))
