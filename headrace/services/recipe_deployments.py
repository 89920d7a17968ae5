"""Deployments that recipes ask for, beside those of `prefect.yaml`: `monitor: {every: 1h}` makes `monitor-NAME`, and
`refresh: {cron: …}` makes `refresh-NAME`; `gate: {approval: manual}` makes `approval`."""

from __future__ import annotations

import re
from typing import Any

from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release import reviews
from headrace.services import prefect
from headrace.services.prefect_file import Entry, read_entry

SECTIONS = ("monitor", "refresh")
"""Sections of a recipe that can have a schedule; the flow and the prefix of the deployment have the same name."""
DESCRIPTIONS = {
    "monitor": "Looks at what {} is asked and answers, as its recipe says (monitor.every).",
    "refresh": "Adds the next batch of {}, and releases on all data, as its recipe says (refresh); the gate decides.",
}
APPROVAL = "approval"
"""The deployment that asks people about candidates; its flow has the same name."""
MANUAL = re.compile(r"""approval["']?\s*:\s*["']?manual""")


def recipe_entries(project: Project, taken: set[str], report: Report) -> list[Entry]:
    """Returns a deployment for each section of a recipe that has a schedule.

    A recipe that cannot be read is reported, and has none: the other deployments are made all the same.

    Args:
        taken: names that `prefect.yaml` has; its deployments come first.
    """
    found = []
    for path in sorted(project.recipes.glob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        wanted = [section for section in SECTIONS if f"{section}:" in text and f"{section}-{path.stem}" not in taken]
        if not wanted:
            continue
        try:
            recipe = load_recipe(path.stem, project)
        except HeadraceError as error:
            for section in wanted:
                name = f"{section}-{path.stem}"
                report(f"deployment {name} is not made, because its recipe cannot be read: {error.message}")
            continue
        for section in wanted:
            if (schedule := _schedule(section, recipe)) is not None:
                found.append(read_entry(_fields(section, recipe.name, schedule), f"recipes/{path.name}"))
    return found


def approval_entries(project: Project, taken: set[str]) -> list[Entry]:
    """Returns the deployment of reviews, if a recipe asks for approvals or a candidate waits for one."""
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in project.recipes.glob("*.yaml"))
    if APPROVAL in taken or not (any(map(MANUAL.search, texts)) or reviews.candidates(project)):
        return []
    fields = {
        "name": APPROVAL,
        "description": "Asks people about a candidate that waits for approval. Headrace starts its runs.",
        "entrypoint": "flows/approval.py:approval",
        "work_pool": {"name": prefect.WORK_POOL},
        "tags": ["headrace"],
    }
    return [read_entry(fields, "recipes: gate.approval")]


def _schedule(section: str, recipe: Recipe) -> dict[str, Any] | None:
    if section == "refresh":
        return None if recipe.refresh is None else recipe.refresh.schedule
    seconds = recipe.monitor.every_seconds
    return None if seconds is None else {"interval": seconds, "active": True}


def _fields(section: str, recipe: str, schedule: dict[str, Any]) -> dict[str, object]:
    return {
        "name": f"{section}-{recipe}",
        "description": DESCRIPTIONS[section].format(recipe),
        "entrypoint": f"flows/{section}.py:{section}",
        "parameters": {"recipe_name": recipe},
        "work_pool": {"name": prefect.WORK_POOL},
        "tags": ["headrace"],
        "schedules": [schedule],
    }
