"""Asks a model for the rows of a part: in requests of the right size, and so that a bad row spoils no other."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import msgspec

from headrace.client import AsyncClient
from headrace.client.errors import CallFailed, InvalidInput, QuotaExceeded, TimedOut, Unavailable
from headrace.services.api.batch_rows import BadRow

AT_ONCE = 2
"""Requests under way: enough to keep a replica busy, few enough to leave it to others."""
REQUEST_SECONDS = 0.1
"""What a request may keep a replica busy for."""
FIRST_ROWS, MOST_ROWS = 16, 100
"""No more than a replica records the answers of, so that feedback can be told to every row."""
BAD_ROWS_AT_ONCE = 4
"""Rows taken out of a request one after another; if there are still more, its rows are asked one by one."""
ROW = re.compile(r"instances\.(\d+)\b")

Line = dict[str, Any]
"""`{"row", "prediction", "id", "id_row"}`, or `{"row", "error": {"code", "message", ...}}`."""
Numbered = list[tuple[int, Any]]
"""Rows with their numbers in the batch."""


class Waits(Exception):
    """The batch has to wait for `seconds`."""

    def __init__(self, code: str, message: str, seconds: float) -> None:
        super().__init__(message)
        self.code, self.message, self.seconds = code, message, seconds


class Asking:
    """Requests in the name of one batch."""

    def __init__(self, client: AsyncClient, model: str, batch: str, at_once: int = AT_ONCE) -> None:
        self._client, self._model, self._batch, self._at_once = client, model, batch, at_once
        self._rows = FIRST_ROWS
        self._left: Numbered = []
        self._lines: list[Line] = []
        self._failure: Waits | CallFailed | None = None

    async def answer(self, rows: list[Any], first: int) -> tuple[list[Line], Waits | CallFailed | None]:
        """A line for each row, in their order; `first` is the number of the first one in the batch.

        When the quota is used up, or the service cannot answer whatever the rows, this comes beside the lines of the rows
        before the first that has none.
        """
        numbered = list(enumerate(rows, first))
        self._lines = [{"row": row, "error": dict(value)} for row, value in numbered if isinstance(value, BadRow)]
        self._left = [(row, value) for row, value in numbered if not isinstance(value, BadRow)]
        self._failure = None
        await asyncio.gather(*(self._keep_asking() for _ in range(self._at_once)))
        lines = sorted(self._lines, key=lambda line: int(line["row"]))
        return [line for row, line in enumerate(lines, first) if line["row"] == row], self._failure

    async def _keep_asking(self) -> None:
        """Takes rows as long as there are some, and no request has failed as a whole."""
        while self._left and self._failure is None:
            rows, self._left = self._left[: self._rows], self._left[self._rows :]
            try:
                await self._ask(rows, BAD_ROWS_AT_ONCE)
            except (Waits, CallFailed) as error:
                self._failure = error

    async def _ask(self, rows: Numbered, patience: int) -> None:
        """One request, or several smaller ones where it is refused. Lines are kept as they come, whatever comes after."""
        if not rows:
            return
        try:
            self._lines += await self._predict(rows)
        except InvalidInput as error:
            at_fault = ROW.match(error.path or "")
            if len(rows) == 1:
                self._lines.append(_error_line(rows[0][0], error))
            elif at_fault and int(at_fault[1]) < len(rows) and patience > 0:
                place = int(at_fault[1])
                self._lines.append(_error_line(rows[place][0], error))
                await self._ask(rows[:place] + rows[place + 1 :], patience - 1)
            else:
                await self._in_parts(rows, 1 if at_fault else len(rows) // 2)
        except QuotaExceeded as error:
            if len(rows) == 1:
                raise Waits("quota_exceeded", error.message, error.retry_after or 60.0) from None
            await self._in_parts(rows, len(rows) // 2)  # what is left of the quota may do for fewer
        except (TimedOut, Unavailable) as error:
            if not isinstance(error, TimedOut) and error.status != 500:
                raise
            if len(rows) == 1:
                self._lines.append(_error_line(rows[0][0], error))
            else:
                await self._in_parts(rows, len(rows) // 2)

    async def _in_parts(self, rows: Numbered, size: int) -> None:
        for start in range(0, len(rows), size):
            await self._ask(rows[start : start + size], BAD_ROWS_AT_ONCE)

    async def _predict(self, rows: Numbered) -> list[Line]:
        start = time.monotonic()
        request_id = f"batch-{self._batch}-{rows[0][0]}-{len(rows)}"
        try:
            answer = await self._client.predict(self._model, [value for _, value in rows], request_id=request_id)
        except RecursionError:
            raise InvalidInput("the JSON is nested too deeply", code="bad_json") from None
        self._learn(len(rows), time.monotonic() - start)
        if len(answer.predictions) != len(rows):
            raise CallFailed(f"{len(answer.predictions)} answers to {len(rows)} rows", code="internal", status=500)
        return [
            {"row": row, "prediction": prediction, "id": answer.id, "id_row": place}
            for place, ((row, _), prediction) in enumerate(zip(rows, answer.predictions, strict=True))
        ]

    def _learn(self, rows: int, seconds: float) -> None:
        """The next requests' rows: what fits `REQUEST_SECONDS`, at most twice as many as this one had."""
        fitting = int(rows * REQUEST_SECONDS / max(seconds, 1e-6))
        self._rows = max(1, min(fitting, rows * 2, MOST_ROWS)) if rows >= self._rows or fitting < rows else self._rows


def _error_line(row: int, error: CallFailed) -> Line:
    """Without the number that the row had in its request: in the result only the batch's own counts."""
    said = {"code": error.code or "contract_violation", "message": ROW.sub("row", error.message), **error.details}
    if "path" in said:
        said["path"] = ROW.sub("row", str(said["path"]))
    return {"row": row, "error": said}


def encode(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"
