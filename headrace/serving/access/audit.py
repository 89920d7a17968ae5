"""The audit log: administrative actions, who did them and when. Append-only and chained by hashes, as the journal is."""

from __future__ import annotations

import os
import pwd
from datetime import UTC, datetime
from typing import Any

from headrace import append_log
from headrace.project import Project


class AuditEntry(append_log.LogEntry):
    """One administrative action."""

    at: str
    act: str
    """The action, for example `tokens issue`, `rollback` or `down`."""
    by: str
    """The operating system's name of the user."""
    facts: dict[str, Any]
    """Details of the action; never a secret."""


def log(project: Project) -> append_log.Log:
    return append_log.Log(project.audit_log, "audit log", project.state)


def record(project: Project, act: str, facts: dict[str, Any]) -> AuditEntry:
    """Appends one entry, synced to disk before it returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return append_log.append(
        log(project), lambda previous: AuditEntry(at=now, act=act, by=user(), facts=facts, previous=previous)
    )


def entries(project: Project) -> list[AuditEntry]:
    """All entries, oldest first.

    Raises:
        HeadraceError: a line was changed or removed, also at the end.
    """
    return append_log.read_entries(log(project), AuditEntry)


def user() -> str:
    """The user name by user id, not by an environment variable, which any user can set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an id without a name, as containers have
        return str(os.getuid())
