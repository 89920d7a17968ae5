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
from headrace.release import history, journal, lookup, terms
from headrace.release.journal import Entry
from headrace.release.terms import Terms
from headrace.runtime.token_verifier import DECIDE, Caller
from headrace.serving.access import audit, tokens
from headrace.serving.access.tokens import OPERATOR
from headrace.tracking import registry
from headrace.tracking.registry import Version

ISSUER = "headrace-review"
"""Another one than that of tokens: a signed review is not accepted as a token, nor a token as a review."""
TAG = "approval"
"""The tag of a version in MLflow that tells people about its review. Nothing reads it as one."""
HEADRACE = "headrace"
"""Who records that a candidate has expired."""
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
    via: str = ""
    """Where the person decided, for example `Prefect's form`; empty for a command and the API."""

    @property
    def person(self) -> str:
        """Two reviews of the same person count once. All reviews as the operator are one person's."""
        return OPERATOR if self.role == OPERATOR else f"{self.role} {self.by}"

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")

    @property
    def sentence(self) -> str:
        """For example `by ada (reviewer) at 2026-11-24T02:43:15+00:00: looks good`."""
        place = f", in {self.via}" if self.via else ""
        return f"by {self.by} ({self.role}{place}) at {self.when}" + (f": {self.why}" if self.why else "")

    def facts(self) -> dict[str, str]:
        via = {"via": self.via} if self.via else {}
        return {"by": self.by, "role": self.role, "at": self.when, "why": self.why, **via}


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
class Standing:
    """What the reviews of a version amount to."""

    approvals: tuple[Review, ...]
    """By different people, since the last rejection or expiry, oldest first."""
    approvers: int
    """How many have to approve."""
    rejection: Review | None
    """The newest rejection; approvals by enough people after it lift it."""

    @property
    def outcome(self) -> Outcome | None:
        if len(self.approvals) >= self.approvers:
            return "approved"
        return "rejected" if self.rejection else None

    @property
    def review(self) -> Review | None:
        """The review that decided."""
        if self.outcome == "approved":
            return self.approvals[-1]
        return self.rejection

    @property
    def progress(self) -> str:
        """For example `1 of 2 approvals`; empty where one person decides."""
        return f"{len(self.approvals)} of {self.approvers} approvals" if self.approvers > 1 else ""


@dataclass(frozen=True)
class Candidate:
    """The newest candidate of a model, if it passed the gate and is not released: it waits, or has been reviewed."""

    entry: Entry
    """The journal's entry `awaiting-approval`."""
    standing: Standing
    in_production: str | None

    @property
    def name(self) -> str:
        return f"{self.entry.model}@{self.entry.version}"

    @property
    def state(self) -> Literal["waiting", "approved", "rejected"]:
        return self.standing.outcome or "waiting"

    def to_dict(self) -> dict[str, Any]:
        facts, standing, end = self.entry.facts, self.standing, terms.expiry(self.entry)
        return {
            "model": self.entry.model,
            "version": self.entry.version,
            "state": self.state,
            "since": self.entry.at,
            "expires": end.isoformat(timespec="seconds") if end and self.state == "waiting" else None,
            "approvers": standing.approvers,
            "approvals": [one.facts() for one in standing.approvals],
            "in_production": self.in_production,
            "verdict": facts.get("verdict"),
            **{name: facts.get(name) for name in ("run_id", "data_md5", "git_commit", "content_sha256")},
            "review": standing.review.facts() if standing.review else None,
        }


def review(reference: str, outcome: Outcome, reviewer: Reviewer, why: str, project: Project, via: str = "") -> Review:
    """Records the approval or rejection of a version that waits for approval, signed. A later review replaces an earlier one.

    Once enough people have approved, the suspended run in Prefect, or the next release of the recipe, rolls the version out.

    Args:
        reference: `digits@3`, or an alias instead of the number.
        via: where the person decided, for example `Prefect's form`.

    Raises:
        NotAllowed: the role may not review.
        NotWaiting: the version does not wait, has expired, was superseded, is in production, or the same person, or enough
            people, have reviewed it with the same outcome already.
        UsageError: the version does not exist, or the reason does not match `REASON`.
        RegistryError: its files are not those that the gate judged, or MLflow's database cannot be read.
    """
    require_reviewer(reviewer, ACTS[outcome])
    if not is_reason(why, outcome):
        raise UsageError(f"expected {REASON}", where="--why", hint="--why 'too many false alarms'")
    version = registry.get(reference, project)
    with _lock(project):  # two reviews at once: the second one sees the first
        _expire_due(version.model, project)
        entries = journal.entries(project, version.model)
        waiting = _require_waiting(version, outcome, entries)
        lookup.require_recorded_files(version, waiting)
        evidence, approvers = registry.evidence(version), Terms.recorded(waiting).approvers
        content, data = evidence["content_sha256"], evidence.get("data_md5")
        _require_another(version, outcome, reviewer, standing(version.version, content, data, entries, project, approvers))
        found = Review(
            outcome=outcome,
            model=version.model,
            version=version.version,
            content_sha256=content,
            data_md5=data,
            by=reviewer.name,
            role=str(reviewer.role),
            token=reviewer.token,
            at=_next_time(entries, project),
            why=why,
            via=via,
        )
        signature = tokens.sign(project, {"iss": ISSUER, **found.model_dump(exclude_defaults=True)})
        facts = {**evidence, **found.facts(), "token": found.token, "signature": signature}
        journal.record(project, outcome, version.model, version.version, facts)
        entries = journal.entries(project, version.model)
        now = standing(version.version, content, data, entries, project, approvers)
    audit.record(project, ACTS[outcome], {"version": version.name, **found.facts(), "token": found.token})
    with contextlib.suppress(RegistryError):  # information for people who look at MLflow
        registry.set_tags(version, {TAG: now.outcome or now.progress, f"{outcome}_by": _names(now, found)}, project)
    return found


def _names(now: Standing, found: Review) -> str:
    return ", ".join(one.by for one in now.approvals) if found.outcome == "approved" else found.by


def _lock(project: Project) -> FileLock:
    project.locks.mkdir(parents=True, exist_ok=True)
    return FileLock(project.locks / "reviews.lock")


def _next_time(entries: Sequence[Entry], project: Project) -> float:
    """Now, in seconds since 1970; later than every review and expiry of the model."""
    known = [one.at for one in _valid(entries, project)] + [_expired_at(entry) for entry in entries if entry.event == "expired"]
    return max(round(time.time(), 3), max(known) + 0.001 if known else 0.0)


def expire_due(model: str, project: Project) -> Entry | None:
    """Records that a candidate of a model has expired, if it waited for too long; returns the journal's entry of it."""
    with _lock(project):
        return _expire_due(model, project)


def _expire_due(model: str, project: Project) -> Entry | None:
    entries = journal.entries(project, model)
    waiting = terms.newest_decision(entries)
    if waiting is None or waiting.event != "awaiting-approval" or not terms.is_over(waiting):
        return None
    if _standing_of(waiting, entries, project).outcome is not None:
        return None
    end = terms.expiry(waiting)
    facts = {
        **{name: waiting.facts.get(name) for name in ("run_id", "content_sha256", "data_md5")},
        "by": HEADRACE,
        "why": f"nobody has decided until {end:%Y-%m-%d %H:%M} UTC",
        "since": waiting.at,
        "seconds": _next_time(entries, project),
    }
    entry = journal.record(project, "expired", model, waiting.version, facts)
    audit.record(project, "expire", {"version": f"{model}@{waiting.version}", "why": facts["why"]})
    with contextlib.suppress(RegistryError, UsageError):
        registry.set_tags(registry.get(f"{model}@{waiting.version}", project), {TAG: "expired"}, project)
    return entry


def _expired_at(entry: Entry) -> float:
    return float(entry.facts.get("seconds") or terms.since(entry))


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
    """The candidates of all models that passed the gate and are not released, by name; not those whose time is over."""
    by_model: dict[str, list[Entry]] = {}
    for entry in journal.entries(project):
        by_model.setdefault(entry.model, []).append(entry)
    found = (candidate_of(entries, project) for _, entries in sorted(by_model.items()))
    return [one for one in found if one is not None]


def candidate_of(entries: Sequence[Entry], project: Project) -> Candidate | None:
    """The candidate of the model with these entries; None where none waits or has been reviewed."""
    newest = terms.newest_decision(entries)
    if newest is None or newest.event != "awaiting-approval":
        return None
    found = _standing_of(newest, entries, project)
    if found.outcome is None and terms.is_over(newest):
        return None
    released = history.in_force(entries)
    return Candidate(newest, found, released.version if released else None)


def _standing_of(waiting: Entry, entries: Sequence[Entry], project: Project) -> Standing:
    facts, approvers = waiting.facts, Terms.recorded(waiting).approvers
    return standing(waiting.version, facts.get("content_sha256"), facts.get("data_md5"), entries, project, approvers)


def standing(
    version: str,
    content_sha256: str | None,
    data_md5: str | None,
    entries: Sequence[Entry],
    project: Project,
    approvers: int = 1,
) -> Standing:
    """What the reviews of a version with these files amount to. Approvals from before it expired do not count.

    A rejection also counts for the same files from the same data under another number.

    Args:
        entries: those of the model.
        approvers: how many people have to approve.
    """
    expired = max((_expired_at(e) for e in entries if e.event == "expired" and e.version == version), default=0.0)
    approvals: dict[str, Review] = {}
    rejection: Review | None = None
    for one in _valid(entries, project):
        if one.content_sha256 != content_sha256:
            continue
        if one.outcome == "rejected" and (one.version == version or one.data_md5 == data_md5):
            rejection = one
            approvals.clear()
        elif one.outcome == "approved" and one.version == version and one.at > expired:
            approvals.setdefault(one.person, one)
    return Standing(tuple(approvals.values()), approvers, rejection)


def was_approved_unsigned(version: str, content_sha256: str, entries: Sequence[Entry]) -> bool:
    """Whether an earlier Headrace, which signed nothing, recorded an approval of these files, and released the version then."""
    return version in history.served(entries) and any(
        e.event == "approved" and e.version == version and "signature" not in e.facts
        and e.facts.get("content_sha256", content_sha256) == content_sha256
        for e in entries
    )  # fmt: skip


def waits(version: str, entries: Sequence[Entry]) -> bool:
    """Whether a version of the model with these entries waits for approval, or did until it was reviewed."""
    newest = terms.newest_decision(entries)
    return newest is not None and (newest.event, newest.version) == ("awaiting-approval", version)


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


def _require_waiting(version: Version, outcome: Outcome, entries: list[Entry]) -> Entry:
    """The entry by which the version waits.

    Raises:
        NotWaiting: it does not wait, has expired, was superseded, or is in production.
    """
    model, released = version.model, history.in_force(entries)
    see = f"headrace history {model}"
    if released is not None and released.version == version.version:
        again = see if outcome == "approved" else f"headrace rollback {model} returns to the version before"
        raise NotWaiting(f"{version.name} is the champion already", hint=again)
    last = next((e for e in reversed(entries) if e.version == version.version and e.event in terms.DECIDING), None)
    if last is None or last.event != "awaiting-approval":
        reasons = {
            "refused": "the gate refused it",
            "released": "it was released already",
            "expired": f"it expired at {last.at}" if last else "",
        }
        reason = reasons[last.event] if last else "its recipe does not ask for one, or no release got that far"
        again = f"headrace run {model} asks again" if last is not None and last.event == "expired" else see
        raise NotWaiting(f"{version.name} does not wait for approval: {reason}", hint=again)
    newest = terms.newest_decision(entries)
    if newest is not None and newest.version != version.version:
        raise NotWaiting(
            f"{version.name} does not wait for approval: it was superseded by {model}@{newest.version}, "
            f"which {BECAME[newest.event]} at {newest.at}",
            hint=f"headrace approve lists what waits; headrace history {model}",
        )
    return last


BECAME = {
    "refused": "was refused",
    "awaiting-approval": "passed the gate",
    "released": "was released",
    "expired": "expired",
}
"""What the events of `terms.DECIDING` say about a version."""


def _require_another(version: Version, outcome: Outcome, reviewer: Reviewer, now: Standing) -> None:
    """Checks that a review adds something.

    Raises:
        NotWaiting: the version was reviewed with the same outcome already, by enough people or by this one.
    """
    model, same = version.model, None
    if outcome == "approved" and now.outcome == "approved":
        same = now.approvals[-1]
    elif outcome == "rejected" and now.outcome == "rejected" and now.rejection and now.rejection.version == version.version:
        same = now.rejection
    if same is not None:
        done = f"headrace run {model} rolls it out" if outcome == "approved" else f"headrace history {model}"
        raise NotWaiting(f"{version.name} was {outcome} already, {same.sentence}", hint=done)
    person = OPERATOR if reviewer.role == OPERATOR else f"{reviewer.role} {reviewer.name}"
    own = next((one for one in now.approvals if one.person == person), None)
    if outcome == "approved" and own is not None:
        raise NotWaiting(
            f"{version.name} was approved already, {own.sentence}; the same person counts once: {now.progress}",
            hint="another person has to approve it: headrace tokens issue --tenant NAME --role reviewer",
        )


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
