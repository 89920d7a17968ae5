"""Makes the deployments on the local Prefect server the same as those in `prefect.yaml` and in recipes, which are the truth.

Prefect's own `prefect deploy` only adds and changes: it removes neither deployments nor schedules, and resumes what was paused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from headrace.console import Report
from headrace.errors import HeadraceError, ServiceError
from headrace.files import read_cached_json, write_json, write_text
from headrace.project import Project
from headrace.services import prefect
from headrace.services.prefect_file import FILE, HINT, Entry, keep_pauses, read_entry, read_file, timing_of
from headrace.services.recipe_deployments import approval_entries, recipe_entries
from headrace.tracking.provenance import sha256

SECONDS = 900
PAGE = 200

Deployment = dict[str, Any]
"""A deployment as the server returns it."""


@dataclass(frozen=True)
class _Record:
    """What was deployed; it tells deployments of the file from a person's own, and what has changed since."""

    stamp: str
    entries: list[Entry]
    exists: bool

    def entry(self, key: tuple[str, str]) -> Entry | None:
        """The entry of this name and entrypoint, or the only one of this name: its flow may have moved."""
        named = [entry for entry in self.entries if entry.name == key[0]]
        return next((entry for entry in named if entry.key == key), named[0] if len(named) == 1 else None)


def register_deployments(project: Project, report: Report = lambda line: None) -> bool:
    """Adds, changes and removes deployments and schedules until the server has those of `prefect.yaml` and of recipes.

    A pause that a person made in the UI stays, unless the file's own `active` or `paused` has changed. Deployments that were
    not made from the file are left alone.

    Args:
        report: called with a line for each deployment that was added, changed, removed, or is paused.

    Returns:
        False when nothing had to be done.

    Raises:
        ServiceError: Prefect refuses the file, which leaves the server as it is, or its server does not answer.
    """
    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "deployments.lock"):  # `up`, and a release that starts the servers
        content, entries = read_file(project.root)
        taken = {entry.name for entry in entries}
        of_recipes = [*recipe_entries(project, taken, report), *approval_entries(project, taken)]
        entries = [*entries, *of_recipes]
        record, found = _read_record(project), _deployments(project)
        stamp = _stamp(project, of_recipes)
        has_changed = record.stamp != stamp or not _is_deployed(entries, record, found)
        if has_changed:
            found = _deploy(project, content, entries, record, found, report)
            write_json(_record_path(project), {"stamp": stamp, "deployed": [entry.fields for entry in entries]})
        for entry in entries:
            _report_pauses(entry, _on_server(entry.key, found), report)
            _report_missing_recipe(entry, project, report)
        return has_changed


def _deploy(
    project: Project,
    content: dict[str, Any],
    entries: list[Entry],
    record: _Record,
    found: list[Deployment],
    report: Report,
) -> list[Deployment]:
    """Deploys all entries, then removes those that the file does not have. Returns the deployments of the server."""
    merged = [keep_pauses(entry, record.entry(entry.key), _previous(entry, record, found)) for entry in entries]
    # First, so that what a killed process has deployed is known as Headrace's.
    known = {entry.key: entry.fields for entry in (*entries, *record.entries)}
    write_json(_record_path(project), {"stamp": "", "deployed": list(known.values())})
    if entries:
        _run_prefect_deploy(project, {**content, "deployments": [entry.to_fields() for entry in merged]})
    after = _deployments(project)
    kept = {deployment["id"] for entry in entries if (deployment := _on_server(entry.key, after))}
    for entry in merged:
        _report_change(entry, record, found, report)
        if deployment := _on_server(entry.key, after):
            _remove_schedules(project, entry, deployment, report)
    for deployment in after:
        key = (deployment["name"], deployment["entrypoint"])
        if deployment["id"] in kept:
            continue
        if any(entry.key == key for entry in record.entries):
            prefect.call(project, "DELETE", f"deployments/{deployment['id']}")
            report(f"deployment {deployment['name']} removed: neither {FILE} nor a recipe has it")
        elif not record.exists and deployment["work_pool_name"] == prefect.WORK_POOL:
            report(
                f"deployment {deployment['name']} is not in {FILE} and stays, since Headrace has no record of having made it; "
                "delete it in Prefect's UI if it is not needed"
            )
    return _deployments(project)


def _run_prefect_deploy(project: Project, content: dict[str, Any]) -> None:
    """Runs `prefect deploy` with this content of the file.

    Raises:
        ServiceError: Prefect refuses the file; with the end of its output.
    """
    merged = project.state / "prefect" / FILE
    write_text(merged, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(merged)]
    environment = prefect.process_environment(project)
    try:
        done = subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        hint = "headrace up tries again"
        raise ServiceError(f"`prefect deploy` did not end within {SECONDS} s", where=FILE, hint=hint) from None
    if done.returncode != 0:
        output = f"{done.stdout}\n{done.stderr}".strip()[-1000:]
        raise ServiceError(f"Prefect refuses the deployments: {output}", where=FILE, hint=HINT)


def _remove_schedules(project: Project, entry: Entry, deployment: Deployment, report: Report) -> None:
    """Removes schedules that are not in the file: `prefect deploy` only adds and changes them."""
    for schedule in deployment["schedules"]:
        if any(schedule["slug"] == wanted.slug for wanted in entry.schedules):
            continue
        prefect.call(project, "DELETE", f"deployments/{deployment['id']}/schedules/{schedule['id']}")
        if all(timing_of(schedule["schedule"]) != wanted.timing for wanted in entry.schedules):
            report(f"deployment {entry.name}: schedule {timing_of(schedule['schedule'])} removed")


def _report_change(entry: Entry, record: _Record, found: list[Deployment], report: Report) -> None:
    before = record.entry(entry.key)
    if _previous(entry, record, found) is None:
        report(f"deployment {entry.name} added")
    elif before is None or before.fields != entry.fields:
        report(f"deployment {entry.name} changed")


def _report_pauses(entry: Entry, deployment: Deployment | None, report: Report) -> None:
    if deployment is None:
        return
    if deployment["paused"]:
        report(f"deployment {entry.name} is paused {_paused_by(entry.paused, 'paused: true')}")
    for schedule in entry.schedules:
        there = next((one for one in deployment["schedules"] if one["slug"] == schedule.slug), None)
        if there is not None and not there["active"]:
            by = _paused_by(not schedule.active, "active: false")
            report(f"deployment {entry.name}: schedule {schedule.timing} is paused {by}")


def _paused_by(by_file: bool, field: str) -> str:
    return f"({field} in {FILE})" if by_file else "by a person; resume it in Prefect's UI: headrace open prefect"


def _report_missing_recipe(entry: Entry, project: Project, report: Report) -> None:
    """Reports the recipes of the entry and of its schedules, which can have parameters of their own, that do not exist."""
    parameters = [entry.fields.get("parameters"), *(schedule.fields.get("parameters") for schedule in entry.schedules)]
    names = dict.fromkeys((found or {}).get("recipe_name") for found in parameters)
    for name in names:
        if isinstance(name, str) and "{{" not in name and not (project.root / "recipes" / f"{name}.yaml").exists():
            report(f"deployment {entry.name}: the recipe {name!r} does not exist, so its runs will fail; correct it in {FILE}")


def _is_deployed(entries: list[Entry], record: _Record, found: list[Deployment]) -> bool:
    """Whether the server has all deployments with exactly their schedules.

    A person may have deleted or added some. Prefect drops the parameters of a schedule when it is paused or resumed in the UI.
    """

    def has_schedules(entry: Entry) -> bool:
        deployment = _on_server(entry.key, found)
        return deployment is not None and _parameters(deployment["schedules"]) == _parameters(
            [{**schedule.fields, "slug": schedule.slug} for schedule in entry.schedules]
        )

    return len(entries) == len(record.entries) and all(map(has_schedules, entries))


def _parameters(schedules: list[dict[str, Any]]) -> dict[str, str]:
    """The parameters of each schedule by slug, as text."""
    return {one["slug"]: json.dumps(one.get("parameters") or {}, sort_keys=True, default=str) for one in schedules}


def _previous(entry: Entry, record: _Record, found: list[Deployment]) -> Deployment | None:
    """The deployment that the entry will change."""
    if deployment := _on_server(entry.key, found):
        return deployment
    before = record.entry(entry.key)
    return _on_server(before.key, found) if before else None


def _on_server(key: tuple[str, str], found: list[Deployment]) -> Deployment | None:
    """The deployment of this name and entrypoint; the newest, where the flow in the entrypoint's file was renamed."""
    same = [deployment for deployment in found if (deployment["name"], deployment["entrypoint"]) == key]
    return max(same, key=lambda deployment: str(deployment["updated"]), default=None)


def _deployments(project: Project) -> list[Deployment]:
    found: list[Deployment] = []
    while True:
        body = {"limit": PAGE, "offset": len(found), "sort": "NAME_ASC"}
        page = prefect.call(project, "POST", "deployments/filter", body)
        found += page
        if len(page) < PAGE:
            return found


def _record_path(project: Project) -> Path:
    return project.state / "prefect" / "deployments.json"


def _read_record(project: Project) -> _Record:
    """Reads what was deployed. Without it, or when it is damaged, nothing is removed."""
    stored = read_cached_json(_record_path(project))
    try:
        entries = [read_entry(fields, "deployments.json") for fields in stored["deployed"]]
        return _Record(str(stored["stamp"]), entries, True)
    except (TypeError, KeyError, HeadraceError):
        return _Record("", [], False)


def _stamp(project: Project, of_recipes: list[Entry]) -> str:
    """Changes when `prefect.yaml` or the schedules of recipes change, the project moves, or the server begins with a new
    database."""
    database = project.state / "prefect" / "prefect.db"
    recipes = "".join(f" {entry.name} {json.dumps(entry.fields, sort_keys=True)}" for entry in of_recipes)
    return f"{sha256(project.root / FILE)} {database.stat().st_ino if database.exists() else 0} {project.root}{recipes}"
