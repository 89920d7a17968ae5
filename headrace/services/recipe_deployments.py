"""Deployments that recipes ask for, beside those of `prefect.yaml`: `monitor: {every: 1h}` makes `monitor-NAME`."""

from __future__ import annotations

from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.services import prefect
from headrace.services.prefect_file import Entry, read_entry

ENTRYPOINT = "flows/monitor.py:monitor"


def monitor_entries(project: Project, taken: set[str], report: Report) -> list[Entry]:
    """Returns a deployment for each recipe that is watched on a schedule.

    A recipe that cannot be read is reported, and has none: the other deployments are made all the same.

    Args:
        taken: names that `prefect.yaml` has; its deployments come first.
    """
    found = []
    for path in sorted(project.recipes.glob("*.yaml")):
        name = f"monitor-{path.stem}"
        if name in taken or "monitor:" not in path.read_text(encoding="utf-8", errors="replace"):
            continue
        try:
            seconds = load_recipe(path.stem, project).monitor.every_seconds
        except HeadraceError as error:
            report(f"deployment {name} is not made, because its recipe cannot be read: {error.message}")
            continue
        if seconds is not None:
            found.append(read_entry(_fields(name, path.stem, seconds), f"recipes/{path.name}"))
    return found


def _fields(name: str, recipe: str, seconds: float) -> dict[str, object]:
    return {
        "name": name,
        "description": f"Looks at what {recipe} is asked and answers, as its recipe says (monitor.every).",
        "entrypoint": ENTRYPOINT,
        "parameters": {"recipe_name": recipe},
        "work_pool": {"name": prefect.WORK_POOL},
        "tags": ["headrace"],
        "schedules": [{"interval": seconds, "active": True}],
    }
