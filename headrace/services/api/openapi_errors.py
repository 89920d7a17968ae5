"""Refusals as OpenAPI tells them: one shape for all, and the headers that come with some."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
ANYWHERE = (401, 403, 429, 500, 502, 503, 504)
"""Any request may meet these, if only from the door."""
OF_INPUT = (400, 408, 413, 415, 422)
"""Requests with a body of JSON."""
MEANING = {
    400: "The body is no JSON",
    401: "No token, or none that is in force",
    403: "The token does not allow this",
    404: "Not there",
    408: "The request did not arrive in time",
    409: "Not in this state",
    413: "Too large, or too many instances",
    415: "Another content-type, or a content-encoding",
    422: "What was sent breaks the contract; `path` names the field",
    429: "Too many requests, or the day's rows are used up",
    500: "The service failed; see its log for this request id",
    502: "A server gave no valid answer",
    503: "Nobody can answer at the moment",
    504: "No answer in time",
    507: "The service's disk is full; nothing of the file was kept",
}
SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string", "description": "For programs, such as `contract_violation`."},
                    "message": {"type": "string", "description": "For people."},
                    "path": {"type": "string", "description": "The field at fault, such as `instances.3.distance`."},
                    "expected": {"type": "string"},
                    "got": {"type": "string"},
                },
                "required": ["code", "message"],
            },
            "request_id": {"type": "string"},
        },
        "required": ["error", "request_id"],
    }
}
_RETRY = {"retry-after": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_CHALLENGE = {"www-authenticate": {"schema": {"type": "string"}}}


def _response(status: int) -> Json:
    headers = {401: _CHALLENGE, 429: _RETRY, 503: _RETRY}.get(status, {})
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": MEANING[status], "content": shape, **({"headers": headers} if headers else {})}


RESPONSES: Json = {f"Error{status}": _response(status) for status in MEANING}


def reference(status: int) -> Json:
    return {"$ref": f"#/components/responses/Error{status}"}
