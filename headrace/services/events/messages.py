"""The words of a notification: a title of one line, and a text with the command that continues."""

from __future__ import annotations

from typing import Any

from headrace.event_names import DESCRIPTIONS
from headrace.events.event import Event


def title_of(event: Event) -> str:
    """Returns one line, for example `flights@3: alarm`."""
    version = event.data.get("version")
    name = f"{event.model}@{version}" if version else event.model or "headrace"
    return " ".join(f"{name}: {event.name.replace('-', ' ')}".split())


def text_of(event: Event) -> str:
    """Returns what happened, one fact a line, the time, and a command."""
    reasons = event.data.get("reasons")
    lines = [DESCRIPTIONS[event.name], *(reasons if isinstance(reasons, list) else [])]
    for name, value in event.data.items():
        if name not in ("version", "reasons", "hint", "metrics") and value not in (None, "", [], {}):
            lines.append(f"{name.replace('_', ' ')}: {_shown(value)}")
    lines += [f"at: {event.time}"]
    if command := _command(event):
        lines.append(command)
    return "\n".join(str(line) for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _command(event: Event) -> str | None:
    model, version = event.model, event.data.get("version")
    if hint := event.data.get("hint"):
        return str(hint)
    if event.name == "alarm":
        return f"headrace drift {model}"
    if event.name in ("awaiting-approval", "approval-reminder"):
        return f"headrace approve {model}@{version}"
    if event.name == "approval-expired":
        return f"headrace run {model}"
    if event.name in ("failed", "crashed", "refused", "approved", "rejected", "released", "rolled-back"):
        return f"headrace history {model}"
    return None
