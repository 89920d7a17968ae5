"""Candidates, history and reviews in the OpenAPI description, for tokens with a role."""

from __future__ import annotations

from typing import Any

from headrace.recipe.recipe import NAME_PATTERN
from headrace.services.api import openapi_errors as errors

Json = dict[str, Any]
MODEL: Json = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "pattern": NAME_PATTERN}}
VERSION: Json = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]{1,9}$"}}
TEXT: Json = {"type": "string"}
WHO: Json = {"by": TEXT, "role": TEXT, "at": TEXT, "why": TEXT}
COUNT: Json = {"type": "integer"}
AFTER: Json = {
    "state": {"enum": ["waiting", "approved", "rejected", "released"]}, "approvals": COUNT, "approvers": COUNT, "next": TEXT,
}  # fmt: skip
"""What a review amounts to."""


def review_paths() -> Json:
    """`/v1/candidates` and `/v1/history`."""
    candidates = _object({"candidates": {"type": "array", "items": {"$ref": "#/components/schemas/Candidate"}}})
    history = _object({"model": TEXT, "entries": {"type": "array", "items": {"type": "object"}}})
    one = "/v1/candidates/{model}/{version}"
    return {
        "/v1/candidates": {
            "get": _operation(
                "list_candidates", "Versions that passed the gate and wait for approval, or have been reviewed", candidates, ()
            )
        },
        "/v1/history/{model}": {
            "parameters": [MODEL],
            "get": _operation("history", "The release journal of a model, oldest entry first", history, (404,)),
        },
        f"{one}/approve": {"parameters": [MODEL, VERSION], "post": _review("approve", needs_reason=False)},
        f"{one}/reject": {"parameters": [MODEL, VERSION], "post": _review("reject", needs_reason=True)},
    }


def review_schemas() -> Json:
    maybe: Json = {"type": ["string", "null"]}
    return {
        "Candidate": _object(
            {
                "model": TEXT,
                "version": TEXT,
                "state": {"enum": ["waiting", "approved", "rejected"]},
                "since": TEXT,
                "expires": maybe,
                "approvers": {"type": "integer", "description": "How many people have to approve."},
                "approvals": {"type": "array", "items": _object(WHO)},
                "in_production": maybe,
                "verdict": {"type": ["object", "null"], "description": "The findings of the gate."},
                **dict.fromkeys(("run_id", "data_md5", "git_commit", "content_sha256"), maybe),
                "review": {"anyOf": [_object(WHO), {"type": "null"}]},
            }
        )
    }


def _review(act: str, needs_reason: bool) -> Json:
    why: Json = {"type": "string", "maxLength": 1000, "pattern": "^[ -~]+$" if needs_reason else "^[ -~]*$"}
    asked = _object({"why": why}, ["why"] if needs_reason else [])
    done = _object({"model": TEXT, "version": TEXT, "outcome": {"enum": ["approved", "rejected"]}, **WHO, **AFTER})
    summary = f"{act.capitalize()} a version that waits for approval; for the roles reviewer and operator"
    found = _operation(f"{act}_version", summary, done, (*errors.OF_INPUT, 404, 409))
    content = {"application/json": {"schema": {**asked, "additionalProperties": False}}}
    return {**found, "requestBody": {"required": True, "content": content}}


def _operation(name: str, summary: str, shape: Json, refusals: tuple[int, ...]) -> Json:
    responses: Json = {"200": {"description": "The answer", "content": {"application/json": {"schema": shape}}}}
    responses |= {str(status): errors.reference(status) for status in (*errors.ANYWHERE, *refusals)}
    return {"operationId": name, "tags": ["gateway"], "summary": summary, "responses": dict(sorted(responses.items()))}


def _object(properties: Json, required: list[str] | None = None) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required}
