"""`prefect.yaml`: its deployments, and the same with the pauses that a person made on the server."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from headrace.errors import ServiceError

FILE = "prefect.yaml"
HINT = "correct prefect.yaml, then run: headrace up"
TIMING = ("cron", "interval", "rrule")
VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")


@dataclass(frozen=True)
class Schedule:
    """A schedule in the file, or on the server."""

    slug: str
    """Identifies it on the server: the `slug` of the file, or else one that changes with what the schedule says."""
    timing: str
    """Its cron, interval or rrule as text."""
    active: bool
    fields: dict[str, Any]
    """As written in the file, or as the server returns it."""

    def to_fields(self) -> dict[str, Any]:
        """Returns the schedule as Prefect reads it in the file; `active` may be a variable there."""
        active = self.fields["active"] if self.active and self.fields.get("active") else self.active
        return {**self.fields, "slug": self.slug, "active": active}


@dataclass(frozen=True)
class Entry:
    """A deployment in the file."""

    name: str
    entrypoint: str
    paused: bool
    schedules: list[Schedule]
    fields: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What finds it on the server: name and entrypoint."""
        return self.name, self.entrypoint

    def to_fields(self) -> dict[str, Any]:
        """Returns the entry as Prefect reads it. Each schedule has a slug, so that the server updates it in place."""
        schedules = [schedule.to_fields() for schedule in self.schedules]
        kept = {name: value for name, value in self.fields.items() if name not in ("schedule", "schedules")}
        return {**kept, "paused": self.paused, **({"schedules": schedules} if schedules else {})}


def read_file(root: Path) -> tuple[dict[str, Any], list[Entry]]:
    """Returns the content of `prefect.yaml` and its deployments.

    Raises:
        ServiceError: the file is missing or is not YAML, or a deployment has no name or entrypoint. Such a file must not be
            taken for one without deployments, whose deployments would be removed.
    """
    try:
        content = yaml.safe_load((root / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ServiceError("the file is missing", where=FILE, hint=f"restore it: git show HEAD:{FILE} > {FILE}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ServiceError(f"no valid YAML: {error}", where=FILE, hint=HINT) from None
    listed = content.get("deployments") if isinstance(content, dict) else content
    if not isinstance(content, dict) or "deployments" not in content or not isinstance(listed or [], list):
        hint = f"{HINT}; `deployments: []` removes all deployments"
        raise ServiceError("expected a mapping with a list of deployments", where=FILE, hint=hint)
    entries = [read_entry(fields, f"{FILE}: deployments[{index}]") for index, fields in enumerate(listed or [])]
    if twice := [name for name, count in Counter(entry.key for entry in entries).items() if count > 1]:
        raise ServiceError(f"two deployments have the name {twice[0][0]!r} and the flow {twice[0][1]}", where=FILE, hint=HINT)
    return content, entries


def timing_of(schedule: dict[str, Any]) -> str:
    """Returns the cron, interval or rrule of a schedule of the file or of the server, as text for people."""
    name = next((name for name in TIMING if schedule.get(name) is not None), None)
    if name is None:
        return "schedule"
    value = schedule[name]
    return f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"


def keep_pauses(entry: Entry, before: Entry | None, server: dict[str, Any] | None) -> Entry:
    """Returns the entry with the pauses of the server, except where the file has changed since it was deployed.

    Args:
        before: the entry as it was last deployed; None when that is not known: then what is paused stays paused.
        server: its deployment on the server; None for a new one.
    """
    if server is None:
        return entry
    paused = _merged(entry.paused, before.paused if before else None, server["paused"], off=True)
    known = [Schedule(s.get("slug") or "", timing_of(s["schedule"]), s["active"], s) for s in server["schedules"]]
    schedules = []
    for schedule in entry.schedules:
        there = _counterpart(schedule, entry.schedules, known)
        base = _counterpart(schedule, entry.schedules, before.schedules) if before else None
        if there is not None:
            schedule = replace(
                schedule, active=_merged(schedule.active, base.active if base else None, there.active, off=False)
            )
        schedules.append(schedule)
    return replace(entry, paused=paused, schedules=schedules)


def _merged(file: bool, before: bool | None, server: bool, off: bool) -> bool:
    """A changed file counts, otherwise the server. Where it is not known whether the file has changed, `off` wins."""
    if before is None:
        return off if off in (file, server) else file
    return file if file != before else server


def _counterpart(schedule: Schedule, all_of_file: list[Schedule], found: list[Schedule]) -> Schedule | None:
    """The same schedule among `found`: by slug, by when it runs, or as the only one on both sides."""
    for is_same in (lambda other: other.slug == schedule.slug, lambda other: other.timing == schedule.timing):
        if same := next(filter(is_same, found), None):
            return same
    return found[0] if len(found) == len(all_of_file) == 1 else None


def read_entry(fields: Any, where: str) -> Entry:
    """Reads one deployment.

    Args:
        where: the place in the file, for errors.

    Raises:
        ServiceError: it has no name, no entrypoint, or no list of schedules.
    """
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("name", "entrypoint")):
        raise ServiceError("a deployment needs a name and an entrypoint", where=where, hint=HINT)
    schedules = fields.get("schedules") or [fields.get("schedule") or {}]
    if not isinstance(schedules, list) or not all(isinstance(one, dict) for one in schedules):
        raise ServiceError("expected a list of schedules", where=f"{where}.schedules", hint=HINT)
    read = _schedules([one for one in schedules if one])
    return Entry(_rendered(fields["name"]), _rendered(fields["entrypoint"]), fields.get("paused") is True, read, fields)


def _schedules(listed: list[dict[str, Any]]) -> list[Schedule]:
    seen: Counter[str] = Counter()
    found = []
    for fields in listed:
        content = json.dumps({name: value for name, value in fields.items() if name != "active"}, sort_keys=True, default=str)
        slug = str(fields.get("slug") or f"prefect-yaml-{hashlib.sha256(content.encode()).hexdigest()[:8]}")
        seen[slug] += 1
        if seen[slug] > 1:  # the same schedule twice
            slug = f"{slug}-{seen[slug]}"
        found.append(Schedule(slug, timing_of(fields), fields.get("active") is not False, fields))
    return found


def _rendered(text: str) -> str:
    """Replaces environment variables (`{{ $NAME }}`), as Prefect does."""
    return VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), text)
