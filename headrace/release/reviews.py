"""Reviews: approvals and rejections by people, as entries of the journal that are signed for the token that decided.

Only such an entry counts, and only for the files that it names: neither a tag in MLflow nor an entry without a valid
signature approves a version.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.errors import RegistryError, UsageError
from headrace.project import Project
from headrace.release import history, journal, lookup
from headrace.release.journal import Entry
from headrace.runtime.token_verifier import DECIDE, Caller
from headrace.serving.access import audit, tokens
from headrace.tracking import registry
from headrace.tracking.registry import Version

ISSUER = "headrace-review"
"""Another one than that of tokens: a signed review is not accepted as a token, nor a token as a review."""
TAG = "approval"
"""The tag of a version in MLflow that tells people about its review. Nothing reads it as one."""
GATE = ("refused", "awaiting-approval", "released")
"""Events that say what became of a candidate."""
Outcome = Literal["approved", "rejected"]
ACTS: dict[Outcome, str] = {"approved": "approve", "rejected": "reject"}
MAX_REASON = 1000
REASON = f"one line of at most {MAX_REASON} printable characters; a rejection needs one"
"""What a reason has to be."""


class NotAllowed(UsageError):
    """The role of a token does not allow a review."""


class NotWaiting(UsageError):
    """The version waits for no review, or has had the same one already."""


class Review(BaseModel):
    """What is signed: who approved or rejected which files of which version, when and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    outcome: Outcome
    model: str
    version: str
    content_sha256: str
    """Of the served files of the version."""
    data_md5: str | None
    by: str
    """The subject of the token; for the operator's own token, the operating system's name of the user."""
    role: str
    token: str
    """The id of the token (`jti`)."""
    at: float
    """Seconds since 1970; greater than that of every earlier review of the model."""
    why: str

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")

    @property
    def sentence(self) -> str:
        """For example `by ada (reviewer) at 2026-11-24T02:43:15+00:00: looks good`."""
        return f"by {self.by} ({self.role}) at {self.when}" + (f": {self.why}" if self.why else "")

    def facts(self) -> dict[str, str]:
        return {"by": self.by, "role": self.role, "at": self.when, "why": self.why}


@dataclass(frozen=True)
class Reviewer:
    """Who reviews."""

    name: str
    role: str | None
    token: str
    """The id of the token."""

    @classmethod
    def of(cls, caller: Caller) -> Reviewer:
        return cls(caller.tenant, caller.role, caller.jti)


@dataclass(frozen=True)
class Candidate:
    """The newest candidate of a model, if it passed the gate and is not released: it waits, or has been reviewed."""

    entry: Entry
    """The journal's entry `awaiting-approval`."""
    review: Review | None
    in_production: str | None

    @property
    def state(self) -> Literal["waiting", "approved", "rejected"]:
        return self.review.outcome if self.review else "waiting"

    def to_dict(self) -> dict[str, Any]:
        facts = self.entry.facts
        return {
            "model": self.entry.model,
            "version": self.entry.version,
            "state": self.state,
            "since": self.entry.at,
            "in_production": self.in_production,
            "verdict": facts.get("verdict"),
            **{name: facts.get(name) for name in ("run_id", "data_md5", "git_commit", "content_sha256")},
            "review": self.review.facts() if self.review else None,
        }


def review(reference: str, outcome: Outcome, reviewer: Reviewer, why: str, project: Project) -> Review:
    """Records the approval or rejection of a version that waits for approval, signed. A later review replaces an earlier one.

    The next release of the recipe rolls an approved version out.

    Args:
        reference: `digits@3`, or an alias instead of the number.

    Raises:
        NotAllowed: the role may not review.
        NotWaiting: the version does not wait, is in production, or was reviewed with the same outcome already.
        UsageError: the version does not exist, or the reason does not match `REASON`.
        RegistryError: its files are not those that the gate judged, or MLflow's database cannot be read.
    """
    require_reviewer(reviewer, ACTS[outcome])
    if not is_reason(why, outcome):
        raise UsageError(f"expected {REASON}", where="--why", hint="--why 'too many false alarms'")
    version = registry.get(reference, project)
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "reviews.lock"):  # two reviews at once: the second one sees the first
        entries = journal.entries(project, version.model)
        before = _valid(entries, project)
        lookup.require_recorded_files(version, _require_waiting(version, outcome, entries, before))
        evidence = registry.evidence(version)
        found = Review(
            outcome=outcome,
            model=version.model,
            version=version.version,
            content_sha256=evidence["content_sha256"],
            data_md5=evidence.get("data_md5"),
            by=reviewer.name,
            role=str(reviewer.role),
            token=reviewer.token,
            at=max(round(time.time(), 3), before[-1].at + 0.001 if before else 0.0),
            why=why,
        )
        signature = tokens.sign(project, {"iss": ISSUER, **found.model_dump()})
        facts = {**evidence, **found.facts(), "token": found.token, "signature": signature}
        journal.record(project, outcome, version.model, version.version, facts)
    audit.record(project, ACTS[outcome], {"version": version.name, **found.facts(), "token": found.token})
    with contextlib.suppress(RegistryError):  # information for people who look at MLflow
        registry.set_tags(version, {TAG: outcome, f"{outcome}_by": found.by}, project)
    return found


def is_reason(why: str, outcome: Outcome) -> bool:
    """Whether a text can be the reason of a review. It is printed on terminals, so it has no control characters."""
    return len(why) <= MAX_REASON and why.isprintable() and (bool(why.strip()) or outcome == "approved")


def require_reviewer(reviewer: Reviewer, act: str) -> None:
    """Checks that the role may review.

    Raises:
        NotAllowed: it may not.
    """
    if reviewer.role not in DECIDE:
        has = f"has the role {reviewer.role}" if reviewer.role else "has no role"
        raise NotAllowed(
            f"the token of {reviewer.name} {has}: to {act} a version takes the role reviewer or operator",
            hint="ask the operator for one: headrace tokens issue --tenant NAME --role reviewer",
        )


def candidates(project: Project) -> list[Candidate]:
    """The candidates of all models that passed the gate and are not released, by name."""
    by_model: dict[str, list[Entry]] = {}
    for entry in journal.entries(project):
        by_model.setdefault(entry.model, []).append(entry)
    found = []
    for _, entries in sorted(by_model.items()):
        newest = next((entry for entry in reversed(entries) if entry.event in GATE), None)
        if newest is not None and newest.event == "awaiting-approval":
            reviewed = standing(
                newest.version, newest.facts.get("content_sha256"), newest.facts.get("data_md5"), entries, project
            )
            released = history.in_force(entries)
            found.append(Candidate(newest, reviewed, released.version if released else None))
    return found


def standing(
    version: str, content_sha256: str | None, data_md5: str | None, entries: Sequence[Entry], project: Project
) -> Review | None:
    """The review in force of a version with these files: the newest one.

    A rejection also counts for the same files from the same data under another number.

    Args:
        entries: those of the model.
    """
    of_files = [one for one in _valid(entries, project) if one.content_sha256 == content_sha256]
    of_version = [one for one in of_files if one.version == version or (one.outcome == "rejected" and one.data_md5 == data_md5)]
    return of_version[-1] if of_version else None


def was_approved_unsigned(version: str, content_sha256: str, entries: Sequence[Entry]) -> bool:
    """Whether an earlier Headrace, which signed nothing, recorded an approval of these files, and released the version then."""
    return version in history.served(entries) and any(
        e.event == "approved" and e.version == version and "signature" not in e.facts
        and e.facts.get("content_sha256", content_sha256) == content_sha256
        for e in entries
    )  # fmt: skip


def waits(version: str, entries: Sequence[Entry]) -> bool:
    """Whether a version of the model with these entries waits for approval, or did until it was reviewed."""
    last = next((entry for entry in reversed(entries) if entry.version == version and entry.event in GATE), None)
    return last is not None and last.event == "awaiting-approval"


def ignored(version: Version, content_sha256: str, entries: Iterable[Entry], project: Project) -> list[str]:
    """Sentences about what looks like an approval of the version and counts for nothing, each with the reason."""
    found = []
    approvals = [entry for entry in entries if entry.event == "approved" and entry.version == version.version]
    if approvals:
        newest, revoked = approvals[-1], _revoked(project)
        reason = _check(newest, revoked, project)
        if isinstance(reason, Review) and reason.content_sha256 != content_sha256:
            reason = "the files of the version have changed since"
        if isinstance(reason, str):
            found.append(f"the approval by {newest.facts.get('by')} at {newest.at} does not count: {reason}")
    if registry.tag(version, TAG, project) == "approved":
        found.append(f"the tag {TAG}=approved of {version.name} in MLflow does not count: anybody may set one")
    return found


def described(entries: Sequence[Entry], project: Project) -> list[dict[str, Any]]:
    """Entries as JSON values; a review that does not count has the reason as `not_counted`."""
    reasons = why_not_counted(entries, project)
    return [
        {**journal.as_json(entry), **({"not_counted": reasons[place]} if place in reasons else {})}
        for place, entry in enumerate(entries)
    ]


def why_not_counted(entries: Sequence[Entry], project: Project) -> dict[int, str]:
    """Why reviews do not count, by their place in `entries`. Unsigned approvals of what was released then do count."""
    revoked = _revoked(project) if any(entry.event in ACTS for entry in entries) else {}
    served = {(entry.model, entry.version) for entry in entries if entry.event in history.IN_FORCE}
    found = {}
    for place, entry in enumerate(entries):
        is_old = "signature" not in entry.facts and (entry.model, entry.version) in served
        if entry.event in ACTS and not is_old and isinstance(reason := _check(entry, revoked, project), str):
            found[place] = reason
    return found


def _require_waiting(version: Version, outcome: Outcome, entries: list[Entry], valid: list[Review]) -> Entry:
    """The entry by which the version waits.

    Raises:
        NotWaiting: it does not wait, is in production, or was reviewed with the same outcome already.
    """
    model, released = version.model, history.in_force(entries)
    see = f"headrace history {model}"
    if released is not None and released.version == version.version:
        again = see if outcome == "approved" else f"headrace rollback {model} returns to the version before"
        raise NotWaiting(f"{version.name} is the champion already", hint=again)
    last = next((e for e in reversed(entries) if e.version == version.version and e.event in GATE), None)
    if last is None or last.event != "awaiting-approval":
        reasons = {"refused": "the gate refused it", "released": "it was released already"}
        reason = reasons[last.event] if last else "its recipe does not ask for one, or no release got that far"
        raise NotWaiting(f"{version.name} does not wait for approval: {reason}", hint=see)
    before = [one for one in valid if (one.version, one.content_sha256) == (version.version, last.facts.get("content_sha256"))]
    if before and before[-1].outcome == outcome:
        done = f"headrace run {model} rolls it out" if outcome == "approved" else see
        raise NotWaiting(f"{version.name} was {outcome} already, {before[-1].sentence}", hint=done)
    return last


def _valid(entries: Iterable[Entry], project: Project) -> list[Review]:
    """The reviews among the entries that count, in the order in which they were signed."""
    reviews = [entry for entry in entries if entry.event in ACTS]
    revoked = _revoked(project) if reviews else {}
    checked = (_check(entry, revoked, project) for entry in reviews)
    return sorted((one for one in checked if isinstance(one, Review)), key=lambda one: one.at)


def _check(entry: Entry, revoked: dict[str, int], project: Project) -> Review | str:
    """The review of an entry, or why it does not count."""
    signature = entry.facts.get("signature")
    if not isinstance(signature, str):
        return "it is not signed"
    claims = tokens.read_signed(project, signature, ISSUER)
    if claims is None:
        return "its signature is not valid in this project"
    try:
        found = Review(**{name: value for name, value in claims.items() if name != "iss"})
    except ValidationError:
        return "what was signed is not a review"
    shown = {name: entry.facts.get(name) for name in ("content_sha256", "token", *found.facts())}
    signed = {"content_sha256": found.content_sha256, "token": found.token, **found.facts()}
    if (entry.event, entry.model, entry.version, shown) != (found.outcome, found.model, found.version, signed):
        return "the entry differs from what was signed"
    if found.role not in DECIDE:
        return f"the role {found.role} may not review"
    if found.at >= revoked.get(found.token, float("inf")):
        return f"the token of {found.by} had been revoked"
    return found


def _revoked(project: Project) -> dict[str, int]:
    """Ids of revoked tokens, with the times in seconds since 1970."""
    return {facts.jti: facts.revoked for facts in tokens.list_tokens(project) if facts.revoked is not None}
