"""The version that a backfill scores with: its files, checked against the journal, copied, and its code."""

from __future__ import annotations

import shutil
from pathlib import Path

from headrace.backfill.plan import Work
from headrace.errors import HeadraceError, RegistryError, UsageError, near_miss
from headrace.files import write_json
from headrace.project import Project
from headrace.release import history, journal, lookup
from headrace.release.journal import Entry
from headrace.serving.packaging import find_bento
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash, model_changed, served_parts
from headrace.tracking.registry import Version


def find_version(model: str, wanted: str | None, project: Project) -> Version:
    """Returns the version `wanted` (a number or an alias) of a model; by default the one in production.

    Raises:
        UsageError: it does not exist, or none is in production.
        RegistryError: its files are gone, or are not those that the journal has.
    """
    name = (wanted or "").removeprefix(f"{model}@")
    if not name:
        now = history.in_force(journal.entries(project, model))
        if now is None:
            known = history.production(journal.entries(project))
            if model in known or not registry.versions(model, project):
                raise UsageError(f"{model!r} was never released; {near_miss(model, known)}", hint="headrace history")
            hint = f"name one: headrace backfill {model} --version VERSION …; headrace history {model} lists them"
            raise UsageError(f"no version of {model!r} is in production", where="--version", hint=hint)
        name = now.version
    version = lookup.find(f"{model}@{name}", project).version
    require_recorded(version, project)
    return version


def require_recorded(version: Version, project: Project) -> None:
    """Compares the files of a version with the journal's hash; with MLflow's tag where the journal has none.

    Raises:
        RegistryError: they differ.
    """
    entry = recorded(version, project)
    content = entry.facts["content_sha256"] if entry else version.tags.get(registry.CONTENT)
    if content is not None and content_hash(version.folder) != content:
        hint = f"headrace rebuild {version.name} makes them again"
        raise model_changed(version.name, version.folder, content, hint, entry.facts.get("files") if entry else None)


def recorded(version: Version, project: Project) -> Entry | None:
    """The journal's newest entry of a version that has the hash of its files."""
    entries = journal.entries(project, version.model)
    return next(
        (e for e in reversed(entries) if e.version == version.version and e.facts.get("content_sha256")),
        None,
    )


def copy_files(version: Version, work: Work) -> str:
    """Copies the version's files into the folder of the backfill, where nothing removes them; returns their content hash."""
    beside = work.root / ".model"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for path in served_parts(version.folder):
        shutil.copyfile(path, beside / path.name)
    write_json(beside / "identity.json", {**version.identity, "model": version.model, "version": version.version})
    shutil.rmtree(work.model, ignore_errors=True)
    beside.replace(work.model)
    return content_hash(work.model)


def code_of(model: str, version: str, project: Project) -> Path | None:
    """The folder of the code in the version's bento; None if it was not packaged, or its bento is gone."""
    entry = history.served(journal.entries(project, model)).get(version)
    try:
        return find_bento(project, str(entry.facts["bento"])).path / "src" if entry else None
    except (HeadraceError, KeyError):
        return None


def require_copied(content_sha256: str, name: str, work: Work) -> None:
    """
    Raises:
        RegistryError: the copied files are not those with which the backfill began.
    """
    if content_hash(work.model) != content_sha256:
        raise RegistryError("the copied files have changed", where=name, hint="start again: add --restart")
