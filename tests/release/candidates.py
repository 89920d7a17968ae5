"""Candidates of toy recipes, decided and recorded as the flow `release` does it, without servers."""

from __future__ import annotations

import itertools
import json
from typing import Any

from headrace.data.versions import data_version
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal, reviews
from headrace.release.decision import Decision, decide_promotion
from headrace.release.lock import release_lock
from headrace.release.record import promote, record_release, stop_release
from headrace.release.reviews import Outcome, Review, Reviewer
from headrace.serving.access import tokens
from headrace.settings import Settings
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.tracking.sources import collect
from headrace.tracking.version_identity import identity_of
from tests.bento_projects import another

numbers = itertools.count()
SERVING = {"bento": "b:1", "image": None, "image_digest": None, "replicas": 2, "threads": 1, "runner": "process"}
EASY = {"require": {"accuracy": ">= 0.1"}}
LENIENT = {"metric": "accuracy", "margin": -0.05}


def new_recipe(built: Project, like: str = "tiny", **gate: Any) -> Recipe:
    return another(built, f"release-{next(numbers)}", like, gate={**EASY, **gate})


def with_gate(recipe: Recipe, **gate: Any) -> Recipe:
    return recipe.model_copy(update={"gate": recipe.gate.model_validate({**recipe.gate.model_dump(), **gate})})


def register(recipe: Recipe, project: Project, data_md5: str = "aaa.dir", after: int = 0) -> Version:
    version = data_version(project, "tiny")
    identity = {**identity_of(recipe, version, collect(recipe, version, project), project), "data_md5": data_md5}
    return registry.register(recipe, project, identity, after=after)


def register_other_bytes(recipe: Recipe, project: Project, after: int = 0) -> Version:
    """The next candidate: the same answers, other bytes."""
    path = project.artifacts(recipe.name) / "export" / "contract.json"
    contract = json.loads(path.read_text())
    write_json(path, {**contract, "threads": contract["threads"] + 1})
    return register(recipe, project, after=after)


def reviewer(project: Project, name: str = "ada", role: str = "reviewer") -> Reviewer:
    """A person with a token of this role."""
    return Reviewer(name, role, tokens.issue(project, name, [], 3600, role=role)[1].jti)


def approve(version: Version, project: Project, outcome: Outcome = "approved", why: str = "", name: str = "ada") -> Review:
    return reviews.review(version.name, outcome, reviewer(project, name), why, project)


def decide(recipe: Recipe, candidate: Version, project: Project, force: bool = False) -> Decision:
    return decide_promotion(recipe, candidate, project, lambda line: None, force)


def finish(recipe: Recipe, decision: Decision, project: Project, serving: dict[str, Any] = SERVING) -> dict[str, Any]:
    """Stops, or promotes and records, as the flow does."""
    with release_lock(recipe.name, project):
        if decision.stops:
            stop_release(recipe, decision, project.using(Settings()))
        promote(decision.chosen, project)
        return record_release(recipe, decision, serving, project.using(Settings()))


def released(recipe: Recipe, project: Project) -> Version:
    version = register(recipe, project)
    finish(recipe, decide(recipe, version, project), project)
    return version


def events(recipe: Recipe, project: Project) -> list[tuple[str, str]]:
    return [(entry.event, entry.version) for entry in journal.entries(project, recipe.name)]
