"""Sends the rows of a batch to a model, in requests of the right size, so that a bad row does not affect the others."""

from __future__ import annotations

import asyncio
import re
import time
from threading import Event
from typing import Any

import msgspec

from headrace.client import AsyncClient
from headrace.client.errors import CallFailed, InvalidInput, QuotaExceeded, TimedOut, Unavailable
from headrace.runtime.contract import Contract
from headrace.scoring.refusals import error_line
from headrace.scoring.rows import BadRow, Line
from headrace.scoring.unseen import warnings_by_row

AT_ONCE = 2
"""Requests in progress: enough to keep a replica busy, few enough to leave capacity for others."""
REQUEST_SECONDS = 0.1
"""How long a request may keep a replica busy."""
FIRST_ROWS, MAX_ROWS = 16, 100
"""A replica records the answers of at most 100 rows per request: more would get no feedback."""
MAX_BAD_ROWS = 4
"""Bad rows that are removed from a request one after another; with more of them, each row becomes a request."""
ROW = re.compile(r"instances\.(\d+)\b")

Numbered = list[tuple[int, Any]]
"""Rows with their numbers in the batch."""


class RetryLater(Exception):
    """The batch has to wait for `seconds`."""

    def __init__(self, code: str, message: str, seconds: float) -> None:
        super().__init__(message)
        self.code, self.message, self.seconds = code, message, seconds


class BatchClient:
    """Sends the requests of one batch."""

    def __init__(
        self,
        client: AsyncClient,
        contract: Contract,
        batch: str,
        at_once: int = AT_ONCE,
        stop: Event | None = None,
    ) -> None:
        """
        Args:
            contract: of the model that answers.
            at_once: requests in progress.
            stop: once it is set, no further rows are sent.
        """
        self._stop = stop or Event()
        self._client, self._contract, self._batch, self._at_once = client, contract, batch, at_once
        self._rows = FIRST_ROWS
        self._remaining: Numbered = []
        self._lines: list[Line] = []
        self._failure: RetryLater | CallFailed | None = None

    async def answer(self, rows: list[Any], first: int) -> tuple[list[Line], RetryLater | CallFailed | None]:
        """Returns one line per row in order, up to the first row without an answer, and the failure that stopped it.

        After `stop` there are fewer lines than rows, and no failure.

        Args:
            first: number of the first row in the batch.
        """
        numbered = list(enumerate(rows, first))
        self._lines = [{"row": row, "error": dict(value)} for row, value in numbered if isinstance(value, BadRow)]
        self._remaining = [(row, value) for row, value in numbered if not isinstance(value, BadRow)]
        self._failure = None
        await asyncio.gather(*(self._send_until_done() for _ in range(self._at_once)))
        lines = sorted(self._lines, key=lambda line: int(line["row"]))
        return [line for row, line in enumerate(lines, first) if line["row"] == row], self._failure

    async def _send_until_done(self) -> None:
        """Sends rows until none is left, a whole request has failed, or `stop` is set."""
        while self._remaining and self._failure is None and not self._stop.is_set():
            rows, self._remaining = self._remaining[: self._rows], self._remaining[self._rows :]
            try:
                await self._send(rows, MAX_BAD_ROWS)
            except (RetryLater, CallFailed) as error:
                self._failure = error

    async def _send(self, rows: Numbered, max_bad_rows: int) -> None:
        """Sends one request, or several smaller ones if it is refused. Lines are kept also when a later request fails."""
        if not rows:
            return
        try:
            self._lines += await self._predict(rows)
        except InvalidInput as error:
            bad_row = ROW.match(error.path or "")
            if len(rows) == 1:
                self._lines.append(_error_line(rows[0][0], error))
            elif bad_row and int(bad_row[1]) < len(rows) and max_bad_rows > 0:
                place = int(bad_row[1])
                self._lines.append(_error_line(rows[place][0], error))
                await self._send(rows[:place] + rows[place + 1 :], max_bad_rows - 1)
            else:
                await self._in_parts(rows, 1 if bad_row else len(rows) // 2)
        except QuotaExceeded as error:
            if len(rows) == 1:
                raise RetryLater("quota_exceeded", error.message, error.retry_after or 60.0) from None
            await self._in_parts(rows, len(rows) // 2)  # the rest of the quota may be enough for fewer rows
        except (TimedOut, Unavailable) as error:
            if not isinstance(error, TimedOut) and error.status != 500:
                raise
            if len(rows) == 1:
                self._lines.append(_error_line(rows[0][0], error))
            else:
                await self._in_parts(rows, len(rows) // 2)

    async def _in_parts(self, rows: Numbered, size: int) -> None:
        for start in range(0, len(rows), size):
            await self._send(rows[start : start + size], MAX_BAD_ROWS)

    async def _predict(self, rows: Numbered) -> list[Line]:
        start = time.monotonic()
        request_id, values = f"batch-{self._batch}-{rows[0][0]}-{len(rows)}", [value for _, value in rows]
        try:
            answer = await self._client.predict(self._contract.model, values, request_id=request_id)
        except RecursionError:
            raise InvalidInput("the JSON is nested too deeply", code="bad_json") from None
        self._adapt_size(len(rows), time.monotonic() - start)
        if len(answer.predictions) != len(rows):
            raise CallFailed(f"{len(answer.predictions)} answers to {len(rows)} rows", code="internal", status=500)
        lines: list[Line] = [
            {"row": row, "prediction": prediction, "id": answer.id, "id_row": place}
            for place, ((row, _), prediction) in enumerate(zip(rows, answer.predictions, strict=True))
        ]
        for place, warnings in warnings_by_row(answer.warnings, self._contract, values).items():
            lines[place]["warnings"] = warnings
        return lines

    def _adapt_size(self, rows: int, seconds: float) -> None:
        """Sets the rows of the next request: as many as fit `REQUEST_SECONDS`, at most twice those of this request."""
        fitting = int(rows * REQUEST_SECONDS / max(seconds, 1e-6))
        self._rows = max(1, min(fitting, rows * 2, MAX_ROWS)) if rows >= self._rows or fitting < rows else self._rows


def _error_line(row: int, error: CallFailed) -> Line:
    return error_line(row, error.code or "contract_violation", error.message, error.details)


def encode(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"
