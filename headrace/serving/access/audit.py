"""The audit log: who did what to this house, and when. Lines are only ever added, chained as the journal's are."""

from __future__ import annotations

import os
import pwd
from datetime import UTC, datetime
from typing import Any

from headrace import append_log
from headrace.project import Project


class Act(append_log.Link):
    """One administrative act."""

    at: str
    act: str
    """Such as `tokens issue`, `rollback`, `down`."""
    by: str
    """The operating system's name of the user."""
    facts: dict[str, Any]
    """What was done to what; never a secret."""


def record(project: Project, act: str, facts: dict[str, Any]) -> Act:
    """Adds one act, synced to disk before it returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return append_log.add(project.audit, lambda previous: Act(at=now, act=act, by=_user(), facts=facts, previous=previous))


def acts(project: Project) -> list[Act]:
    """All acts, oldest first.

    Raises:
        HeadraceError: a line was changed or taken out.
    """
    return append_log.read(project.audit, Act, "audit log")


def _user() -> str:
    """From the user id, not from a variable that anybody can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an id without a name, as containers have
        return str(os.getuid())
