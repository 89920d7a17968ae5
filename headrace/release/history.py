"""What the journal says of a model's time in production: which version is in force, which came before, which was taken back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.release.journal import Entry

IN_FORCE = ("released", "rolled-back")
"""Events after which the entry's version is the one that serves."""


def in_force(entries: Sequence[Entry]) -> Entry | None:
    """The entry of one model that says what serves now; None before the first release."""
    return next((entry for entry in reversed(entries) if entry.event in IN_FORCE), None)


def production(entries: Iterable[Entry]) -> dict[str, Entry]:
    """For each model the entry that says what serves."""
    return {entry.model: entry for entry in entries if entry.event in IN_FORCE}


def served(entries: Sequence[Entry]) -> dict[str, Entry]:
    """For each version of one model that ever served the newest entry that says how; the latest to serve is last."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.event in IN_FORCE:
            found.pop(entry.version, None)
            found[entry.version] = entry
    return found


def when_taken_back(entries: Sequence[Entry], version: str) -> Entry | None:
    """The entry by which `version` of one model was taken back; None when it never was, or came into force again."""
    for entry in reversed(entries):
        if entry.event in IN_FORCE and entry.version == version:
            return None
        if entry.event == "rolled-back" and entry.facts["rolled_back"]["from"] == version:
            return entry
        if entry.event == "rollout-failed" and entry.version == version and "bound" in entry.facts:
            return entry
    return None


def why_taken_back(entry: Entry) -> str:
    """In a few words, from the entry that `when_taken_back` gives."""
    if entry.event == "rollout-failed":
        return str(entry.facts["said"])
    facts = entry.facts["rolled_back"]
    return f"by {facts['by']}" + (f": {facts['why']}" if facts["why"] else "")


def before(entries: Sequence[Entry]) -> Entry | None:
    """The version of one model that served before the one that serves now, but for those that were taken back."""
    now = in_force(entries)
    for version, entry in reversed(served(entries).items()):
        if now is not None and version != now.version and when_taken_back(entries, version) is None:
            return entry
    return None
