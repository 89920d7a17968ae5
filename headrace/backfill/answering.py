"""Answers rows by a loaded model as a replica does: the same conversion, the same graph, the same answers and errors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.client.errors import InvalidInput
from headrace.client.requests import to_json_value
from headrace.runtime.contract import Contract
from headrace.scoring.refusals import error_line
from headrace.scoring.rows import BadRow, Line
from headrace.scoring.unseen import warnings_by_row

if TYPE_CHECKING:
    from bentos.models.served_model import ServedModel

GROUP_ROWS, GROUP_IMAGES, GROUP_TEXTS = 100, 8, 16
"""Rows of one run of the model: as many as in a request of a batch; fewer where a row is large or takes long."""
ROW = re.compile(r"instances\.(\d+)\b")
MAX_BAD_ROWS = 4
"""Bad rows that are removed from a group one after another; with more of them, the group is halved."""

Numbered = list[tuple[int, Any]]
"""Rows with their numbers."""


def group_rows(contract: Contract) -> int:
    """Returns how many rows the model answers in one run. It depends on nothing else, so that answers do not depend on where
    a backfill was interrupted: the last bits of a graph's output can depend on the rows that run together."""
    if contract.output == "text":
        return GROUP_TEXTS
    return GROUP_IMAGES if any(field.dtype == "uint8" and field.shape for field in contract.inputs) else GROUP_ROWS


class Answerer:
    """Answers groups of rows by one model.

    Args:
        answer_id: the `id` of the answers.
    """

    def __init__(self, model: ServedModel, answer_id: str) -> None:
        from bentos.models.onnx_model import InvalidOutput
        from bentos.protocols.v1 import predict_with_warnings
        from headrace.runtime.http import Refused

        self._model, self._id = model, answer_id
        self._predict: Callable[..., Any] = predict_with_warnings
        self._refused, self._invalid = Refused, InvalidOutput

    def answer(self, rows: list[Any], first: int) -> list[Line]:
        """Returns a line for each row; `first` is the number of the first one.

        Raises:
            Exception: the model fails also with its own sample.
        """
        lines: list[Line] = []
        good: Numbered = []
        for row, value in enumerate(rows, first):
            if isinstance(value, BadRow):
                lines.append({"row": row, "error": dict(value)})
                continue
            try:
                good.append((row, to_json_value(value)))
            except (InvalidInput, RecursionError) as error:
                message = getattr(error, "message", "the JSON is nested too deeply")
                lines.append(error_line(row, "contract_violation", message, {}))
        lines += self._answer(good, MAX_BAD_ROWS)
        return sorted(lines, key=lambda line: int(line["row"]))

    def _answer(self, rows: Numbered, max_bad_rows: int) -> list[Line]:
        if not rows:
            return []
        try:
            return self._answered(rows)
        except self._refused as refused:
            bad = ROW.match(str(refused.details.get("path") or ""))
            if len(rows) == 1:
                return [error_line(rows[0][0], refused.code, refused.message, refused.details)]
            if bad and int(bad[1]) < len(rows) and max_bad_rows > 0:
                place = int(bad[1])
                line = error_line(rows[place][0], refused.code, refused.message, refused.details)
                return [line, *self._answer(rows[:place] + rows[place + 1 :], max_bad_rows - 1)]
        except self._invalid:
            from bentos.app import NO_FINITE_OUTPUT

            if len(rows) == 1:
                self._model.predict([self._model.contract.sample])  # raises if the model is to blame
                return [error_line(rows[0][0], NO_FINITE_OUTPUT.code, NO_FINITE_OUTPUT.message, {})]
        middle = len(rows) // 2
        return self._answer(rows[:middle], MAX_BAD_ROWS) + self._answer(rows[middle:], MAX_BAD_ROWS)

    def _answered(self, rows: Numbered) -> list[Line]:
        instances = [value for _, value in rows]
        _, predictions, unseen = self._predict(self._model, instances)
        lines: list[Line] = [
            {"row": row, "prediction": prediction, "id": self._id, "id_row": row}
            for (row, _), prediction in zip(rows, predictions, strict=True)
        ]
        if unseen.counts:
            found = warnings_by_row(unseen.messages("instances"), self._model.contract, instances)
            for place, warnings in found.items():
                lines[place]["warnings"] = warnings
        return lines
