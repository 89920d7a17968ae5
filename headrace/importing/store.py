"""Keeps an imported model in `data/<recipe>/model/`, with the record of where it came from: its data version is their hash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headrace.console import Report
from headrace.data.commit import exclusive
from headrace.data.versions import DataVersion, data_version, restore, track
from headrace.errors import DiskFull
from headrace.files import is_disk_full, sync_folder, write_json
from headrace.importing.addresses import local_path, shown_source
from headrace.importing.errors import ImportRefused
from headrace.importing.kept import Kept, kept_model
from headrace.importing.source import Fetched, changed, fetch_base, fetch_model, hash_of
from headrace.project import MODEL_RECORD, Project
from headrace.recipe.models import ImportedConfig, PretrainedConfig
from headrace.settings import Settings

Source = ImportedConfig | PretrainedConfig
"""Settings that name a model elsewhere."""


def bring_model(name: str, config: Source, project: Project, report: Report) -> DataVersion:
    """Brings the model of the recipe `name` into `data/<name>/model/`, unless it is there. A source on this machine is compared
    with what is kept each time; another one is fetched again only if the recipe asks for other bytes.

    Raises:
        SourceError: it cannot be fetched, or its bytes are not those that were imported.
        ImportRefused: its licence is refused, or it is in no supported format.
        DiskFull, Busy: nothing has changed.
    """
    with exclusive(project, f"data-{name}"):
        if kept_model(name, project) is None and restore(project, name):
            report(f"data/{name} was restored from DVC's cache")
        kept = kept_model(name, project)
        if kept is not None and _is_current(kept, config, project):
            require_licence(config.licence or kept.record.get("licence"), project.settings)
            with exclusive(project, "data"):
                track(project)
            report(f"{shown_source(config.source)}: {_described(kept.record, config)}, unchanged")
            return data_version(project, name)
        report(f"source {shown_source(config.source)}")
        with fetched_model(name, config, project, report) as found:
            keep_model(name, config, found, project)
        kept = kept_model(name, project)
        assert kept is not None
        report(f"data/{name}/model: {_described(kept.record, config)}")
        return data_version(project, name)


@contextmanager
def fetched_model(name: str, config: Source, project: Project, report: Report) -> Iterator[Fetched]:
    """Fetches a model into a folder that exists until the end of the block.

    Raises:
        SourceError, ImportRefused, DiskFull: as for `bring_model`.
    """
    folder = project.state / "incoming" / f"{name}-model"
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        folder.mkdir(parents=True)
        fetch = fetch_base if isinstance(config, PretrainedConfig) else fetch_model
        found = fetch(config.source, config.sha256, folder, project, report)
        require_licence(config.licence or found.licence, project.settings)
        yield found
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(
                "no space left for the model", where=str(folder), hint="free some space, then run the same command"
            ) from None
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def keep_model(name: str, config: Source, found: Fetched, project: Project) -> None:
    """Moves a fetched model to `data/<name>/model/` with its record, and tracks the new version.

    Raises:
        DiskFull, Busy: the model that was there before is there again.
    """
    record = {
        "source": config.source,
        "sha256": found.sha256,
        "files": list(found.files),
        "licence": found.licence,
        "revision": found.revision,
        "labels": found.labels,
    }
    write_json(found.file.parent / MODEL_RECORD, record)
    target = project.imported_model(name)
    before = found.file.parent.with_name(f"{name}-model-before")
    with exclusive(project, "data"):
        shutil.rmtree(before, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            target.rename(before)
        try:
            found.file.parent.rename(target)
            sync_folder(target.parent)
            track(project)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            if before.exists():
                before.rename(target)
            raise
        finally:
            shutil.rmtree(before, ignore_errors=True)


def require_licence(licence: str | None, settings: Settings) -> None:
    """Compares the licence of a model with the settings `licences_allowed` and `licences_refused`.

    Raises:
        ImportRefused: it is refused, or not among the allowed ones, or it is not known and some are not allowed.
    """
    known = (licence or "").casefold()
    if known and known in {one.casefold() for one in settings.licences_refused}:
        raise ImportRefused(
            f"the model's licence is {licence}, which licences_refused names",
            where="headrace.toml: licences_refused",
            hint="use another model, or ask whoever decides about licences to change the setting",
        )
    if settings.licences_allowed and known not in {one.casefold() for one in settings.licences_allowed}:
        allowed = ", ".join(settings.licences_allowed)
        raise ImportRefused(
            f"the model's licence is {licence or 'not known'}, and licences_allowed names {allowed}",
            where="headrace.toml: licences_allowed",
            hint="use another model, or ask whoever decides about licences to change the setting"
            if licence
            else "if you know the licence: --licence NAME, or model.licence in the recipe",
        )


def _is_current(kept: Kept, config: Source, project: Project) -> bool:
    """Whether the kept model is the one that the recipe wants.

    Raises:
        SourceError: the source on this machine has other bytes than those that were imported.
    """
    record = kept.record
    if record["source"] != config.source or config.sha256 not in (None, record["sha256"]):
        return False
    path = local_path(config.source, project)
    if path is None or not path.is_file():  # gone since: the copy is what counts
        return True
    if any(not (path.parent / file).is_file() for file in record["files"][1:]):
        return True
    names = [path.name, *record["files"][1:]]
    have = hash_of(path.parent, names) if path.name == record["files"][0] else record["sha256"]
    if have != record["sha256"]:
        raise changed(shown_source(config.source), have, record["sha256"])
    return True


def _described(record: dict[str, Any], config: Source) -> str:
    licence = config.licence or record.get("licence")
    return f"sha256 {record['sha256'][:12]}" + (f", licence {licence}" if licence else "")
