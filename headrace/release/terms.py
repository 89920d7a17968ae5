"""The terms under which a candidate waits for approval: how many people have to approve, for how long, and reminders.

They are those of the recipe when the candidate was judged; the journal's entry `awaiting-approval` has them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace.recipe.gate import GateConfig
from headrace.release.journal import Entry

DECIDING = ("refused", "awaiting-approval", "released", "expired")
"""Events that say what became of a candidate."""
FACT = "terms"


class Terms(BaseModel):
    """How a candidate waits. An entry of an earlier Headrace has no terms: one person approves, at any time."""

    model_config = ConfigDict(frozen=True)
    approvers: int = 1
    remind_seconds: float | None = None
    expires_seconds: float | None = None

    @classmethod
    def of(cls, gate: GateConfig) -> Terms:
        return cls(approvers=gate.approvers, remind_seconds=gate.remind_seconds, expires_seconds=gate.expires_seconds)

    @classmethod
    def recorded(cls, entry: Entry) -> Terms:
        """The terms in an entry `awaiting-approval`."""
        return cls.model_validate(entry.facts.get(FACT) or {})

    def to_facts(self) -> dict[str, Any]:
        return {FACT: self.model_dump()}


def newest_decision(entries: Sequence[Entry]) -> Entry | None:
    """The newest entry of one model that says what became of a candidate."""
    return next((entry for entry in reversed(entries) if entry.event in DECIDING), None)


def expiry(entry: Entry) -> datetime | None:
    """When the candidate of an entry `awaiting-approval` can no longer be approved; None for never."""
    seconds = Terms.recorded(entry).expires_seconds
    return None if seconds is None else datetime.fromtimestamp(since(entry) + seconds, UTC)


def is_over(entry: Entry, now: float | None = None) -> bool:
    """Whether the time of the candidate of an entry `awaiting-approval` is over.

    Args:
        now: in seconds since 1970.
    """
    end = expiry(entry)
    return end is not None and (time.time() if now is None else now) >= end.timestamp()


def since(entry: Entry) -> float:
    """When an entry was written, in seconds since 1970."""
    return datetime.fromisoformat(entry.at).timestamp()
