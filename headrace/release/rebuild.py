"""Makes the package of a version again, with the bytes of the journal: from MLflow, its bento, or by training it again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace.console import Report
from headrace.errors import NotReproduced, RegistryError, UsageError, near_miss
from headrace.files import write_with
from headrace.project import Project
from headrace.release import history, journal, lookup
from headrace.release.deploy import is_packaged, package_again, require_released_bytes
from headrace.release.extract import bento_sources
from headrace.release.history import PACKAGE
from headrace.release.journal import Entry
from headrace.release.lock import release_lock
from headrace.release.reproduce import trained_again
from headrace.serving.access import audit
from headrace.tracking import artifact, registry
from headrace.tracking.artifact import content_hash, file_hashes, served_parts
from headrace.tracking.registry import Version
from headrace.tracking.version_identity import IDENTITY


class Rebuilt(BaseModel):
    """A version whose package exists again."""

    model_config = ConfigDict(frozen=True)
    version: str
    """For example `digits@3`."""
    source: str
    """Where its files came from."""
    content_sha256: str
    bento: str
    image: str | None
    changed: bool
    """Whether anything was missing."""
    notes: list[str]
    """What was found missing or damaged, and what was put back."""


def rebuild(reference: str, project: Project, report: Report) -> Rebuilt:
    """Makes the bento of `reference` (for example `digits@3`), and its image, where they are gone from this machine. What
    exists is not overwritten.

    Raises:
        UsageError: the version never served, or what it was made from is gone.
        RegistryError: what is left of it has other bytes than the journal says.
        NotReproduced: trained again, it has other bytes.
        Busy: a release of the model is running.
    """
    model, _, wanted = reference.partition("@")
    with release_lock(model, project):
        released = _entry(model, wanted.removeprefix("v"), project)
        placed = project.using(project.settings.model_copy(update={"runner": released.facts["runner"]}))
        content = str(released.facts["content_sha256"])
        version, notes = _known(released, project)
        with _files(version, released, placed, report, notes) as (source, folder):
            was_packaged = is_packaged(released, placed)
            if was_packaged:
                require_released_bytes(released, placed)
                facts = {name: released.facts.get(name) for name in PACKAGE}
            else:
                facts = package_again(replace(version, folder=folder), released, placed, report)
                _record(released, facts, source, project)
            put_back = _put_back(version, folder, project)
    if put_back:
        notes.append(put_back)
        report(put_back)
    return Rebuilt(
        version=version.name,
        source=source,
        content_sha256=content,
        bento=str(facts["bento"]),
        image=facts.get("image"),
        changed=bool(put_back) or not was_packaged,
        notes=notes,
    )


def _entry(model: str, wanted: str, project: Project) -> Entry:
    """The journal's newest entry that put the version into production.

    Raises:
        UsageError: there is none, or it has no hash.
    """
    entries = journal.entries(project, model)
    served = history.served(entries)
    now = history.in_force(entries)
    if now is None:
        known = history.production(journal.entries(project))
        raise UsageError(f"{model!r} was never released; {near_miss(model, known)}", hint="headrace history lists the releases")
    number = now.version if wanted in ("", registry.CHAMPION) else wanted
    if number not in served:
        raise UsageError(f"{model}@{number} never served; {near_miss(number, served)}", hint=f"headrace history {model}")
    if not served[number].facts.get("content_sha256"):
        hint = f"headrace reproduce {model}@{number} trains it again"
        raise UsageError("the journal's entry is of an older Headrace and has no hash", where=f"{model}@{number}", hint=hint)
    return served[number]


def _known(released: Entry, project: Project) -> tuple[Version, list[str]]:
    """The version by MLflow's tags, or else by the journal's facts, whether its files exist or not; and what is gone."""
    model, number = released.model, released.version
    name = f"{model}@{number}"
    found = next((version for version in registry.versions(model, project) if version.version == number), None)
    if found is not None and found.run_id == released.facts.get("run_id"):
        return found, []
    if (kept := lookup.from_bento(released, project)) is not None:
        return kept, [f"{name} was deleted from MLflow"]
    tags = {registry.PREFIX + fact: str(released.facts[fact]) for fact in IDENTITY if fact in released.facts}
    gone = project.state / "reproductions" / f"{model}-{number}"  # a folder that does not exist
    return Version(model, number, str(released.facts.get("run_id")), gone, tags), [f"{name} was deleted from MLflow"]


@contextmanager
def _files(version: Version, released: Entry, project: Project, report: Report, notes: list[str]) -> Iterator[tuple[str, Path]]:
    """Gives where the files come from, and a folder with them, which have the hash of the journal.

    Raises:
        RegistryError: MLflow or the bento has them with other bytes, and nothing has the right ones.
        NotReproduced: trained again, they have other bytes.
    """
    content = str(released.facts["content_sha256"])
    damaged: list[RegistryError] = []
    for source, folder in _places(version, released, project):
        if folder is None or not served_parts(folder):
            note = f"{source} has no files of {version.name}"
        elif content_hash(folder) == content:
            report(f"files from {source}")
            yield source, folder
            return
        else:
            hint = f"move {folder} away, so that headrace rebuild {version.name} takes the next source"
            damaged.append(
                artifact.model_changed(version.name, folder, content, hint, released.facts.get("files")),
            )
            note = f"{source}: {damaged[-1].message}"
        notes.append(note)
        report(note)
    report("training it again, from its own code, data and recipe")
    try:
        with trained_again(_trainable(version, project), project, report) as (again, code):
            folder = again.artifacts(version.model) / "export"
            _require_same(version.name, folder, released, code)
            yield f"training again, with the code of {code}", folder
    except UsageError as error:
        if damaged:  # what is left is the better news
            raise damaged[0] from error
        raise


def _places(version: Version, released: Entry, project: Project) -> Iterator[tuple[str, Path | None]]:
    """Where the files of a version may be."""
    found: Path | None = None
    try:
        registered = registry.find_version(version.model, version.version, project)
        found = registered.folder if registered is not None and registered.run_id == version.run_id else None
    except RegistryError:  # they are gone
        pass
    yield "MLflow", found
    kept = lookup.from_bento(released, project)
    yield f"the bento {released.facts.get('bento')}", None if kept is None else kept.folder


def _trainable(version: Version, project: Project) -> Version:
    """The version without its copy of uncommitted code, where that is gone and a commit has all of it."""
    try:
        registry.source_of(version, project, bento_sources(version, project))
    except RegistryError:
        if version.identity.get("git_commit", "none").endswith(("-dirty", "none")):
            raise
        tags = {name: value for name, value in version.tags.items() if name != f"{registry.PREFIX}source"}
        return replace(version, tags=tags)
    return version


def _require_same(name: str, folder: Path, released: Entry, code: str) -> None:
    """
    Raises:
        NotReproduced: the files differ from those that were released; the message names each.
    """
    then, now = str(released.facts["content_sha256"]), content_hash(folder)
    if then == now:
        return
    before, after = released.facts.get("files") or {}, file_hashes(folder)
    differing = [
        f"{file} (sha256 {before.get(file, 'none')[:12]}, now {after.get(file, 'none')[:12]})"
        for file in sorted({*before, *after})
        if before.get(file) != after.get(file)
    ]
    raise NotReproduced(
        f"{name} trained again differs from what was released: sha256 {then[:12]}…, now {now[:12]}…; "
        f"{', '.join(differing) or 'the journal does not say which files'}; nothing was written",
        where=code,
        hint="train on the same kind of device as then, or restore the files from a backup: headrace restore",
    )


def _record(released: Entry, facts: dict[str, Any], source: str, project: Project) -> None:
    """Writes to the journal where the package is, so that a rollback finds it."""
    package = {name: facts.get(name) for name in PACKAGE}
    known = {"run_id": released.facts.get("run_id"), "content_sha256": released.facts["content_sha256"], "source": source}
    journal.record(project, "rebuilt", released.model, released.version, {**known, **package})
    audit.record(project, "rebuild", {"model": released.model, "version": released.version, "source": source, **package})


def _put_back(version: Version, folder: Path, project: Project) -> str | None:
    """Puts the files back where MLflow had them, if they are gone from there, and says so."""
    registered = next((one for one in registry.versions(version.model, project) if one.version == version.version), None)
    if registered is None or registered.run_id != version.run_id or served_parts(registered.folder):
        return None
    for path in served_parts(folder):
        write_with(registered.folder / path.name, lambda beside, path=path: shutil.copyfile(path, beside))  # type: ignore[misc]
    return f"the files are in MLflow again: {registered.folder}"
