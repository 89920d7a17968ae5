"""Logins of a browser, by a code that is valid once or by a token. The server alone knows codes and sessions."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TypeVar

CODE_SECONDS = 300.0
SESSION_SECONDS = 12 * 3600.0
MAX_CODES, MAX_SESSIONS = 32, 256
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """Who logged in."""

    uid: int | None
    """The user of this machine whose connection it was; None where the system does not say it."""
    token: str | None = None
    """The token of a person's role; None for the operator, who logged in with a code."""


class Sessions:
    """Codes and sessions with the times at which they end."""

    def __init__(self) -> None:
        self._codes: dict[str, tuple[float, None]] = {}
        self._sessions: dict[str, tuple[float, Session]] = {}

    def new_code(self) -> str:
        """Returns a code that `accept` accepts once, within five minutes."""
        return _add(self._codes, None, CODE_SECONDS, MAX_CODES)

    def accept(self, code: str) -> bool:
        """Whether the code is valid; it is not a second time."""
        return time.monotonic() <= self._codes.pop(code, (0.0, None))[0]

    def start(self, session: Session) -> str:
        """Returns the id of a new session."""
        return _add(self._sessions, session, SESSION_SECONDS, MAX_SESSIONS)

    def find(self, id: str) -> Session | None:
        """Returns an open session; None for one that is unknown or has ended."""
        ends, session = self._sessions.get(id, (0.0, None))
        return session if time.monotonic() <= ends else None


def _add(known: dict[str, tuple[float, T]], value: T, seconds: float, limit: int) -> str:
    """Adds a value under a random key, and removes what has ended, or the oldest one of too many."""
    now = time.monotonic()
    for key in [key for key, (end, _) in known.items() if end < now]:
        del known[key]
    while len(known) >= limit:
        del known[next(iter(known))]
    key = secrets.token_urlsafe(32)
    known[key] = now + seconds, value
    return key
