"""Scores a file without a service: a contract, and answers to the rows that fit it."""

from __future__ import annotations

import io
from pathlib import Path

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import ContractViolation
from headrace.scoring.open_rows import open_rows
from headrace.scoring.results import write_result
from headrace.scoring.rows import BadRow, Line, Others
from headrace.scoring.unseen import warnings_by_row

CONTRACT = Contract(
    model="m",
    task="classification",
    output="probabilities",
    labels=["no", "yes"],
    target="y",
    inputs=[
        InputField(name="price", dtype="float32"),
        InputField(name="store", dtype="string", levels=["3", "17"]),
        InputField(name="member", dtype="float32", boolean=True, nullable=True),
    ],
    sample={},
)


def score(path: Path, others: Others = "keep", contract: Contract = CONTRACT) -> tuple[bytes, list[Line], list[str]]:
    """The result of a file, the line of each row, and what was noted: answers are "yes" for 0.75 wherever the row is valid."""
    file = open_rows(path, contract, others)
    lines: list[Line] = []
    for chunk in file.chunks():
        for value in chunk.values:
            lines.append(_answer(len(lines), value, contract))
    assert file.count() == len(lines)
    result = io.BytesIO()
    write_result(file, result, lines)
    return result.getvalue(), lines, file.notes


def _answer(row: int, value: object, contract: Contract) -> Line:
    if isinstance(value, BadRow):
        return {"row": row, "error": dict(value)}
    try:
        feeds = contract.to_feeds([value], "row")
    except ContractViolation as error:
        message = str(error).replace("row.0", "row")
        return {"row": row, "error": {"code": "contract_violation", "message": message, "got": error.got}}
    answer = {"label": "yes", "probabilities": {"no": 0.25, "yes": 0.75}}
    line: Line = {"row": row, "prediction": answer, "id": "m@1:x", "id_row": row}
    warnings = warnings_by_row(contract.unseen(feeds).messages("instances"), contract, [value])
    return {**line, "warnings": warnings[0]} if warnings else line
