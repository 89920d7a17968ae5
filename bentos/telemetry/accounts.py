"""What callers are given: quotas before the work; usage, answers and their metrics after it, before the answer leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bentos.models.served_model import ServedModel
from bentos.telemetry.metrics import Metrics
from bentos.telemetry.quota import Quotas, open_store, seconds_to_next_day
from bentos.telemetry.records import Records, plain
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused
from headrace.runtime.http_call import Call
from headrace.runtime.usage import Ledger


class Accounts:
    """As the environment says: nothing is written without HEADRACE_LEDGER, and a shadow (HEADRACE_SHADOW) meters nothing."""

    def __init__(self, metrics: Metrics) -> None:
        folder = os.environ.get("HEADRACE_LEDGER")
        self._meters = os.environ.get("HEADRACE_SHADOW") != "1"
        self._ledger = Ledger(Path(folder)) if folder and self._meters else None
        self._records = Records(Path(folder)) if folder else None
        serves_when_down = os.environ.get("HEADRACE_QUOTA_WHEN_DOWN") == "open"
        self._quotas = Quotas(open_store(os.environ.get("HEADRACE_QUOTAS", "")), serves_when_down, metrics.leave_unchecked)
        self._metrics = metrics
        self._contract: Contract | None = None
        self.model = ("none", "0")
        """Name and version."""

    def name_model(self, model: ServedModel) -> None:
        self.model = (model.name, model.version)
        self._contract = model.contract
        self._metrics.name_model(*self.model)
        if self._records is not None:
            self._records.name_model(*self.model)

    async def spend(self, call: Call, rows: int) -> None:
        """
        Raises:
            Refused: 429, the caller's day does not hold `rows`; 503, nobody can say whether it does.
        """
        if not self._meters or call.caller.rows_per_day is None:
            return
        if not await self._quotas.take(call.caller, rows):
            self._metrics.refuse_quota(call.tenant)
            message = f"this token's {call.caller.rows_per_day:,} rows a day do not hold {rows:,} more"
            raise Refused(429, "quota_exceeded", message, {"retry-after": str(seconds_to_next_day())})
        call.spent += rows

    async def give_back(self, call: Call) -> None:
        """What was taken for a request that got no answer."""
        rows, call.spent = call.spent, 0
        await self._quotas.give_back(call.caller, rows)

    def add(self, call: Call, rows: int, tokens: int, answers: Sequence[Any]) -> None:
        """Counts what a request is given; the first time for a request counts the request too."""
        contract = self._contract
        assert contract is not None
        if self._ledger is not None:
            self._ledger.add(call.tenant, contract.model, rows, tokens, 0 if call.is_counted else 1)
        self._metrics.count_work(call.tenant, rows, tokens)
        if answers:
            found = plain(contract, answers)
            if contract.output != "text":
                self._metrics.count_answers(found)
            if self._records is not None:
                self._records.add(call.request_id, call.tenant, found)
        call.is_counted = True

    def close(self) -> None:
        if self._records is not None:
            self._records.close()
        if self._ledger is not None:
            self._ledger.close()
