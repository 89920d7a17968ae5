"""Error responses in OpenAPI: one schema for all, and the headers that some of them have."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
ANYWHERE = (401, 403, 429, 500, 502, 503, 504)
"""Any request may get these, if only from the gateway."""
OF_INPUT = (400, 408, 413, 415, 422)
"""Requests with a JSON body may get these."""
MEANING = {
    400: "The body is not JSON",
    401: "No token, or no valid one",
    403: "The token does not allow this",
    404: "Not found",
    408: "The request did not arrive in time",
    409: "Not possible in this state",
    413: "Too large, too many instances, or more than the tenant may store",
    415: "Unsupported content-type or content-encoding",
    422: "The input violates the contract; `path` names the field",
    429: "Too many requests, or the daily quota of rows is used up",
    500: "The service failed; see its log for this request id",
    502: "A replica gave no valid response",
    503: "No replica can answer at the moment",
    504: "No answer in time",
    507: "The service's disk is full; nothing of the request is kept",
}
SCHEMAS: Json = {
    "Error": {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string", "description": "For programs, for example `contract_violation`."},
                    "message": {"type": "string", "description": "For people."},
                    "path": {"type": "string", "description": "The invalid field, for example `instances.3.distance`."},
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
_RETRY = {"retry-after": {"description": "Seconds to wait before the next attempt.", "schema": {"type": "integer"}}}
_CHALLENGE = {"www-authenticate": {"schema": {"type": "string"}}}


def _response(status: int) -> Json:
    headers = {401: _CHALLENGE, 429: _RETRY, 503: _RETRY}.get(status, {})
    shape = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": MEANING[status], "content": shape, **({"headers": headers} if headers else {})}


RESPONSES: Json = {f"Error{status}": _response(status) for status in MEANING}


def reference(status: int) -> Json:
    return {"$ref": f"#/components/responses/Error{status}"}
