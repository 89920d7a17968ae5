"""From a registered version to replicas behind the gateway: packages, rolls out, scales, and serves a release again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.errors import HeadraceError, RegistryError, RolloutAborted, ServiceError
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import history, journal, recovery, refreshing
from headrace.release.extract import bento_sources
from headrace.release.journal import Entry
from headrace.serving.access import audit
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings, runs_as
from headrace.tracking import registry
from headrace.tracking.registry import Version

if TYPE_CHECKING:
    from headrace.evaluation.gate import Comparison
    from headrace.serving.rollout.rolling import Rollout


class PackagedVersion(BaseModel):
    """The bento of a version and, where replicas are containers, its image."""

    model_config = ConfigDict(frozen=True)
    bento: str
    image: str | None = None
    image_digest: str | None = None
    image_bytes: int | None = None


def package_version(version: Version, project: Project, report: Report, content_sha256: str | None = None) -> PackagedVersion:
    """Builds the bento of `version`, and its image when `runner` is `docker`; what was built before is reused.

    Args:
        content_sha256: the content hash of its files, from the export or the journal; other files are refused.

    Raises:
        RegistryError: its files are not those that were registered.
        EngineMissing: `runner` is `docker` and no container engine answers.
    """
    from headrace.serving.packaging import build_image, package

    source = _source(version, project, report)
    bento = package(version.folder, version.model, version.version, version.identity, project, source, content_sha256)
    report(f"bento {bento.tag}")
    if project.settings.runner != "docker":
        return PackagedVersion(bento=bento.tag)
    image = build_image(project, bento)
    report(f"image {image.tag}, {image.size_bytes / 1e6:.0f} MB")
    return PackagedVersion(bento=bento.tag, image=image.tag, image_digest=image.digest, image_bytes=image.size_bytes)


def _source(version: Version, project: Project, report: Report) -> Mapping[str, bytes]:
    try:
        found = registry.source_of(version, project, bento_sources(version, project))
    except RegistryError as error:  # its run was deleted from MLflow: it can be served all the same
        report(error.message)
        return {}
    return found.files if found else {}


def roll_out_version(
    recipe: Recipe,
    version: Version,
    packaged: PackagedVersion,
    project: Project,
    report: Report,
    comparison: Comparison | None = None,
) -> None:
    """Puts `serve.replicas` replicas of `version` behind the gateway as `serve.rollout` says, without losing a request.

    The replicas that served before are kept until the journal has the release (`record.record_release`).

    Args:
        comparison: the gate's, which the journal keeps if the roll-out fails: it has spent a part of the error budget.

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
        facts = {**packaged.model_dump(), **error.facts, **({"comparison": comparison.to_dict()} if comparison else {})}
        journal.record(project, "rollout-failed", recipe.name, version.version, facts)
        refreshing.forget(recipe.name, project)
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
        ServiceError: nothing serves `model`, its bento or image has changed, or the new replicas did not become ready.
        Busy: a release of `model` is running.
    """
    from headrace.serving.gateway import gateway
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout import rolling

    recovery.roll_back_interrupted_release(model, project, report)
    serving = gateway.endpoints_by_model(project).get(model, [])
    released = history.in_force(journal.entries(project, model))
    if released is not None and serving and serving[-1].version == released.version:
        require_released_bytes(released, project)
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

    A model that cannot be served keeps no other one from it. Calls at the same time, for example by the systemd unit and a
    person, take turns; the later one finds what the other one serves.

    Raises:
        HeadraceError: why one model is not served.
        ServiceError: why each of several models is not served.
    """
    with _production_lock(project, report):
        return _serve_production(project, report)


@contextlib.contextmanager
def _production_lock(project: Project, report: Report) -> Iterator[None]:
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.locks / "production.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("another process starts what is in production; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _serve_production(project: Project, report: Report) -> list[str]:
    production = history.production(journal.entries(project))
    failed: dict[str, HeadraceError] = {}
    for entry in production.values():
        try:
            _serve_again(entry, project, report)
        except HeadraceError as error:
            report(f"{entry.model}@{entry.version} is not served: {error.message}")
            failed[entry.model] = error
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        raise ServiceError(
            f"{len(failed)} of {len(production)} models are not served: "
            + "; ".join(f"{model}: {error.message}" for model, error in sorted(failed.items())),
            hint="headrace status; then headrace run MODEL, which builds what is missing",
        )
    return sorted(production)


def serve_released(released: Entry, project: Project, report: Report) -> None:
    """Serves the version that `released` put into production, as it was released; does nothing where it serves.

    Raises:
        ServiceError: its bento or image is gone or has changed, or its replicas did not become ready.
    """
    from headrace.serving.replicas.runners import runner_for
    from headrace.serving.rollout.rolling import roll_out

    facts, model = released.facts, released.model
    recovery.roll_back_interrupted_release(model, project, report, recovery.REPAIR_SECONDS)
    runner = runner_for(project, facts["runner"])
    require_released_bytes(released, project)
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
    _serve_again(released, project, report)


def _serve_again(released: Entry, project: Project, report: Report) -> None:
    """Serves what `released` put into production; packages it first where its bento or image is gone from this machine."""
    if is_packaged(released, project):
        serve_released(released, project, report)
        return
    model = released.model
    report(f"the bento or image of {model}@{released.version} is gone; it is packaged again")
    version = registry.get(f"{model}@{released.version}", project)
    placed = project.settings.model_copy(update={"runner": released.facts["runner"]})
    facts = {**released.facts, **package_again(version, released, project.using(placed), report)}
    facts.pop("rolled_back", None)
    serve_released(released.model_copy(update={"facts": facts}), project, report)
    journal.record(project, "released", model, released.version, facts)


def package_again(version: Version, released: Entry, project: Project, report: Report) -> dict[str, Any]:
    """Packages a version that the journal has, and returns the facts of its bento and image.

    Raises:
        RegistryError: its files are not those that were released.
    """
    return package_version(version, project, report, released.facts.get("content_sha256")).model_dump()


def require_released_bytes(released: Entry, project: Project) -> None:
    """Compares the packaged model with the journal; entries of early versions have no hash, and pass.

    Raises:
        ServiceError: the bento or the image is not the one that was released.
    """
    from headrace.serving.packaging import find_bento
    from headrace.serving.packaging.bento import require_content

    facts = released.facts
    if facts["runner"] != "docker":
        if content := facts.get("content_sha256"):
            require_content(find_bento(project, facts["bento"]), content, facts.get("files"))
        return
    from headrace.serving.packaging.docker import Docker

    images = Docker.connect(project.settings).inspect("image", facts["image"])
    digest = facts.get("image_digest")
    if images and digest and images[0]["Id"] != digest:
        raise ServiceError(
            f"the image {facts['image']} is {images[0]['Id'][:19]}…, and {digest[:19]}… was released",
            where=f"{released.model}@{released.version}",
            hint=f"remove the image, and build it again: docker image rm {facts['image']}; headrace run {released.model}",
        )


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
