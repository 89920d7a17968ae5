"""Removes old versions with all that belongs to them: bentos, images, runs, artifacts, Data Docs and DVC's cache.

Every step can be repeated and a version's entry in the registry goes last, so that the next call completes one that was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from headrace.console import Report
from headrace.data.commit import exclusive
from headrace.data.unused import unused_files
from headrace.errors import Busy, EngineMissing, RegistryError, UsageError
from headrace.files import read_cached_json
from headrace.project import Project
from headrace.release import history, journal
from headrace.release.extract import bento_sources
from headrace.release.lock import release_lock
from headrace.serving.gateway import gateway
from headrace.serving.packaging import model_folder
from headrace.serving.packaging.docker import Docker
from headrace.tracking import registry, removal
from headrace.tracking.registry import Version

KEPT = 5
"""Versions of a model to which a rollback stays possible, by default."""
WAITING = ("awaiting-approval", "approved")


@dataclass(frozen=True)
class Removed:
    """Something that goes."""

    kind: str
    """version, bento, image, flow run, Data Docs, or DVC cache."""
    name: str
    bytes: int


@dataclass(frozen=True)
class _Step:
    removed: Removed
    remove: Callable[[], object]


def prune(project: Project, report: Report, keep: int = KEPT, dry_run: bool = False) -> list[Removed]:
    """Removes what nothing needs any more, and returns it; with `dry_run` it only returns it.

    Kept of each model: what serves or is being rolled out, the last `keep` versions that served, those that wait for an
    approval, those with an alias, and the newest. A model that is being released is left out.

    Raises:
        UsageError: `keep` is below 1.
        Busy: another process prunes, or changes the data.
        RegistryError: MLflow's database cannot be written.
    """
    if keep < 1:
        raise UsageError(f"at least one version is kept, not {keep}", where="--keep", hint="headrace prune --keep 1")
    removed: list[Removed] = []
    with exclusive(project, "prune"):
        for model in _models(project):
            try:
                with release_lock(model, project):
                    removed += _take(_steps_of(model, keep, project, report), dry_run)
            except Busy as error:
                report(f"{error.message}: its versions stay")
        removed += _take(_pages(project, keep), dry_run)
        with exclusive(project, "data"):
            removed += _take(_cache(project, {(r.name) for r in removed if r.kind == "version"}), dry_run)
    return removed


def as_json(removed: list[Removed]) -> dict[str, Any]:
    return {"removed": [asdict(one) for one in removed], "bytes": sum(one.bytes for one in removed)}


def _take(steps: Iterator[_Step], dry_run: bool) -> list[Removed]:
    taken = []
    for step in steps:
        if not dry_run:
            step.remove()
        taken.append(step.removed)
    return taken


def _models(project: Project) -> list[str]:
    return sorted({*registry.models(project), *(entry.model for entry in journal.entries(project))})


def kept_versions(model: str, keep: int, project: Project) -> set[str]:
    """Numbers of the versions that stay."""
    entries = journal.entries(project, model)
    last = {entry.version: entry.event for entry in entries}
    registered = registry.versions(model, project)
    route = gateway.read_routes(project).get(model)
    return {
        *(endpoint.version for endpoint in ((*route.endpoints, *route.previous) if route else ())),
        *list(history.served(entries))[-keep:],
        *(version for version, event in last.items() if event in WAITING),
        *(version.version for version in registered if version.aliases),
        *(version.version for version in registered[:1]),
    }


def _steps_of(model: str, keep: int, project: Project, report: Report) -> Iterator[_Step]:
    kept = kept_versions(model, keep, project)
    versions = registry.versions(model, project)
    gone = {entry.version for entry in journal.entries(project, model)} | {version.version for version in versions}
    gone -= kept
    yield from _bentos(model, kept, project)
    yield from _images(model, gone, project, report)
    runs = {version.run_id for version in versions if version.version in kept}
    for version in reversed(versions):
        if version.version in gone:
            yield _version(version, version.run_id not in runs, project)


def _version(version: Version, with_run: bool, project: Project) -> _Step:
    return _Step(
        Removed("version", version.name, removal.size(version, with_run, project)),
        lambda: removal.remove(version, with_run, project),
    )


def _bentos(model: str, kept: set[str], project: Project) -> Iterator[_Step]:
    """Bentos of versions that are not kept; their tags begin with the version."""
    home = project.bentoml_home / "bentos" / model
    models = project.bentoml_home / "models" / model
    names = sorted({path.name for place in (home, models) if place.is_dir() for path in place.iterdir() if path.is_dir()})
    for name in names:
        if name.rpartition("-")[0] not in kept:
            folders = [home / name, model_folder(project, f"{model}:{name}")]
            yield _Step(
                Removed("bento", f"{model}:{name}", sum(map(_size, folders))),
                partial(_remove_all, folders),
            )


def _images(model: str, gone: set[str], project: Project, report: Report) -> Iterator[_Step]:
    entries = journal.entries(project, model)
    named = {entry.facts["image"] for entry in entries if entry.facts.get("image")}
    kept = {entry.facts["image"] for entry in entries if entry.facts.get("image") and entry.version not in gone}
    if not named - kept:
        return
    try:
        docker = Docker.connect(project.settings)
    except EngineMissing as error:
        report(f"{error.message}: images stay")
        return
    for image in sorted(named - kept):
        for found in docker.inspect("image", image):
            # Without force: the engine keeps an image that a container uses.
            yield _Step(
                Removed("image", image, int(found.get("Size", 0))),
                partial(docker.run, "image", "rm", image),
            )


def _pages(project: Project, keep: int) -> Iterator[_Step]:
    """Results of Great Expectations and their Data Docs, except the newest of each recipe and those that reports name."""
    named = {Path(str(found["docs"])) for found in _reports(project) if found and found.get("docs")}
    for top in (project.data_docs / "validations", project.state / "great_expectations" / "results"):
        for suite in sorted(top.iterdir()) if top.is_dir() else ():
            files = sorted((path for path in suite.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
            for path in files[: -max(keep, 1)]:
                if path not in named:
                    name = path.relative_to(project.state).as_posix()
                    yield _Step(Removed("Data Docs", name, path.stat().st_size), partial(path.unlink, missing_ok=True))


def _reports(project: Project) -> Iterator[Any]:
    yield from (read_cached_json(path) for path in (project.state / "validation").glob("*.json"))
    yield from (read_cached_json(path) for path in project.quarantine.glob("*/*/report.json"))


def _cache(project: Project, going: set[str]) -> Iterator[_Step]:
    """Files of DVC's cache that no commit, no pointer and no remaining version names."""
    needed = [
        (version.model, version.identity.get("data_md5"), _hashes(version, project))
        for model in registry.models(project)
        for version in registry.versions(model, project)
        if version.name not in going
    ]
    for path in unused_files(project, needed):
        size = path.stat().st_size
        name = path.relative_to(project.root).as_posix() if path.is_relative_to(project.root) else str(path)
        yield _Step(Removed("DVC cache", name, size), partial(path.unlink, missing_ok=True))


def _hashes(version: Version, project: Project) -> list[str]:
    try:
        found = registry.source_of(version, project, bento_sources(version, project))
    except RegistryError:  # its run was deleted; DVC's lists of files may still say which the version had
        return []
    return list(found.data["files"].values()) if found else []


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_all(folders: list[Path]) -> None:
    for folder in folders:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Renames first: a folder that is in place is complete, also if this process is killed."""
    if folder.is_dir():
        beside = folder.with_name(f".{folder.name}.gone")
        shutil.rmtree(beside, ignore_errors=True)
        folder.rename(beside)
        shutil.rmtree(beside)
