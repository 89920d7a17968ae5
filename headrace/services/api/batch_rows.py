"""Checks the answers of a batch, sums up its refused rows, and writes its result. pyarrow is imported for Parquet only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace.files import atomic_write
from headrace.runtime.contract import Contract
from headrace.scoring.rows import Line
from headrace.scoring.unseen import warnings_text
from headrace.services.api.batch_store import Part

RESULT_COLUMNS = ("row", "error", "id", "id_row", "interval", "quantiles", "warnings")
"""Columns of a result beside the answers."""


def lines_of(parts: list[Part]) -> Iterator[Line]:
    """Yields the answers of all parts, in order."""
    for part in parts:
        for line in part.path.read_bytes().splitlines():
            yield json.loads(line)


class _Answered(msgspec.Struct):
    row: int


def damaged_parts(parts: list[Part]) -> Iterator[tuple[Part, int]]:
    """Yields each part that does not have one line of JSON for each of its rows, with the number of its first row."""
    decoder, first = msgspec.json.Decoder(_Answered), 0
    for part in parts:
        try:
            rows = [decoder.decode(line).row for line in part.path.read_bytes().splitlines()]
        except (msgspec.MsgspecError, UnicodeDecodeError):
            rows = []
        if rows != list(range(first, first + part.rows)):
            yield part, first
        first += part.rows


def write_parquet(parts: list[Part], contract: Contract, path: Path) -> None:
    """Writes the answers of all parts to one file atomically: `row`, the columns of the answer, `error`, `id`,
    `id_row` and `warnings`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = _answer_columns(contract)
    more = [("error", pa.string()), ("id", pa.string()), ("id_row", pa.int64()), ("warnings", pa.string())]
    schema = pa.schema([("row", pa.int64()), *columns, *more])
    with atomic_write(path) as beside, pq.ParquetWriter(beside, schema) as writer:
        for part in parts:
            lines = [json.loads(line) for line in part.path.read_bytes().splitlines()]
            writer.write_table(pa.Table.from_pylist([_flat(line, contract) for line in lines], schema=schema))


def _answer_columns(contract: Contract) -> list[tuple[str, Any]]:
    import pyarrow as pa

    if contract.output == "probabilities":
        return [
            ("label", pa.int64() if _are_numbers(contract) else pa.string()),
            ("probabilities", pa.map_(pa.string(), pa.float64())),
        ]
    if contract.output == "labels":
        kind = pa.int64() if _are_numbers(contract) else pa.string()
        return [("labels", pa.list_(kind)), ("probabilities", pa.map_(pa.string(), pa.float64()))]
    if contract.output == "values":
        return [(name, pa.float64()) for name in _value_names(contract).values()]
    if contract.output == "value":
        quantiles = ("quantiles", pa.map_(pa.string(), pa.float64()))
        more = ("interval", pa.list_(pa.float64())) if contract.quantiles is None else quantiles
        return [(_value_name(contract), pa.float64()), more]
    return [("prediction", pa.string())]


def _flat(line: dict[str, Any], contract: Contract) -> dict[str, Any]:
    answer, error = line.get("prediction"), line.get("error")
    flat = {name: line.get(name) for name in ("row", "id", "id_row")}
    flat["error"] = f"{error['code']}: {error['message']}" if error else None
    flat["warnings"] = warnings_text(line)
    if answer is None:
        return flat
    if contract.output == "probabilities":
        label = answer["label"] if _are_numbers(contract) else str(answer["label"])
        return {**flat, "label": label, "probabilities": list(answer["probabilities"].items())}
    if contract.output == "labels":
        labels = answer["labels"] if _are_numbers(contract) else [str(label) for label in answer["labels"]]
        return {**flat, "labels": labels, "probabilities": list(answer["probabilities"].items())}
    if contract.output == "values":
        return {**flat, **{_value_names(contract)[name]: value for name, value in answer.items()}}
    if contract.output == "value":
        more = (
            {"interval": answer.get("interval")}
            if contract.quantiles is None
            else {"quantiles": [*answer["quantiles"].items()]}
        )
        return {**flat, _value_name(contract): answer[contract.target], **more}
    return {**flat, "prediction": json.dumps(answer, ensure_ascii=False)}


def _are_numbers(contract: Contract) -> bool:
    return all(isinstance(label, int) for label in contract.labels or [])


def _value_name(contract: Contract) -> str:
    """The name of the target, unless the result has another column of that name."""
    return "value" if contract.target in RESULT_COLUMNS else contract.target


def _value_names(contract: Contract) -> dict[str, str]:
    """The column of each of several targets: its name, unless the result has another column of that name."""
    return {name: f"value_{name}" if name in RESULT_COLUMNS else name for name in contract.targets or ()}
