"""Finds versions also after they were deleted from MLflow: the journal and the bento still have what serves."""

from __future__ import annotations

import json
from dataclasses import dataclass

from headrace.errors import HeadraceError, RegistryError, UsageError, near_miss
from headrace.project import Project
from headrace.release import history, journal
from headrace.release.journal import Entry
from headrace.serving.packaging import find_bento
from headrace.tracking import registry, runs
from headrace.tracking.registry import Version


@dataclass(frozen=True)
class Found:
    """A version, and what of it is gone from MLflow, in sentences."""

    version: Version
    missing: tuple[str, ...] = ()


def find(reference: str, project: Project) -> Found:
    """The version that `digits@3`, `digits@champion` or plain `digits` names: from MLflow, or else from its bento.

    Raises:
        UsageError: the version does not exist, neither in MLflow nor in the journal.
        RegistryError: its files are gone, also from the bento.
    """
    try:
        version = registry.get(reference, project)
    except (UsageError, RegistryError) as error:
        entry = _entry(reference, project)
        if entry is not None and reference != (number := f"{entry.model}@{entry.version}"):
            return find(number, project)  # the alias is missing, or the version was named in another way
        kept = from_bento(entry, project) if entry is not None else None
        if kept is None:
            raise _unknown(reference, project) or error from None
        gone = "its files are gone from MLflow" if isinstance(error, RegistryError) else "it was deleted from MLflow"
        return Found(kept, (f"{gone}; this is what its bento has", *_missing_run(kept, project)))
    return Found(version, _missing_run(version, project))


def find_in_production(entry: Entry, project: Project) -> Found | None:
    """The version of an entry of `history.in_force`, from MLflow or from its bento; None when neither has it."""
    try:
        version = registry.find_version(entry.model, entry.version, project)
        gone = "it was deleted from MLflow"
    except RegistryError:
        version, gone = None, "its files are gone from MLflow"
    if version is not None:
        return Found(version)
    kept = from_bento(entry, project)
    return None if kept is None else Found(kept, (gone,))


def from_bento(entry: Entry, project: Project) -> Version | None:
    """The version as its bento keeps it; None when the bento is gone."""
    try:
        bento = find_bento(project, str(entry.facts.get("bento")))
        identity = {name: value for name, value in bento.identity.items() if name not in ("model", "version")}
    except (HeadraceError, OSError, json.JSONDecodeError):
        return None
    return Version(
        model=entry.model,
        version=entry.version,
        run_id=str(identity.get("run_id") or entry.facts.get("run_id")),
        folder=bento.model_path,
        tags={registry.PREFIX + name: value for name, value in identity.items()},
    )


def require_recorded_files(version: Version, entry: Entry) -> None:
    """Compares the files of a version with the journal's entry of it. Early entries have no hash.

    Raises:
        RegistryError: the files are not those that the journal has of this run.
    """
    facts = entry.facts
    if facts.get("run_id") == version.run_id and (content := facts.get("content_sha256")):
        registry.require_content(version, content, facts.get("files"))


def _entry(reference: str, project: Project) -> Entry | None:
    """The journal's newest entry that put the named version into production."""
    model, _, wanted = reference.partition("@")
    entries = journal.entries(project, model)
    if wanted in ("", registry.CHAMPION):
        return history.in_force(entries)
    return history.served(entries).get(wanted.removeprefix("v"))


def _unknown(reference: str, project: Project) -> UsageError | None:
    """The error for a version that the journal does not have either, where MLflow has none of the model any more."""
    model, _, wanted = reference.partition("@")
    served = history.served(journal.entries(project, model))
    if not served or wanted.removeprefix("v") in served or registry.versions(model, project):
        return None
    return UsageError(f"{model} has no version {wanted!r}; {near_miss(wanted, served)}", hint=f"headrace history {model}")


def _missing_run(version: Version, project: Project) -> tuple[str, ...]:
    if runs.exists(version.run_id, project):
        return ()
    return (f"run {version.run_id} was deleted from MLflow, with its curves and metrics",)
