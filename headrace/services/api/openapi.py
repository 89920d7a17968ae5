"""The OpenAPI 3.1 description of the service, from the contracts of the models that a caller may use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace import __version__
from headrace.scoring.rows import CSV, JSON_LINES, PARQUET
from headrace.services.api import openapi_errors as errors
from headrace.services.api import openapi_protocols, openapi_reviews
from headrace.services.api.batch_store import MEDIA_TYPES, OTHERS
from headrace.services.api.catalogue import CatalogueEntry
from headrace.services.api.json_schemas import answer_schema, instance_schema, truth_schema

Json = dict[str, Any]
BATCH = "Batch"


def document(models: Sequence[CatalogueEntry], address: str, needs_token: bool, sees_reviews: bool) -> Json:
    """Builds the description. Models without a known contract are left out, and reviews for a caller without a role."""
    known = [entry for entry in models if entry.contract is not None]
    paths: Json = {"/v1/models": {"get": _list_models()}}
    for entry in known:
        paths |= _own_paths(entry) | _batch_paths(entry) | openapi_protocols.inference_paths(entry)
    if known:
        paths["/v1/feedback"] = {"post": _feedback(known)}
    if generators := [entry for entry in known if entry.generates]:
        paths |= openapi_protocols.openai_paths(generators)
    paths |= openapi_protocols.server_paths()
    if sees_reviews:
        paths |= openapi_reviews.review_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": __version__,
            "description": "Models behind one gateway."
            + (" Every request except health checks needs a token: `authorization: Bearer ...`." if needs_token else ""),
        },
        "servers": [{"url": address}],
        "paths": paths,
        "components": {
            "schemas": errors.SCHEMAS | _shared_schemas() | (openapi_reviews.review_schemas() if sees_reviews else {}),
            "responses": errors.RESPONSES,
            **(
                {"securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}}
                if needs_token
                else {}
            ),
        },
        **({"security": [{"token": []}]} if needs_token else {}),
        "tags": [{"name": "gateway", "description": "Paths that belong to no single model."}]
        + [{"name": entry.model, "description": _headline(entry)} for entry in known],
    }


def operation(name: str, tag: str, summary: str, answers: Json, refusals: Sequence[int], **more: Any) -> Json:
    """Describes one method of one path."""
    responses = answers | {str(status): errors.reference(status) for status in (*errors.ANYWHERE, *refusals)}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, "responses": dict(sorted(responses.items()))}


def answer(description: str, schema: Json, kind: str = "application/json", example: Any = None) -> Json:
    shown = {} if example is None else {"example": example}
    return {"description": description, "content": {kind: {"schema": schema, **shown}}}


def body(schema: Json, examples: Json, kind: str = "application/json") -> Json:
    return {"required": True, "content": {kind: {"schema": schema, "examples": examples}}}


# -- Headrace's own protocol


def _list_models() -> Json:
    shape = {
        "type": "object",
        "properties": {
            "models": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Card"}},
        },
        "required": ["models", "object", "data"],
    }
    return operation("list_models", "gateway", "The models that the token allows", {"200": answer("The catalogue", shape)}, ())


def _own_paths(entry: CatalogueEntry) -> Json:
    assert entry.contract is not None
    model, path, instance = entry.model, f"/v1/models/{entry.model}", instance_schema(entry.contract)
    identity = _identity_schema()
    predictions = {"predictions": {"type": "array", "items": answer_schema(entry.contract)}}
    found: Json = {
        path: {
            "get": operation(
                f"describe_{model}",
                model,
                "The contract of the model",
                {"200": answer("Its contract, version and identity", {"$ref": "#/components/schemas/Description"})},
                (),
            )
        },
        f"{path}/predict": {
            "post": operation(
                f"predict_{model}",
                model,
                _headline(entry),
                {"200": _answers(entry, _with(identity, predictions, _warnings()))},
                errors.OF_INPUT,
                requestBody=_request(entry, instance),
            )
        },
    }
    if entry.explains:
        found[f"{path}/explain"] = {"post": _explain(entry, instance)}
    return found


def _explain(entry: CatalogueEntry, instance: Json) -> Json:
    contract = entry.contract
    assert contract is not None
    fields: Json = {
        "instance": instance,
        "evaluations": {
            "type": "integer",
            "minimum": 4,
            "maximum": 10_000,
            "default": 1000,
            "description": "Most rows that may be evaluated.",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        **({"target": {"enum": contract.labels, "description": "By default the most likely one."}} if contract.labels else {}),
        **({"target": {"enum": contract.targets, "description": "By default the first."}} if contract.targets else {}),
    }
    properties: Json = {
        "method": {"type": "string"},
        "target": {},
        "value": {"type": "number", "description": "The probability of `target`, or the predicted value."},
        "base_value": {"type": "number"},
        "attributions": {"type": ["object", "array"]},
        "evaluations": {"type": "integer"},
    }
    return operation(
        f"explain_{entry.model}",
        entry.model,
        "The contribution of each field to an answer",
        {"200": answer("The explanation", _with(_identity_schema(), properties))},
        errors.OF_INPUT,
        requestBody=body(
            {"type": "object", "properties": fields, "required": ["instance"], "additionalProperties": False},
            {"sample": {"value": {"instance": contract.sample}}},
        ),
    )


def _request(entry: CatalogueEntry, instance: Json) -> Json:
    """One instance, several, or an image file for models of images."""
    several = _several(instance)
    if entry.streams:
        several["properties"]["stream"] = {
            "type": "boolean",
            "description": "Send the answer to one instance in pieces, as it is generated.",
        }
        several["properties"]["instances"]["maxItems"] = 32
    found = body({"anyOf": [several, instance]}, _examples(entry))
    assert entry.contract is not None
    for kind in ("image/png", "image/jpeg", "image/webp"):
        if any(kind in field.accepts for field in entry.contract.inputs):
            found["content"][kind] = {"schema": {"type": "string", "format": "binary"}}
    return found


def _several(instance: Json) -> Json:
    rows = {"type": "array", "items": instance, "minItems": 1, "maxItems": 10_000}
    return {"type": "object", "properties": {"instances": rows}, "required": ["instances"], "additionalProperties": False}


def _answers(entry: CatalogueEntry, schema: Json) -> Json:
    found = answer("Predictions, in the order of the instances", schema)
    if entry.streams:
        found["content"]["text/event-stream"] = {"schema": openapi_protocols.EVENT}
    return found


def _examples(entry: CatalogueEntry) -> Json:
    """Valid inputs: the contract's sample is from the test rows."""
    assert entry.contract is not None
    sample = entry.contract.sample
    return {"one": {"value": sample}, "several": {"value": {"instances": [sample, *entry.contract.examples]}}}


def _feedback(models: Sequence[CatalogueEntry]) -> Json:
    truths = [truth_schema(entry.contract) for entry in models if entry.contract is not None]
    truth = {"anyOf": [one for place, one in enumerate(truths) if one not in truths[:place]]}
    names = [entry.model for entry in models]
    fields = {
        "id": {"type": "string", "pattern": f"^({'|'.join(names)})@[A-Za-z0-9.]{{1,20}}:[A-Za-z0-9._-]{{1,64}}$"},
        "request_id": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"},
        "truth": {"anyOf": [truth, {"type": "array", "items": truth, "minItems": 1, "maxItems": 10_000}]},
        "row": {"type": "integer", "minimum": 0, "maximum": 9_999, "default": 0},
    }

    def by(name: str) -> Json:
        chosen = {key: fields[key] for key in (name, "truth", "row")}
        return {"type": "object", "properties": chosen, "required": [name, "truth"], "additionalProperties": False}

    kept = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "request_id": {"type": "string"},
            "rows": {"type": "array", "items": {"type": "integer"}},
            "state": {"enum": ["joined", "pending"]},
            "new": {"type": "integer"},
        },
        "required": ["id", "request_id", "rows", "state", "new"],
    }
    contract = models[0].contract
    assert contract is not None
    true_answer: Any = contract.labels[0] if contract.labels else 1.5 if contract.output == "value" else "a text"
    if contract.output == "labels":
        true_answer = [true_answer]
    elif contract.output == "values":
        true_answer = dict.fromkeys(contract.targets or (), 1.5)
    example = {"value": {"id": f"{names[0]}@1:5c1f0e9a", "truth": true_answer}}
    return operation(
        "send_feedback",
        "gateway",
        "Send the true answer to an earlier request, by its id; a list is for the rows from `row` on",
        {"202": answer("Stored: joined with the answer, or pending until the answer is found", kept)},
        (*errors.OF_INPUT, 404, 507),
        requestBody=body({"anyOf": [by("id"), by("request_id")]}, {"one": example}),
    )


# -- batches


def _batch_paths(entry: CatalogueEntry) -> Json:
    model, path = entry.model, f"/v1/models/{entry.model}/batches"
    assert entry.contract is not None
    one = {"$ref": f"#/components/schemas/{BATCH}"}
    rows = {"type": "string", "format": "binary"}
    files = {kind: {"schema": rows} for kind in MEDIA_TYPES}
    results = {kind: {"schema": rows} for kind in (PARQUET, JSON_LINES, CSV)}
    columns = {
        "name": "columns",
        "in": "query",
        "schema": {"enum": list(OTHERS), "default": OTHERS[0]},
        "description": "What happens to columns that the model does not know: the file is refused; they are ignored; or they "
        "are in the result, which then has the columns of the file and the answers beside them.",
    }
    several = {"type": "object", "properties": {"batches": {"type": "array", "items": one}}, "required": ["batches"]}
    key = {"name": "idempotency-key", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"}}
    batch = {"name": "batch", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
    return {
        path: {
            "post": operation(
                f"submit_batch_{model}",
                model,
                "Send a file of rows, to be answered in the background",
                {"202": answer("Accepted", one)},
                (408, 409, 413, 415, 422, 429, 507),
                parameters=[key, columns],
                requestBody={"required": True, "content": files},
            ),
            "get": operation(
                f"list_batches_{model}", model, "Your batches, newest first", {"200": answer("Batches", several)}, ()
            ),
        },
        f"{path}/{{batch}}": {
            "parameters": [batch],
            "get": operation(f"show_batch_{model}", model, "The state of a batch", {"200": answer("The batch", one)}, (404,)),
            "delete": operation(
                f"cancel_batch_{model}",
                model,
                "Cancel a batch, or remove one that has ended",
                {"200": answer("The batch in its last state", one)},
                (404,),
            ),
        },
        f"{path}/{{batch}}/result": {
            "parameters": [batch],
            "get": operation(
                f"batch_result_{model}",
                model,
                "The answers, in the order and the format of the file",
                {"200": {"description": "The answers", "content": results}},
                (404, 409),
            ),
        },
    }


def _refusal() -> Json:
    row = {"row": {"type": "integer"}, "place": {"type": ["string", "null"]}, "got": {"type": ["string", "null"]}}
    return {
        "type": "object",
        "properties": {
            "code": {"type": "string"},
            "field": {"type": ["string", "null"]},
            "expected": {"type": "string", "description": "What the field takes; without a field, the message."},
            "count": {"type": "integer"},
            "rows": {"type": "array", "items": {"type": "object", "properties": row}, "description": "The first ten."},
        },
        "required": ["code", "field", "expected", "count", "rows"],
    }


# -- parts


def _headline(entry: CatalogueEntry) -> str:
    assert entry.contract is not None
    return f"{entry.contract.task}: {', '.join(f.name for f in entry.contract.inputs)} → {entry.contract.target}"


def _identity_schema() -> Json:
    return {name: {"type": "string"} for name in ("id", "model", "version", "request_id")}


def _with(identity: Json, more: Json, optional: Json | None = None) -> Json:
    return {"type": "object", "properties": identity | more | (optional or {}), "required": [*identity, *more]}


def _warnings() -> Json:
    item = {"type": "object", "properties": {"path": {"type": "string"}, "message": {"type": "string"}}}
    described = "Values that no training row had, the first hundred; absent if there are none."
    return {"warnings": {"type": "array", "items": {**item, "required": ["path", "message"]}, "description": described}}


def _shared_schemas() -> Json:
    anything: Json = {"type": ["object", "null"]}
    moment: Json = {"type": ["number", "null"], "description": "Seconds since 1970."}
    return {
        "Model": {
            "type": "object",
            "properties": {
                "model": {"type": "string"},
                "path": {"type": "string"},
                "versions": {"type": "array", "items": {"type": "string"}},
                "traffic": {"type": "object", "additionalProperties": {"type": "number"}, "description": "Percent by version."},
                "health": {
                    "type": "object",
                    "properties": {"ready": {"type": "integer"}, "total": {"type": "integer"}},
                    "required": ["ready", "total"],
                    "description": "Replicas.",
                },
                "streams": {"type": "boolean"},
                "protocols": {"type": "object"},
                "contract": anything,
            },
            "required": ["model", "path", "versions", "traffic", "health", "streams", "protocols", "contract"],
        },
        "Card": {
            "type": "object",
            "description": "A text-generation model, as OpenAI's clients list it.",
            "properties": {
                "id": {"type": "string"},
                "object": {"const": "model"},
                "created": {"type": "integer", "description": "When one of its replicas became ready, in seconds since 1970."},
                "owned_by": {"type": "string"},
            },
            "required": ["id", "object", "created", "owned_by"],
        },
        "Description": {
            "type": "object",
            "properties": {"model": {"type": "string"}, "version": {"type": "string"}, "contract": {"type": "object"}},
            "required": ["model", "version", "contract"],
        },
        BATCH: {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "model": {"type": "string"},
                "state": {"enum": ["queued", "running", "waiting", "done", "failed", "cancelled"]},
                "rows_done": {"type": "integer"},
                "rows_failed": {"type": "integer"},
                "rows_total": {"type": ["integer", "null"]},
                "waits_until": moment,
                "error": anything,
                "created_at": {"type": "number"},
                "media_type": {"type": "string", "description": "Of the content of the file, once it was read; as the result."},
                "columns": {"enum": list(OTHERS)},
                "notes": {"type": "array", "items": {"type": "string"}, "description": "How the file was read."},
                "refusals": {"type": "array", "items": _refusal(), "description": "Why rows were refused, once it is done."},
                "warnings": {
                    "type": "object",
                    "additionalProperties": {"type": "integer"},
                    "description": "The number of values that no training row had, by field, once it is done.",
                },
                "tenant": {"type": "string"},
                "path": {"type": "string"},
            },
            "required": ["id", "model", "state", "rows_done", "rows_failed", "rows_total", "created_at", "media_type"],
        },
    }
