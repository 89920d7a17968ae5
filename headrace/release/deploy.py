"""From a registered version to replicas behind the balancer, wherever the settings say that replicas run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.errors import RolloutAborted
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal
from headrace.release.journal import Entry
from headrace.serving.access import audit
from headrace.serving.replicas.replica import Place, ReplicaSpec
from headrace.settings import Settings
from headrace.tracking.registry import Version

if TYPE_CHECKING:
    from headrace.serving.rollout.rolling import Rollout


class Package(BaseModel):
    """What a version became: a bento and, where replicas are containers, an image."""

    model_config = ConfigDict(frozen=True)
    bento: str
    image: str | None = None
    image_digest: str | None = None
    image_bytes: int | None = None


def package_version(version: Version, project: Project, settings: Settings, report: Report) -> Package:
    """The bento of `version`, and its image when `on` is `docker`; built before, it is found.

    Raises:
        EngineMissing: containers are asked for and no engine answers.
    """
    from headrace.serving.packaging import build_image, package

    bento = package(version.folder, version.model, version.version, version.identity, project)
    report(f"bento {bento.tag}")
    if settings.on != "docker":
        return Package(bento=bento.tag)
    image = build_image(project, settings, bento)
    report(f"image {image.tag}, {image.size_bytes / 1e6:.0f} MB")
    return Package(bento=bento.tag, image=image.tag, image_digest=image.digest, image_bytes=image.size_bytes)


def roll_out_version(
    recipe: Recipe, version: Version, packaged: Package, project: Project, settings: Settings, report: Report
) -> None:
    """Puts `serve.replicas` replicas of `version` behind the balancer as `serve.rollout` says, without losing a request.

    What served before is remembered until the journal says that `version` is released (`release.conclude`).

    Raises:
        ServiceError: the new replicas do not become ready; the old ones serve on.
        RolloutAborted: the new version left its bounds while it was watched; the old one serves on. The journal has the numbers.
    """
    from headrace.serving.rollout.rolling import roll_out, runner_for

    def note(facts: dict[str, Any]) -> None:
        journal.record(project, "rollout-step", recipe.name, version.version, facts)

    spec = ReplicaSpec(recipe.name, version.version, packaged.bento, packaged.image, recipe.serve.threads)
    runner = runner_for(project, settings)
    try:
        roll_out(spec, recipe.serve.replicas, project, settings, runner, report, recipe.serve.rollout, note, settled=False)
    except RolloutAborted as error:
        journal.record(project, "rollout-failed", recipe.name, version.version, {**packaged.model_dump(), **error.facts})
        raise


def headline(recipe: Recipe, version: Version, project: Project, settings: Settings) -> str:
    """What a roll-out is about to do; a trial is named only where another version serves, since it is held against that one."""
    from headrace.serving.gateway import gateway

    strategy, replicas = recipe.serve.rollout.strategy, recipe.serve.replicas
    others = any(endpoint.version != version.version for endpoint in gateway.endpoints_by_model(project).get(recipe.name, []))
    trial = f", as a {strategy} first" if others and strategy != "rolling" else ""
    return f"{version.name}, {replicas} replica{'s' * (replicas > 1)} as {settings.on}{trial}"


def scale(model: str, replicas: int, project: Project, settings: Settings, report: Report) -> Rollout:
    """More or fewer replicas of what serves `model`, where they run now.

    Raises:
        ServiceError: nothing serves `model`, or the new replicas do not become ready.
        Busy: a release of `model` rolls a version out.
    """
    from headrace.release import recovery
    from headrace.serving.gateway import gateway
    from headrace.serving.rollout import rolling

    recovery.end(model, project, settings, report)
    serving = gateway.endpoints_by_model(project).get(model, [])
    runner = rolling.runner_for(project, settings, cast(Place, serving[-1].runner) if serving else None)
    now = rolling.scale(model, replicas, project, settings, runner, report)
    audit.record(project, "scale", {"model": model, "replicas": replicas})
    return now


def released_spec(entry: Entry) -> ReplicaSpec:
    """What serves by a line of the journal that put a version in force."""
    facts = entry.facts
    return ReplicaSpec(entry.model, entry.version, facts["bento"], facts["image"], facts["threads"])


def facts_of(recipe: Recipe, packaged: Package | None, settings: Settings) -> dict[str, Any]:
    """How a version serves, as the journal keeps it."""
    return {
        **(packaged.model_dump() if packaged else {}),
        "replicas": recipe.serve.replicas,
        "threads": recipe.serve.threads,
        "on": settings.on,
    }


def serve_again(project: Project, settings: Settings, report: Report) -> list[str]:
    """Brings back what the journal says is in production, such as after `headrace down`. Returns the models.

    Raises:
        ServiceError: replicas do not become ready.
    """
    from headrace.release import recovery
    from headrace.serving.rollout.rolling import roll_out, runner_for

    production = history.production(journal.entries(project))
    for model, entry in production.items():
        facts = entry.facts
        recovery.end(model, project, settings, report, recovery.HOUSEKEEPING_SECONDS)
        runner = runner_for(project, settings, facts["on"])
        roll_out(released_spec(entry), facts["replicas"], project, settings, runner, report)
    return sorted(production)
