"""Quotas before the work; usage, recorded answers and their metrics after it, before the answer is sent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bentos.models.served_model import ServedModel
from bentos.telemetry.metrics import Metrics
from bentos.telemetry.quota import Quotas, open_store, seconds_to_next_day
from bentos.telemetry.records import Records, recorded_answers
from bentos.telemetry.samples import Samples
from bentos.telemetry.token_limits import Grant, reserve, settle
from headrace.runtime.contract import Contract
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.usage import UsageWriter


class Metering:
    """Quotas, usage, records and samples of one replica.

    Nothing is written without HEADRACE_USAGE. A shadow replica (HEADRACE_SHADOW) records answers, but counts no usage.
    """

    def __init__(self, metrics: Metrics) -> None:
        folder = os.environ.get("HEADRACE_USAGE")
        self._is_metered = os.environ.get("HEADRACE_SHADOW") != "1"
        self._usage = UsageWriter(Path(folder)) if folder and self._is_metered else None
        self._records = Records(Path(folder)) if folder else None
        self.samples = Samples.from_environment(Path(folder)) if folder else None
        serves_when_down = os.environ.get("HEADRACE_QUOTA_WHEN_DOWN") == "open"
        store = open_store(os.environ.get("HEADRACE_QUOTAS", ""))
        self._quotas = Quotas(store, serves_when_down, metrics.count_unchecked_quota)
        self._metrics = metrics
        self._contract: Contract | None = None
        self.model = ("none", "0")
        """Name and version."""

    def set_model(self, model: ServedModel) -> None:
        self.model = (model.name, model.version)
        self._contract = model.contract
        self._metrics.set_model(*self.model)
        if self._records is not None:
            self._records.set_model(*self.model)
        if self.samples is not None:
            self.samples.set_model(model)

    async def take_quota(self, request: TrackedRequest, rows: int) -> None:
        """Takes `rows` from the caller's daily quota.

        Raises:
            Refused: 429, fewer rows are left; 503, the quota store does not answer.
        """
        if not self._is_metered or request.caller.rows_per_day is None:
            return
        if not await self._quotas.take(request.caller, rows, request.spent):
            self._metrics.count_refused_quota(request.tenant)
            message = f"{rows:,} rows exceed what is left today of this token's {request.caller.rows_per_day:,} rows a day"
            raise Refused(429, "quota_exceeded", message, {"retry-after": str(seconds_to_next_day())})

    async def return_quota(self, request: TrackedRequest) -> None:
        """Returns the rows of a request that was not answered."""
        spent, request.spent = request.spent, {}
        await self._quotas.give_back(request.caller, spent)

    async def reserve_tokens(self, request: TrackedRequest, prompt: int, wanted: Sequence[int]) -> Grant | None:
        """Takes tokens from the caller's limits as `bentos.telemetry.token_limits.reserve`; None if nothing is metered.

        Raises:
            Refused: 413, no minute or day allows as many; 429, fewer are left; 503, the quota store does not answer.
        """
        if not self._is_metered:
            return None
        try:
            return await reserve(request, prompt, wanted, self._quotas)
        except Refused as refused:
            if refused.status == 429:
                self._metrics.count_refused_quota(request.tenant)
            raise

    async def return_tokens(self, request: TrackedRequest) -> None:
        """Returns the tokens that a request has reserved and not used, when it ends."""
        await settle(request, self._quotas)

    def record(self, request: TrackedRequest, rows: int, tokens: int, answers: Sequence[Any], prompt_tokens: int = 0) -> None:
        """Counts rows and tokens; the first call for a request counts the request too."""
        contract = self._contract
        assert contract is not None
        if self._usage is not None:
            self._usage.add(request.tenant, contract.model, rows, tokens, 0 if request.is_counted else 1, prompt_tokens)
        self._metrics.count_work(request.tenant, rows, tokens, prompt_tokens)
        if request.reserved:
            request.used_tokens += tokens + prompt_tokens
        if answers:
            found = recorded_answers(contract, answers)
            if contract.output != "text":
                self._metrics.count_answers(found)
            if self._records is not None:
                self._records.add(request.request_id, request.tenant, found)
        request.is_counted = True

    def close(self) -> None:
        if self.samples is not None:
            self.samples.close()
        if self._records is not None:
            self._records.close()
        if self._usage is not None:
            self._usage.close()
