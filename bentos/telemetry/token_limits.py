"""Limits of a tenant's tokens: taken before texts are generated; what was not used is returned when the request ends.

Tokens of prompts and of generated texts count alike. What is taken at once never exceeds a limit, so neither does what is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from bentos.telemetry.quota import MINUTE_SECONDS, Quotas, Unit, seconds_to_next_day, this_minute, today
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import TrackedRequest


@dataclass(frozen=True)
class Limit:
    """One of the limits that a token can have."""

    claim: str
    """Its name in the token, and in `Caller`."""
    unit: Unit
    span: str
    period: Callable[[], str]
    seconds_left: Callable[[], int]


LIMITS = (
    Limit("tokens_per_day", "tokens", "day", today, seconds_to_next_day),
    Limit("tokens_per_minute", "tokens-by-minute", "minute", this_minute, lambda: int(60 - time.time() % MINUTE_SECONDS) + 1),
)


@dataclass(frozen=True)
class Grant:
    """The tokens that each text of a request may have."""

    tokens: list[int]
    wanted: list[int]
    limit: str
    """What left fewer than wanted, for people."""

    def end_of(self, text: int, finish_reason: str | None) -> dict[str, Any]:
        """Returns the fields that say why a text ended, if it is because of the limit."""
        if finish_reason != "length" or self.tokens[text] >= self.wanted[text]:
            return {}
        return {"finish_details": {"code": "quota_exceeded", "message": f"{self.limit} are used up"}}


async def reserve(request: TrackedRequest, prompt: int, wanted: Sequence[int], quotas: Quotas) -> Grant:
    """Takes the tokens of the prompts and of the texts from all limits of the caller.

    Args:
        prompt: tokens of all prompts together.
        wanted: most tokens of each text.

    Returns:
        As many tokens for each text as wanted, or fewer if fewer are left; at least one.

    Raises:
        Refused: 413, no minute or day allows as many; 429, fewer are left; 503, the quota store does not answer.
    """
    caller = request.caller
    least, granted, why = prompt + len(wanted), prompt + sum(wanted), ""
    for limit in LIMITS:
        most = getattr(caller, limit.claim)
        if most is None:
            continue
        shown = f"this token's {most:,} tokens a {limit.span}"
        needed = f"the request needs at least {least:,} tokens ({prompt:,} of the prompt)"
        if least > most:
            raise Refused(413, "too_many_tokens", f"{needed}, more than {shown} allow", limit=most)
        period = limit.period()
        found = await quotas.grant(limit.unit, caller.tenant, period, most, granted, least)
        if found is None:  # requests are served although the store is down
            continue
        if not found:
            message = f"{needed}, more than what is left of {shown}"
            raise Refused(429, "quota_exceeded", message, {"retry-after": str(limit.seconds_left())})
        request.reserved[limit.unit, period] = found
        if found < granted:
            granted, why = found, shown
    await _return_more_than(granted, request, quotas)
    return Grant(_shares(granted - prompt, wanted), list(wanted), why)


async def settle(request: TrackedRequest, quotas: Quotas) -> None:
    """Returns what a request has taken and not used."""
    await _return_more_than(request.used_tokens, request, quotas)
    request.reserved = {}


async def _return_more_than(tokens: int, request: TrackedRequest, quotas: Quotas) -> None:
    for (unit, period), taken in request.reserved.items():
        await quotas.give_back(request.caller, {period: taken - tokens}, cast(Unit, unit))
        request.reserved[unit, period] = tokens


def _shares(tokens: int, wanted: Sequence[int]) -> list[int]:
    """Divides tokens among texts: each has what it wants, or an equal share of what those that want less leave."""
    found = [0] * len(wanted)
    left = tokens
    for done, text in enumerate(sorted(range(len(wanted)), key=lambda text: wanted[text])):
        found[text] = min(wanted[text], left // (len(wanted) - done))
        left -= found[text]
    return found
