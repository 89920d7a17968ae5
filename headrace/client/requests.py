"""Building requests and parsing responses, without input or output: shared by both clients."""

from __future__ import annotations

import base64
import io
import json
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import httpx

from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.errors import CallFailed, InvalidInput, StreamInterrupted, error_class

MEDIA_TYPES = {
    ".parquet": "application/vnd.apache.parquet",
    ".pq": "application/vnd.apache.parquet",
    ".jsonl": "application/x-ndjson",
    ".ndjson": "application/x-ndjson",
    ".csv": "text/csv",
    ".tsv": "text/csv",
    ".tab": "text/csv",
    ".zip": "application/zip",
    ".gz": "application/gzip",
    ".bz2": "application/octet-stream",
    ".xz": "application/octet-stream",
}
"""Media types of batch files, by the ending of their names. The server decides by the content what a file is."""
Columns = Literal["refuse", "ignore", "keep"]
"""What happens to columns of a batch that the model does not know: the file is refused, they are ignored, or they are in the
result beside the answers."""
LONGEST_MESSAGE = 500
MAX_INSTANCES = 10_000
"""What a model takes in one request."""
FRAMES: dict[str, dict[str, Any]] = {"to_dicts": {}, "to_pylist": {}, "to_dict": {"orient": "records"}}
"""Methods with which frames of polars, pyarrow and pandas give their rows."""
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
    one = _one_instance(instance)
    given = {name: to_json_value(value) for name, value in options.items() if value is not None}
    return ApiRequest("POST", f"{path_of(model)}/explain", _json({"instance": one, **given}))


def stream_request(model: str, instance: Any) -> ApiRequest:
    return ApiRequest("POST", f"{path_of(model)}/predict", _json({"instances": to_instances(instance), "stream": True}))


def feedback_request(about: str, truth: Any, row: int) -> ApiRequest:
    """`about` is the `id` of an answer or its request id. Sending the same truth twice has no further effect."""
    name = "id" if "@" in about and ":" in about else "request_id"
    return ApiRequest("POST", "/v1/feedback", _json({name: about, "truth": to_json_value(truth), "row": row}))


def submit_request(model: str, file: Path, media_type: str | None, key: str | None, columns: Columns = "refuse") -> ApiRequest:
    """
    Raises:
        InvalidInput: the file is missing.
    """
    if not file.is_file():
        what = "this is a folder; send a zip of it" if file.is_dir() else "file not found"
        raise InvalidInput(what, where=str(file))
    content_type = media_type or MEDIA_TYPES.get(file.suffix.lower(), "application/octet-stream")
    path = f"{path_of(model)}/batches" + ("" if columns == "refuse" else f"?columns={columns}")
    return ApiRequest("POST", path, media_type=content_type, file=file, headers={"idempotency-key": key or new_id()})


def submit_frame_request(model: str, rows: Any, key: str | None, columns: Columns) -> ApiRequest:
    """Sends a frame of pandas or polars, or a table of pyarrow, as Parquet.

    Raises:
        InvalidInput: it is none of them, or has a value that Parquet cannot hold.
    """
    path = f"{path_of(model)}/batches" + ("" if columns == "refuse" else f"?columns={columns}")
    headers = {"idempotency-key": key or new_id()}
    return ApiRequest("POST", path, to_parquet(rows), MEDIA_TYPES[".parquet"], headers)


def to_parquet(rows: Any) -> bytes:
    """Returns a frame as Parquet, with the library that it is of.

    Raises:
        InvalidInput: it is not a frame, two columns have one name, or Parquet cannot hold a value.
    """
    content = io.BytesIO()
    if not hasattr(rows, "columns"):
        raise InvalidInput(f"expected the path of a file, or a frame, got {type(rows).__name__}")
    _refuse_repeated_columns(_column_names(rows))
    try:
        if hasattr(rows, "to_parquet"):  # pandas
            rows.to_parquet(content)
        elif hasattr(rows, "write_parquet"):  # polars
            rows.write_parquet(content)
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_batches([rows]), content)
    except (TypeError, ValueError, ImportError, NotImplementedError) as error:  # the last: Arrow, for types that Parquet lacks
        message = f"the frame cannot be written as Parquet: {str(error)[:LONGEST_MESSAGE]}"
        raise InvalidInput(message, hint="convert the column to numbers, texts, booleans or times") from None
    return content.getvalue()


def _column_names(frame: Any) -> list[Any]:
    """Returns the names of a frame's columns; those of pyarrow are in its schema."""
    return list(frame.schema.names if hasattr(frame, "to_pylist") else frame.columns)


def batches_request(model: str, batch: str | None = None, rest: str = "", method: str = "GET") -> ApiRequest:
    one = "" if batch is None else f"/{quote(batch, safe='')}"
    return ApiRequest(method, f"{path_of(model)}/batches{one}{rest}")


def review_request(model: str, version: str, act: str, why: str) -> ApiRequest:
    """`act` is `approve` or `reject`."""
    path = f"/v1/candidates/{quote(model, safe='')}/{quote(version, safe='')}/{act}"
    return ApiRequest("POST", path, _json({"why": why}), is_safe=False)


def history_request(model: str) -> ApiRequest:
    return ApiRequest("GET", f"/v1/history/{quote(model, safe='')}")


def path_of(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"


# -- values


def to_instances(given: Any) -> list[Any]:
    """Returns one instance, several, or the rows of a frame of pandas, polars or pyarrow as a list of JSON values.

    Raises:
        InvalidInput: there are no instances or too many, a column occurs twice, or JSON cannot represent a value; `where`
            names it, for example `instances.3.distance`.
    """
    if hasattr(given, "columns") and (rows := next((name for name in FRAMES if hasattr(given, name)), None)):
        _refuse_repeated_columns(_column_names(given))
        given = getattr(given, rows)(**FRAMES[rows])
    elif isinstance(given, Mapping) or hasattr(given, "to_dict") or _is_record(given):
        given = [given]
    elif isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidInput(f"expected an instance (a mapping of fields to values) or several, got {type(given).__name__}")
    instances = [to_json_value(instance, f"instances.{row}") for row, instance in enumerate(given)]
    if not instances:
        raise InvalidInput("expected at least one instance, got none", where="instances")
    if len(instances) > MAX_INSTANCES:
        raise InvalidInput(
            f"{len(instances):,} instances exceed the limit of {MAX_INSTANCES:,} for one request",
            where="instances",
            hint="send them in parts, or write them to a Parquet file and submit it as a batch",
        )
    return instances


def _refuse_repeated_columns(names: list[Any]) -> None:
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidInput(f"expected a column for each field, got several named {', '.join(map(repr, repeated))}")


def _one_instance(given: Any) -> Any:
    found = to_instances(given)
    if len(found) != 1:
        raise InvalidInput(f"expected one instance, got {len(found):,}", where="instances")
    return found[0]


def _is_record(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def to_json_value(value: Any, where: str | None = None) -> Any:
    """Converts a value to JSON types: arrays to lists, missing values to null, bytes to base64. Does not import pandas.

    Args:
        where: the path of the value, for errors.

    Raises:
        InvalidInput: JSON cannot represent the value, for example infinity.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | Decimal):
        if value.is_infinite() if isinstance(value, Decimal) else math.isinf(value):
            raise InvalidInput("JSON cannot represent infinity; send a finite number, or null for a missing value", where=where)
        if isinstance(value, Decimal) and value == value and abs(value) > 2**53 and value == value.to_integral_value():
            return int(value)  # a float would be another number; the service says what it takes
        return None if value != value else float(value)  # a missing number is not equal to itself
    if _is_record(value):
        value = {one.name: getattr(value, one.name) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_json_value(one, f"{where}.{name}" if where else str(name)) for name, one in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if type(value).__name__ in ("NAType", "NaTType"):  # missing values of pandas
        return None
    if getattr(getattr(value, "dtype", None), "kind", "") == "M":  # numpy would give nanoseconds as numbers
        texts = value.astype(str).tolist()
        return [_moment(text) for text in texts] if value.ndim else _moment(texts)
    for method in ("to_dict", "tolist", "isoformat"):  # a pandas row, an array or its scalar, a date
        if hasattr(value, method):
            return to_json_value(getattr(value, method)(), where)
    if isinstance(value, Iterable):
        return [to_json_value(one, where) for one in value]
    raise InvalidInput(f"a value of type {type(value).__name__} cannot be sent as JSON", where=where)


def _moment(text: str) -> str | None:
    return None if text == "NaT" else text


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
