"""From a registered version to replicas behind the gateway: packages, rolls out, scales, and serves a release again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.errors import HeadraceError, RolloutAborted
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal, recovery
from headrace.release.journal import Entry
from headrace.serving.access import audit
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings, runs_as
from headrace.tracking import registry
from headrace.tracking.registry import Version

if TYPE_CHECKING:
    from headrace.serving.rollout.rolling import Rollout


class PackagedVersion(BaseModel):
    """The bento of a version and, where replicas are containers, its image."""

    model_config = ConfigDict(frozen=True)
    bento: str
    image: str | None = None
    image_digest: str | None = None
    image_bytes: int | None = None


def package_version(version: Version, project: Project, report: Report) -> PackagedVersion:
    """Builds the bento of `version`, and its image when `runner` is `docker`; what was built before is reused.

    Raises:
        EngineMissing: `runner` is `docker` and no container engine answers.
    """
    from headrace.serving.packaging import build_image, package

    bento = package(version.folder, version.model, version.version, version.identity, project)
    report(f"bento {bento.tag}")
    if project.settings.runner != "docker":
        return PackagedVersion(bento=bento.tag)
    image = build_image(project, bento)
    report(f"image {image.tag}, {image.size_bytes / 1e6:.0f} MB")
    return PackagedVersion(bento=bento.tag, image=image.tag, image_digest=image.digest, image_bytes=image.size_bytes)


def roll_out_version(recipe: Recipe, version: Version, packaged: PackagedVersion, project: Project, report: Report) -> None:
    """Puts `serve.replicas` replicas of `version` behind the gateway as `serve.rollout` says, without losing a request.

    The replicas that served before are kept until the journal has the release (`record.record_release`).

    Raises:
        ServiceError: the new replicas did not become ready; the previous version keeps serving.
        RolloutAborted: the new version left its bounds during its trial; the previous version keeps serving. The journal has
            the numbers.
    """
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout.rolling import roll_out

    def note(facts: dict[str, Any]) -> None:
        journal.record(project, "rollout-step", recipe.name, version.version, facts)

    spec = ReplicaSpec(recipe.name, version.version, packaged.bento, packaged.image, recipe.serve.threads)
    runner = runner_for(project)
    try:
        roll_out(spec, recipe.serve.replicas, project, runner, report, recipe.serve.rollout, note, is_final=False)
    except RolloutAborted as error:
        journal.record(project, "rollout-failed", recipe.name, version.version, {**packaged.model_dump(), **error.facts})
        raise


def headline(recipe: Recipe, version: Version, project: Project) -> str:
    """One line about the roll-out that begins; a trial is named only where another version serves to compare with."""
    from headrace.serving.gateway import gateway

    strategy, replicas = recipe.serve.rollout.strategy, recipe.serve.replicas
    others = any(endpoint.version != version.version for endpoint in gateway.endpoints_by_model(project).get(recipe.name, []))
    trial = f", as a {strategy} first" if others and strategy != "rolling" else ""
    return f"{version.name}, {replicas} replica{'s' * (replicas > 1)} as {runs_as(project.settings.runner)}{trial}"


def scale(model: str, replicas: int, project: Project, report: Report) -> Rollout:
    """Changes the number of replicas of the version that serves `model`; they stay processes or containers.

    Raises:
        ServiceError: nothing serves `model`, or the new replicas did not become ready.
        Busy: a release of `model` is running.
    """
    from headrace.serving.gateway import gateway
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout import rolling

    recovery.roll_back_interrupted_release(model, project, report)
    serving = gateway.endpoints_by_model(project).get(model, [])
    runner = runner_for(project, serving[-1].runner if serving else None)
    now = rolling.scale(model, replicas, project, runner, report)
    audit.record(project, "scale", {"model": model, "replicas": replicas})
    return now


def serving_facts(recipe: Recipe, packaged: PackagedVersion, settings: Settings) -> dict[str, Any]:
    """How a version serves, as facts for the journal."""
    return {
        **packaged.model_dump(),
        "replicas": recipe.serve.replicas,
        "threads": recipe.serve.threads,
        "runner": settings.runner,
    }


def serve_production(project: Project, report: Report) -> list[str]:
    """Serves again all that is in production by the journal, for example after `headrace down`. Returns the models.

    Raises:
        ServiceError: replicas did not become ready.
    """
    production = history.production(journal.entries(project))
    for entry in production.values():
        serve_released(entry, project, report)
    return sorted(production)


def serve_released(released: Entry, project: Project, report: Report) -> None:
    """Serves the version that `released` put into production, as it was released; does nothing where it serves.

    Raises:
        ServiceError: its bento or image is gone, or its replicas did not become ready.
    """
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout.rolling import roll_out

    facts, model = released.facts, released.model
    recovery.roll_back_interrupted_release(model, project, report, recovery.REPAIR_SECONDS)
    runner = runner_for(project, facts["runner"])
    roll_out(history.released_spec(released), facts["replicas"], project, runner, report)


def keep_production_serving(model: str, project: Project, report: Report) -> None:
    """Serves the version in production, where a release stops before its roll-out; does nothing where it serves already.

    Where its bento or image is gone from this machine, it is packaged again, and the journal gets a new entry.

    Raises:
        ServiceError: its replicas did not become ready.
        RegistryError: it has to be packaged again and its files are gone.
    """
    from headrace.serving.rollout.rolling import is_serving

    released = history.in_force(journal.entries(project, model))
    if released is None or is_serving(history.released_spec(released), released.facts["replicas"], project):
        return
    report(f"{model}@{released.version} is in production and does not serve: it is started")
    if is_packaged(released, project):
        serve_released(released, project, report)
        return
    version = registry.get(f"{model}@{released.version}", project)
    placed = project.settings.model_copy(update={"runner": released.facts["runner"]})
    facts = {**released.facts, **package_version(version, project.using(placed), report).model_dump()}
    facts.pop("rolled_back", None)
    serve_released(released.model_copy(update={"facts": facts}), project, report)
    journal.record(project, "released", model, released.version, facts)


def is_packaged(released: Entry, project: Project) -> bool:
    """Whether this machine still has the bento, and the image where replicas are containers, of a version in the journal."""
    from headrace.serving.packaging import find_bento

    facts = released.facts
    if facts["runner"] == "docker":
        from headrace.serving.packaging.docker import Docker

        return bool(Docker.connect(project.settings).inspect("image", facts["image"]))
    try:
        find_bento(project, facts["bento"])
    except HeadraceError:
        return False
    return True
