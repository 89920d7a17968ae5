"""A project with prepared rows, and searches in it without the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from headrace.data.ingest import ingest
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.search.run import Request, Search, open_search
from headrace.search.tracked import run_trials
from tests.projects import TINY_TABLE

SPACE = {"train.learning_rate": "log 0.002..0.2", "train.batch_size": [16, 32], "model.hidden": [[8], [16], [16, 8]]}


@dataclass
class Searching:
    """Searches for a recipe of a project."""

    project: Project
    recipe: str
    lines: list[str] = field(default_factory=list)
    """What the last search has said."""

    def open(self, **request: Any) -> Search:
        self.lines.clear()
        return open_search(Request(self.recipe, **request), self.project, self.lines.append)

    def run(self, **request: Any) -> dict[str, Any]:
        search = self.open(**request)
        return run_trials(search, self.project, self.lines.append, restart=bool(request.get("restart")))


def write_recipe(project: Project, name: str, search: dict[str, Any] | None, **sections: Any) -> None:
    """A recipe for the table of `tiny`, with other fields of its sections."""
    fields = yaml.safe_load(TINY_TABLE) | {"name": name} | ({} if search is None else {"search": search})
    for section, changes in sections.items():
        fields[section] = {**fields[section], **changes}
    (project.recipes / f"{name}.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))


def make_searching(project: Project, name: str) -> Callable[..., Searching]:
    """Writes a recipe and prepares its rows in this process."""

    def make(search: dict[str, Any] | None, **sections: Any) -> Searching:
        write_recipe(project, name, search, **sections)
        recipe = load_recipe(name, project)
        ingest(recipe, project, lambda line: None)
        STAGES["prepare"](recipe, project)
        return Searching(project, name)

    return make
