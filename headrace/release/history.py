"""What the journal says about production: which version is released, which came before, which was rolled back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headrace.release.journal import Entry
from headrace.serving.replicas.replica import ReplicaSpec

IN_FORCE = ("released", "rolled-back")
"""Events after which the entry's version is the one in production."""


PACKAGE = ("bento", "image", "image_digest", "image_bytes")
"""Facts about the package of a version; those of a later `rebuilt` entry take their place."""


def in_force(entries: Sequence[Entry]) -> Entry | None:
    """The entry that put the version in production there, for the entries of one model; None before the first release."""
    return next((entry for entry in reversed(_with_packages(entries)) if entry.event in IN_FORCE), None)


def production(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The entry of `in_force` for each model."""
    return {entry.model: entry for entry in _with_packages(entries) if entry.event in IN_FORCE}


def last_number(entries: Iterable[Entry]) -> int:
    """The highest number of a version that entries of one model name; 0 without entries."""
    return max((int(entry.version) for entry in entries if entry.version.isdigit()), default=0)


def released_spec(entry: Entry) -> ReplicaSpec:
    """The replicas that an entry of `in_force` describes."""
    facts = entry.facts
    return ReplicaSpec(entry.model, entry.version, facts["bento"], facts["image"], facts["threads"])


def served(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The newest entry that put each version of one model into production; the latest version is last."""
    found: dict[str, Entry] = {}
    for entry in _with_packages(entries):
        if entry.event in IN_FORCE:
            found.pop(entry.version, None)
            found[entry.version] = entry
    return found


def _with_packages(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in order, with the packages that were rebuilt later."""
    rebuilt: dict[tuple[str, str], dict[str, Any]] = {}
    found: list[Entry] = []
    for entry in reversed(list(entries)):
        key = (entry.model, entry.version)
        if entry.event == "rebuilt":
            rebuilt.setdefault(key, {name: entry.facts.get(name) for name in PACKAGE})
        elif entry.event in IN_FORCE and key in rebuilt:
            entry = entry.model_copy(update={"facts": {**entry.facts, **rebuilt.pop(key)}})
        found.append(entry)
    return found[::-1]


def when_rolled_back(entries: Sequence[Entry], version: str) -> Entry | None:
    """The entry by which `version` of one model was rolled back; None when it never was, or was released again later."""
    for entry in reversed(entries):
        if entry.event in IN_FORCE and entry.version == version:
            return None
        if entry.event == "rolled-back" and entry.facts["rolled_back"]["from"] == version:
            return entry
        if entry.event == "rollout-failed" and entry.version == version and "bound" in entry.facts:
            return entry
    return None


def why_rolled_back(entry: Entry) -> str:
    """In a few words, from the entry of `when_rolled_back`."""
    if entry.event == "rollout-failed":
        return str(entry.facts["reason"])
    facts = entry.facts["rolled_back"]
    return f"by {facts['by']}" + (f": {facts['why']}" if facts["why"] else "")


def before(entries: Sequence[Entry]) -> Entry | None:
    """The entry of the version that was in production before the current one, without those that were rolled back."""
    now = in_force(entries)
    for version, entry in reversed(served(entries).items()):
        if now is not None and version != now.version and when_rolled_back(entries, version) is None:
            return entry
    return None
