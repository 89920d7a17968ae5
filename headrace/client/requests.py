"""Building requests and parsing responses, without input or output: shared by both clients."""

from __future__ import annotations

import base64
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.errors import CallFailed, InvalidInput, StreamInterrupted, error_class

MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
}
"""Media types of batch files, by the ending of their names."""
LONGEST_MESSAGE = 500
Answer = TypeVar("Answer", Prediction, Explanation, Batch)


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class ApiRequest:
    """One request; its id is the same in all attempts."""

    method: str
    path: str
    body: bytes | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    """A file to send as the body; read again at each attempt."""
    is_safe: bool = True
    """Whether it can be sent twice without harm."""
    request_id: str = field(default_factory=new_id)

    def to_headers(self) -> dict[str, str]:
        headers = {"x-request-id": self.request_id, **self.headers}
        if self.file is not None:
            headers["content-length"] = str(self.file.stat().st_size)
        if self.body is not None or self.file is not None:
            headers["content-type"] = self.media_type
        return headers


def predict_request(model: str, instances: Any, request_id: str | None = None) -> ApiRequest:
    body = _json({"instances": to_instances(instances)})
    return ApiRequest("POST", f"{path_of(model)}/predict", body, request_id=request_id or new_id())


def explain_request(model: str, instance: Any, options: Mapping[str, Any]) -> ApiRequest:
    (one,) = to_instances(instance)
    given = {name: to_json_value(value) for name, value in options.items() if value is not None}
    return ApiRequest("POST", f"{path_of(model)}/explain", _json({"instance": one, **given}))


def stream_request(model: str, instance: Any) -> ApiRequest:
    return ApiRequest("POST", f"{path_of(model)}/predict", _json({"instances": to_instances(instance), "stream": True}))


def feedback_request(about: str, truth: Any, row: int) -> ApiRequest:
    """`about` is the `id` of an answer or its request id. Sending the same truth twice has no further effect."""
    name = "id" if "@" in about and ":" in about else "request_id"
    return ApiRequest("POST", "/v1/feedback", _json({name: about, "truth": to_json_value(truth), "row": row}))


def submit_request(model: str, file: Path, media_type: str | None, key: str | None) -> ApiRequest:
    """
    Raises:
        InvalidInput: the file is missing, or the ending of its name is unknown.
    """
    content_type = media_type or MEDIA_TYPES.get(file.suffix.lower())
    if content_type is None:
        known = ", ".join(sorted(MEDIA_TYPES))
        raise InvalidInput(f"{file.name}: unknown ending of a batch file; known: {known}", hint="rename it, or give media_type")
    if not file.is_file():
        raise InvalidInput("file not found", where=str(file))
    return ApiRequest(
        "POST", f"{path_of(model)}/batches", media_type=content_type, file=file, headers={"idempotency-key": key or new_id()}
    )


def batches_request(model: str, batch: str | None = None, rest: str = "", method: str = "GET") -> ApiRequest:
    one = "" if batch is None else f"/{quote(batch, safe='')}"
    return ApiRequest(method, f"{path_of(model)}/batches{one}{rest}")


def path_of(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"


# -- values


def to_instances(given: Any) -> list[Any]:
    """Returns one instance, several, or the rows of a pandas frame as a list of JSON values."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = given.to_dict(orient="records")
    elif isinstance(given, Mapping) or hasattr(given, "to_dict"):
        given = [given]
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidInput(f"expected an instance (a mapping of fields to values) or several, got {type(given).__name__}")
    return [to_json_value(instance) for instance in given]


def to_json_value(value: Any) -> Any:
    """Converts a value to JSON types: arrays to lists, missing values to null, bytes to base64. Does not import pandas.

    Raises:
        InvalidInput: JSON cannot represent the value, for example infinity.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise InvalidInput("JSON cannot represent infinity; send a finite number, or null for a missing value")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): to_json_value(one) for name, one in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if type(value).__name__ in ("NAType", "NaTType"):  # missing values of pandas
        return None
    for method in ("to_dict", "tolist", "isoformat"):  # a pandas row, an array or its scalar, a date
        if hasattr(value, method):
            return to_json_value(getattr(value, method)())
    if isinstance(value, Iterable):
        return [to_json_value(one) for one in value]
    raise InvalidInput(f"a value of type {type(value).__name__} cannot be sent as JSON")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


# -- responses


def parse_answer(cls: type[Answer], found: Mapping[str, Any]) -> Answer:
    """Builds an answer. Fields that are unknown here go to `more`, if the class has it, and are ignored otherwise."""
    names = {one.name for one in fields(cls)}
    known: dict[str, Any] = {name: value for name, value in found.items() if name in names}
    others = {name: value for name, value in found.items() if name not in names}
    return cls(**known | ({"more": others} if "more" in names else {}))


def complete_response(response: httpx.Response, body: bytes) -> httpx.Response:
    """Returns the response with its body, which was read in chunks."""
    return httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)


def json_body(response: httpx.Response, call: ApiRequest) -> dict[str, Any]:
    """
    Raises:
        CallFailed: the response is an error, or not a JSON object.
    """
    if response.status_code >= 400:
        raise error_of(response, call)
    try:
        found = response.json()
        if not isinstance(found, dict):
            raise ValueError(type(found).__name__)
    except ValueError as error:
        message = f"expected a JSON object, got {response.headers.get('content-type', 'nothing')} ({error})"
        raise CallFailed(
            message, where=str(response.request.url), status=response.status_code, request_id=call.request_id
        ) from None
    return found


def error_of(response: httpx.Response, call: ApiRequest) -> CallFailed:
    """Returns the error for an error response whose body has been read."""
    code, message, details = "", response.text[:LONGEST_MESSAGE] or response.reason_phrase, {}
    request_id = response.headers.get("x-request-id", call.request_id)
    try:
        body = response.json()
        details = dict(body["error"])
        code, message = str(details.pop("code")), str(details.pop("message"))
        request_id = str(body.get("request_id") or request_id)
    except (ValueError, KeyError, TypeError):
        pass  # the response is not Headrace's, but a proxy's in between
    return error_class(response.status_code, code)(
        message,
        where=f"{response.request.url.copy_with(query=None)}",
        status=response.status_code,
        code=code or None,
        request_id=request_id,
        retry_after=_seconds(response.headers.get("retry-after")),
        details=details,
    )


class EventParser:
    """Parses server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) into pieces of a text."""

    def __init__(self) -> None:
        self._buffer = b""
        self.is_complete = False

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """
        Raises:
            StreamInterrupted: the model failed.
        """
        *blocks, self._buffer = (self._buffer + chunk).split(b"\n\n")
        for block in blocks:
            # Split at "\n" only: a text may hold other characters that str.splitlines takes for line ends.
            lines = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line[1:])
            if "data" not in lines:
                continue  # a comment, sent to keep the connection open
            data = json.loads(lines["data"])
            if lines.get("event") == "error":
                error = data.get("error", {})
                raise StreamInterrupted(
                    str(error.get("message", "the model failed")), code=error.get("code"), request_id=data.get("request_id")
                )
            self.is_complete = self.is_complete or "finish_reason" in data
            yield Piece(**{one.name: data[one.name] for one in fields(Piece) if one.name in data})

    def end(self) -> None:
        """
        Raises:
            StreamInterrupted: the last piece is missing.
        """
        if not self.is_complete:
            raise StreamInterrupted("the stream was interrupted: the replica stopped, or sent nothing for too long")


def _seconds(value: str | None) -> float | None:
    """The seconds of a `Retry-After` header; None for one with a date."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
