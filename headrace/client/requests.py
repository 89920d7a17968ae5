"""Requests and what comes back, as values: no input or output here, so that both clients share it."""

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
from headrace.client.errors import BrokenOff, CallFailed, InvalidInput, error_class

MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
}
"""Of a batch's file, by the end of its name."""
LONGEST_MESSAGE = 500
Answer = TypeVar("Answer", Prediction, Explanation, Batch)


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Call:
    """One request; it keeps its id through all tries."""

    method: str
    path: str
    body: bytes | None = None
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None
    """Sent as the body, read anew with each try."""
    is_safe: bool = True
    """Whether it may arrive twice."""
    request_id: str = field(default_factory=new_id)

    def to_headers(self) -> dict[str, str]:
        headers = {"x-request-id": self.request_id, **self.headers}
        if self.file is not None:
            headers["content-length"] = str(self.file.stat().st_size)
        if self.body is not None or self.file is not None:
            headers["content-type"] = self.media_type
        return headers


def predict(model: str, instances: Any, request_id: str | None = None) -> Call:
    body = _json({"instances": to_instances(instances)})
    return Call("POST", f"{path_of(model)}/predict", body, request_id=request_id or new_id())


def explain(model: str, instance: Any, options: Mapping[str, Any]) -> Call:
    (one,) = to_instances(instance)
    asked = {name: plain(value) for name, value in options.items() if value is not None}
    return Call("POST", f"{path_of(model)}/explain", _json({"instance": one, **asked}))


def stream(model: str, instance: Any) -> Call:
    return Call("POST", f"{path_of(model)}/predict", _json({"instances": to_instances(instance), "stream": True}))


def feedback(about: str, truth: Any, row: int) -> Call:
    """`about` is an answer's `id`, or its request id. The same truth twice is the same as once."""
    name = "id" if "@" in about and ":" in about else "request_id"
    return Call("POST", "/v1/feedback", _json({name: about, "truth": plain(truth), "row": row}))


def submit(model: str, file: Path, media_type: str | None, key: str | None) -> Call:
    """
    Raises:
        InvalidInput: the file is missing, or its name does not say what it is.
    """
    kind = media_type or MEDIA_TYPES.get(file.suffix.lower())
    if kind is None:
        known = ", ".join(sorted(MEDIA_TYPES))
        raise InvalidInput(f"{file.name}: its end says no kind of batch; known: {known}", hint="name it so, or give media_type")
    if not file.is_file():
        raise InvalidInput("no such file", where=str(file))
    return Call("POST", f"{path_of(model)}/batches", media_type=kind, file=file, headers={"idempotency-key": key or new_id()})


def batches(model: str, batch: str | None = None, rest: str = "", method: str = "GET") -> Call:
    one = "" if batch is None else f"/{quote(batch, safe='')}"
    return Call(method, f"{path_of(model)}/batches{one}{rest}")


def path_of(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"


# -- values


def to_instances(given: Any) -> list[Any]:
    """One instance, several, or the rows of a pandas frame, as plain JSON values."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        given = given.to_dict(orient="records")
    elif isinstance(given, Mapping) or hasattr(given, "to_dict"):
        given = [given]
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidInput(f"expected an instance (a mapping of fields to values) or several, got {type(given).__name__}")
    return [plain(instance) for instance in given]


def plain(value: Any) -> Any:
    """The value as JSON has it: arrays as lists, what is missing as null, bytes in base64. numpy and pandas stay unimported.

    Raises:
        InvalidInput: JSON has no such value, an infinity for one.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise InvalidInput("JSON has no infinity; send a finite number, or null for one that is missing")
        return None if math.isnan(value) else value
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' own words for a missing value
        return None
    for method in ("to_dict", "tolist", "isoformat"):  # a pandas row, an array or its scalar, a date
        if hasattr(value, method):
            return plain(getattr(value, method)())
    if isinstance(value, Iterable):
        return [plain(one) for one in value]
    raise InvalidInput(f"a {type(value).__name__} cannot be sent as JSON")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


# -- answers


def read(kind: type[Answer], found: Mapping[str, Any]) -> Answer:
    """An answer's fields; those that a newer service adds go to `more`, where there is one, or are left out."""
    names = {one.name for one in fields(kind)}
    known: dict[str, Any] = {name: value for name, value in found.items() if name in names}
    others = {name: value for name, value in found.items() if name not in names}
    return kind(**known | ({"more": others} if "more" in names else {}))


def whole_response(response: httpx.Response, body: bytes) -> httpx.Response:
    """The response with its body, which was read piece by piece."""
    return httpx.Response(response.status_code, headers=response.headers, content=body, request=response.request)


def body_of(response: httpx.Response, call: Call) -> dict[str, Any]:
    """
    Raises:
        CallFailed: the response is a refusal, or no answer of Headrace's.
    """
    if response.status_code >= 400:
        raise refusal(response, call)
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


def refusal(response: httpx.Response, call: Call) -> CallFailed:
    """The error that a response stands for; its body has been read."""
    code, message, details = "", response.text[:LONGEST_MESSAGE] or response.reason_phrase, {}
    request_id = response.headers.get("x-request-id", call.request_id)
    try:
        said = response.json()
        details = dict(said["error"])
        code, message = str(details.pop("code")), str(details.pop("message"))
        request_id = str(said.get("request_id") or request_id)
    except (ValueError, KeyError, TypeError):
        pass  # not a word of Headrace's own: something between the two answered
    return error_class(response.status_code, code)(
        message,
        where=f"{response.request.url.copy_with(query=None)}",
        status=response.status_code,
        code=code or None,
        request_id=request_id,
        retry_after=_seconds(response.headers.get("retry-after")),
        details=details,
    )


def events(chunks: Iterable[bytes]) -> Iterator[Piece]:
    """The pieces of a text, from server-sent events; for a stream that is read to its end, see `Events`."""
    reader = Events()
    for chunk in chunks:
        yield from reader.feed(chunk)
        if reader.is_whole:
            return
    reader.end()


class Events:
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) to pieces of a text."""

    def __init__(self) -> None:
        self._held = b""
        self.is_whole = False

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """
        Raises:
            BrokenOff: the model failed amid the text.
        """
        *whole, self._held = (self._held + chunk).split(b"\n\n")
        for block in whole:
            # By "\n" alone: a text may hold other characters that Python takes for the end of a line.
            lines = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line[1:])
            if "data" not in lines:
                continue  # a comment: the model is still at it
            data = json.loads(lines["data"])
            if lines.get("event") == "error":
                said = data.get("error", {})
                raise BrokenOff(
                    str(said.get("message", "the model failed")), code=said.get("code"), request_id=data.get("request_id")
                )
            self.is_whole = self.is_whole or "finish_reason" in data
            yield Piece(**{one.name: data[one.name] for one in fields(Piece) if one.name in data})

    def end(self) -> None:
        """
        Raises:
            BrokenOff: the last piece has not come.
        """
        if not self.is_whole:
            raise BrokenOff("the text broke off: its replica was stopped, or was silent for too long")


def _seconds(value: str | None) -> float | None:
    """Of a `Retry-After` in seconds; one with a date is left to the backoff."""
    try:
        return max(0.0, float(value)) if value is not None else None
    except ValueError:
        return None
