"""Candidates that wait for a person: their suspended runs in Prefect, reminders, and the end of those whose time is over.

The journal says what waits and who has decided. Prefect's runs follow it: `synchronise` makes, continues and ends them, and
does nothing where all is as it should be, so that any process may call it at any time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from filelock import FileLock

from headrace.console import Report
from headrace.errors import HeadraceError, RegistryError, ServiceError, UsageError
from headrace.events.publish import publish
from headrace.events.running import is_marked
from headrace.project import Project
from headrace.release import description, history, journal, reviews, terms
from headrace.release.journal import Entry
from headrace.release.reviews import ACTS, Candidate, Reviewer
from headrace.release.terms import Terms
from headrace.runtime.token_verifier import TokenVerifier
from headrace.services import prefect, prefect_api
from headrace.services.recipe_deployments import APPROVAL
from headrace.serving.access import audit
from headrace.serving.access.tokens import operator_token

TAG = "approval"
"""The tag of all runs that ask for an approval."""
START_SECONDS = 300.0
"""A run that began this long ago has a mark, unless it was killed."""
OPEN = ("SCHEDULED", "PENDING", "RUNNING", "PAUSED")
PAGE = 200
MAX_KILLED = 3
"""A run that was killed is made again this often: a version may need more memory than there is."""
FORM = "Prefect's form"
OUTCOMES: dict[str, reviews.Outcome] = {act: outcome for outcome, act in ACTS.items()}


def ask(model: str, project: Project, report: Report) -> None:
    """Asks people about the candidate of a model, after a release has found it: also when an earlier run was cancelled.

    Where Prefect's server does not answer, the watchdog asks later.
    """
    with _lock(project):
        candidate = reviews.candidate_of(journal.entries(project, model), project)
        if candidate is None:
            return
        try:
            opened = _open_runs(project)
            _end_others(opened, project)
            if all(run["parameters"] != _parameters(candidate) for run in opened):
                page = f"{project.settings.prefect_address}/runs/flow-run/{_create_run(candidate, project, again=True)}"
                report(f"{candidate.name} waits for approval: {page}")
        except ServiceError as error:
            report(f"{error.message}; headrace approve {candidate.name} approves it all the same")


def synchronise(project: Project, report: Report) -> None:
    """Makes Prefect's runs as the journal says: one for each candidate that waits or was approved, none for others.

    Raises:
        ServiceError: Prefect's server does not answer.
    """
    with _lock(project):
        opened = _close_killed(_open_runs(project), project)
        _end_others(opened, project)
        for candidate in reviews.candidates(project):
            own = [run for run in opened if run["parameters"] == _parameters(candidate)]
            if candidate.state == "rejected":
                continue
            if not own:
                _create_run(candidate, project)
            elif candidate.state == "approved" and own[0]["state"]["type"] == "PAUSED":
                _set_state(own[0], "SCHEDULED", "Resuming", f"approved {candidate.standing.review.sentence}", project)  # type: ignore[union-attr]
            elif candidate.state == "waiting":
                _update_form(own[0], candidate, project)


def look_after(project: Project, report: Report) -> None:
    """What the watchdog does: records expired candidates, makes Prefect's runs follow, and reminds people."""
    for model in sorted({entry.model for entry in journal.entries(project) if entry.event == "awaiting-approval"}):
        if expired := reviews.expire_due(model, project):
            name = f"{model}@{expired.version}"
            report(f"{name} has expired")
            description.update_review(model, expired.version, project)
    for candidate in reviews.candidates(project):
        if candidate.state == "waiting":
            _remind(candidate, project, report)
    synchronise(project, report)


def follow_up(model: str, version: str, project: Project) -> dict[str, Any]:
    """What happens after a review: continues or ends the suspended run, and says what is next.

    Returns:
        `state`, `approvals`, `approvers`, and `next`: a sentence.
    """
    description.update_review(model, version, project)
    candidate = reviews.candidate_of(journal.entries(project, model), project)
    if candidate is None or candidate.entry.version != version:  # it was released already
        return {"state": "released", "approvals": 0, "approvers": 1, "next": f"headrace history {model}"}
    continues = True
    try:
        synchronise(project, lambda line: None)
    except HeadraceError:
        continues = False
    found = candidate.standing
    if candidate.state == "approved":
        later = f"roll it out: headrace run {model}; or headrace up, which does it in the background"
        then = "its suspended run in Prefect goes on and rolls it out: headrace status shows it" if continues else later
    elif candidate.state == "waiting":
        then = f"{found.progress}: another person has to approve it"
    else:
        then = f"headrace approve {candidate.name} lifts the rejection"
    return {"state": candidate.state, "approvals": len(found.approvals), "approvers": found.approvers, "next": then}


def operator(project: Project) -> Reviewer:
    """This user, who decides as the operator: at the command line without a token, or logged in to Prefect."""
    caller = TokenVerifier(project.token_keys).verify(operator_token(project))
    return Reviewer(audit.user(), caller.role, caller.jti)


def answer_of(run_id: str, project: Project) -> tuple[int, dict[str, Any] | None]:
    """How often a run was suspended, and what a person has answered to its last form; None without an answer."""
    run = prefect.call(project, "GET", f"flow_runs/{run_id}")
    count = len((run.get("empirical_policy") or {}).get("pause_keys") or [])
    given = prefect.call(project, "POST", f"flow_runs/{run_id}/input/filter", {"prefix": _input_key(count, "response")})
    if not given:
        return count, None
    value = given[0]["value"]
    found = json.loads(value) if isinstance(value, str) else value
    return count, found if isinstance(found, dict) else {}


def record_answer(run: dict[str, Any], project: Project) -> str | None:
    """Records what a person has answered in the form of a run, as a signed review of the operator; once.

    Args:
        run: `id` and `parameters` of the run.

    Returns:
        Why the answer does not count, to be shown in the next form; None where there was none, or it was recorded.
    """
    count, answer = answer_of(run["id"], project)
    if answer is None:
        return None
    parameters, why = run["parameters"], str(answer.get("reason") or "").strip()
    outcome = OUTCOMES.get(str(answer.get("decision")))
    problem = None
    if outcome is None:
        problem = "choose approve or reject"
    else:
        try:
            reviews.review(f"{parameters['model']}@{parameters['version']}", outcome, operator(project), why, project, FORM)
        except (UsageError, RegistryError) as error:
            problem = error.message if reviews.is_reason(why, outcome) else f"the reason is {reviews.REASON}"
    description.update_review(parameters["model"], parameters["version"], project)
    prefect.call(project, "DELETE", f"flow_runs/{run['id']}/input/{_input_key(count, 'response')}")
    return problem


def form_text(candidate: Candidate, project: Project, problem: str | None = None) -> str:
    """What a reviewer reads above the form, in Markdown: the description of the version in MLflow, and where more is."""
    model, version = candidate.entry.model, candidate.entry.version
    parts = [f"**Your last answer was not taken: {problem}.**"] if problem else []
    if candidate.standing.progress:
        names = "; ".join(one.sentence for one in candidate.standing.approvals)
        parts.append(f"{candidate.standing.progress}{f': {names}' if names else ''}.")
    if end := terms.expiry(candidate.entry):
        parts.append(f"It waits until {end:%Y-%m-%d %H:%M} UTC.")
    text = description.stored(model, version, project) or "\n".join(
        f"- {reason}" for reason in (candidate.entry.facts.get("verdict") or {}).get("reasons", [])
    )
    text = re.sub(rf"(?m)^{re.escape(description.REVIEW)}.*\n*", "", text)
    pages = project.settings.tracking_uri or project.settings.mlflow_address
    page = f"{pages}/#/models/{model}/versions/{version}"
    parts += [text.replace("](#/", f"]({pages}/#/"), f"[{candidate.name} in MLflow]({page}), after `headrace open mlflow`."]
    return "\n\n".join(parts)


def end_of(model: str, version: str, content_sha256: str, project: Project) -> tuple[str, str] | None:
    """The name and the message of the state in which the run of a candidate ends; None while it waits or is approved."""
    entries = journal.entries(project, model)
    candidate, name = reviews.candidate_of(entries, project), f"{model}@{version}"
    released = history.in_force(entries)
    if candidate is not None and _content(candidate.entry) == (version, content_sha256):
        if candidate.state == "rejected" and candidate.standing.review:
            return "Rejected", f"{name} was rejected {candidate.standing.review.sentence}"
        return None
    newest = terms.newest_decision(entries)
    if released is not None and released.version == version:
        return "Released", f"{name} is in production since {released.at}"
    if newest is None:
        return "Superseded", f"the journal knows no candidate {name}"
    if newest.version == version and newest.event in ("expired", "awaiting-approval") and _content(newest)[1] == content_sha256:
        return "Expired", f"{name} has expired: {newest.facts.get('why') or 'its time is over'}"
    return "Superseded", f"{name} was superseded by {model}@{newest.version} at {newest.at}"


def _content(entry: Entry) -> tuple[str, str | None]:
    return entry.version, entry.facts.get("content_sha256")


# -- Prefect's runs


def _parameters(candidate: Candidate) -> dict[str, Any]:
    version, content = _content(candidate.entry)
    return {"model": candidate.entry.model, "version": version, "content_sha256": content}


def _open_runs(project: Project) -> list[dict[str, Any]]:
    query = {"flow_runs": {"tags": {"all_": [TAG]}, "state": {"type": {"any_": OPEN}}}, "limit": PAGE}
    found: list[dict[str, Any]] = prefect.call(project, "POST", "flow_runs/filter", query)
    return found


def _end_others(opened: Sequence[dict[str, Any]], project: Project) -> None:
    """Ends suspended runs whose candidate does not wait any more. One that runs finds out itself."""
    for run in opened:
        parameters = run["parameters"]
        model, version, content = (str(parameters.get(name)) for name in ("model", "version", "content_sha256"))
        if run["state"]["type"] == "PAUSED" and (end := end_of(model, version, content, project)) is not None:
            _set_state(run, "COMPLETED" if end[0] == "Released" else "CANCELLED", *end, project)


def _close_killed(opened: Sequence[dict[str, Any]], project: Project) -> list[dict[str, Any]]:
    """Closes runs that were killed before they had a mark, and returns the others."""
    killed = [run for run in opened if _was_killed_early(run, project)]
    for run in killed:
        _set_state(run, "CRASHED", "Crashed", "its process was killed while it started, or the machine stopped", project)
    return [run for run in opened if run not in killed]


def _was_killed_early(run: dict[str, Any], project: Project) -> bool:
    state = run["state"]
    age = time.time() - datetime.fromisoformat(state["timestamp"]).timestamp()
    return state["type"] in ("PENDING", "RUNNING") and age > START_SECONDS and not is_marked(run["id"], project)


def _create_run(candidate: Candidate, project: Project, again: bool = False) -> str | None:
    """Creates the run of a candidate and returns its id; None where the last one was not killed, for example because a
    person has cancelled it, or where too many were killed.

    Args:
        again: whether one is created all the same.
    """
    deployment = _deployment(project)
    tags = [TAG, candidate.name, f"since {candidate.entry.at}"]
    query = {"flow_runs": {"tags": {"all_": tags}}, "sort": "EXPECTED_START_TIME_DESC", "limit": PAGE}
    earlier = prefect.call(project, "POST", "flow_runs/filter", query)
    killed = [run["state"]["type"] == "CRASHED" for run in earlier]
    if earlier and not again and (not killed[0] or sum(killed) > MAX_KILLED):
        return None
    body = {
        "name": f"approve-{candidate.name}",
        "parameters": _parameters(candidate),
        "tags": tags,
        "idempotency_key": " ".join([*tags, str(len(earlier))]),
    }
    return str(prefect.call(project, "POST", f"deployments/{deployment}/create_flow_run", body)["id"])


def _deployment(project: Project) -> str:
    """The id of the deployment, which is made if it is missing."""
    from headrace.services.prefect_deployments import register_deployments

    path = f"/deployments/name/{APPROVAL}/{APPROVAL}"
    answer = prefect_api.call(project, path)
    if answer is not None and answer.status == 404:
        register_deployments(project)
    return str(prefect.call(project, "GET", path.removeprefix("/"))["id"])


def _set_state(run: dict[str, Any], kind: str, name: str, message: str, project: Project) -> None:
    body = {"state": {"type": kind, "name": name, "message": message}, "force": kind != "SCHEDULED"}
    prefect.call(project, "POST", f"flow_runs/{run['id']}/set_state", body)


def _update_form(run: dict[str, Any], candidate: Candidate, project: Project) -> None:
    """Shows in an open form who has approved meanwhile."""
    count = len((run.get("empirical_policy") or {}).get("pause_keys") or [])
    if candidate.standing.progress and run["state"]["type"] == "PAUSED":
        path, key = f"flow_runs/{run['id']}/input", _input_key(count, "description")
        before = prefect.call(project, "POST", f"{path}/filter", {"prefix": key})
        text = json.dumps(form_text(candidate, project))
        if before and before[0]["value"] != text:
            prefect.call(project, "DELETE", f"{path}/{key}")
            prefect.call(project, "POST", path, {"key": key, "value": text})


def pause_key(count: int) -> str:
    """The key of the suspension with this number, from 1. Each form has its own."""
    return f"review-{count}"


def _input_key(count: int, name: str) -> str:
    """As Prefect names what belongs to a suspension."""
    return f"suspended-{pause_key(count)}-{name}"


def _remind(candidate: Candidate, project: Project, report: Report, now: float | None = None) -> None:
    """Publishes a reminder as often as the recipe says. Each has a number, by which it is published once: also after a restart,
    and when the clock is set back. Of several that were missed, only the last one is sent."""
    entry, now = candidate.entry, time.time() if now is None else now
    every, began = Terms.recorded(entry).remind_seconds, terms.since(candidate.entry)
    number = int((now - began) // every) if every else 0
    if number < 1:
        return
    progress, end = candidate.standing.progress, terms.expiry(entry)
    data = {
        "version": entry.version,
        "reasons": list((entry.facts.get("verdict") or {}).get("reasons", [])),
        "waits_since": entry.at,
        **({"expires": end.isoformat(timespec="seconds")} if end else {}),
        **({"approvals": progress} if progress else {}),
    }
    key = f"approval-reminder {candidate.name} {entry.at} {number}"
    publish(project, "approval-reminder", entry.model, data, key=key, report=report)


@contextmanager
def _lock(project: Project) -> Iterator[None]:
    """Held while runs are made and ended, so that two processes do not do the same."""
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "approvals.lock"):
        yield
