"""Scores past data with a version, in three steps that each can be repeated: prepare, score the chunks, join the parts."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.backfill import joining, sources, versions
from headrace.backfill.answering import group_rows
from headrace.backfill.loading import load_model
from headrace.backfill.plan import Chunk, Manifest, Plan, SourceFile, Work
from headrace.backfill.pool import Pool
from headrace.backfill.scorer import header_of, open_file
from headrace.console import Report
from headrace.data.sources.addresses import is_local, local_file, redacted
from headrace.errors import Busy, DataError, UsageError
from headrace.files import read_json, write_json
from headrace.project import Project
from headrace.recipe.read import ReadConfig
from headrace.release.lock import held_lock
from headrace.runtime.contract import Contract
from headrace.scoring.endings import ENDINGS, check_ending
from headrace.scoring.refusals import Refusals
from headrace.scoring.rows import BadFile, RowsFile, as_data_error
from headrace.scoring.unseen import UnseenCounts
from headrace.serving.access import audit
from headrace.tracking.artifact import content_hash
from headrace.tracking.registry import Version

CHUNK_SECONDS = 5.0
"""About how long a chunk takes: what a kill costs each process."""
MAX_CHUNK_ROWS = 50_000
RESTART = "start again: add --restart to the same command"


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    model: str
    data: str
    """A path (relative to the project), a pattern, a folder, an address, or a database."""
    out: Path
    """A file, or with a `/` at the end of its name as it was given a folder (`is_folder`)."""
    is_folder: bool = False
    version: str | None = None
    query: str | None = None
    table: str | None = None
    answers_only: bool = False
    chunk_rows: int | None = None
    restart: bool = False

    @property
    def read(self) -> ReadConfig | None:
        return ReadConfig(query=self.query, table=self.table) if self.query or self.table else None

    @property
    def selection(self) -> str | None:
        return self.query or self.table


def workers_by_default() -> int:
    """As many as there are processors for this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def backfill_lock(out: Path, project: Project) -> Iterator[None]:
    """Holds the right to write `out`.

    Raises:
        Busy: another backfill writes it.
    """

    def busy(holder: dict[str, Any]) -> Busy:
        return Busy(
            f"another backfill writes it: process {holder.get('pid', '?')}, since {holder.get('since', '?')}",
            where=str(out),
            hint="wait until it is done, or use another name",
        )

    digest = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with held_lock(project.locks / f"backfill-{digest}.lock", busy):
        yield


def prepare(request: Request, project: Project, report: Report) -> Plan:
    """Returns the plan: a new one, or that of the same backfill, which then continues. Its folder is beside the result.

    Raises:
        UsageError: the result exists, or is that of another backfill; the version does not exist.
        DataError: the data cannot be read, or has changed since.
        RegistryError: the version's files are not those of the journal.
    """
    work = Work(request.out)
    if request.restart:
        shutil.rmtree(work.root, ignore_errors=True)
    if (found := work.read_plan()) is None and not request.restart and (done := _completed(work)) is not None:
        found = done
    if found is None and request.out.exists() and not request.restart:
        hint = "use another name; or replace it: add --restart"
        raise UsageError("the result exists, and no backfill has made it", where=str(request.out), hint=hint)
    if found is not None:
        _require_same(found, request, project, report)
        return found
    version = versions.find_version(request.model, request.version, project)
    return _planned(request, version, work, project, report)


def score(plan: Plan, workers: int, project: Project, progress: Callable[[Chunk], None], report: Report) -> None:
    """Scores the chunks that are not done.

    Args:
        progress: called with each chunk that is done, at first with those of earlier runs.

    Raises:
        DataError: a file is gone or has changed.
        HeadraceError: a chunk cannot be scored.
    """
    work = Work(Path(plan.out))
    if read_record(work) is not None and not work.root.exists():
        return
    versions.require_copied(plan.content_sha256, plan.name, work)
    work.remove_leftovers()
    missing = []
    for chunk in plan.chunks():
        if work.manifest(chunk.index, plan.ending) is None:
            missing.append(chunk)
        else:
            progress(chunk)
    if not missing:
        return

    def done(chunk: Chunk) -> None:
        sources.require_unchanged(plan.files[chunk.file])
        progress(chunk)

    for number in sorted({chunk.file for chunk in missing}):
        sources.require_unchanged(plan.files[number])
    Pool(plan, workers, versions.code_of(plan.model, plan.version, project), done, report).score(missing)


def finish(plan: Plan, project: Project) -> dict[str, Any]:
    """Joins the parts, and returns the record of the backfill, which is written beside the result and to the audit log.

    Raises:
        DataError: a part has changed; the same command scores it again.
        DiskFull: no space is left.
    """
    work = Work(Path(plan.out))
    record = read_record(work)
    if record is None:
        manifests = [manifest for chunk in plan.chunks() if (manifest := work.manifest(chunk.index, plan.ending)) is not None]
        if len(manifests) != len(list(plan.chunks())):
            raise DataError("parts are missing", where=str(work.parts), hint="the same command scores their rows again")
        record = _record(plan, manifests, joining.join(plan, work, manifests))
        write_json(work.record, record)
        facts = {name: record[name] for name in ("model", "version", "data", "out", "rows", "refused", "sha256")}
        audit.record(project, "backfill", facts)
    shutil.rmtree(work.root, ignore_errors=True)
    return record


def read_record(work: Work) -> dict[str, Any] | None:
    """The record of a backfill that is complete.

    Raises:
        DamagedFile: it cannot be read.
    """
    found: dict[str, Any] | None = read_json(work.record, RESTART)
    return found


def _completed(work: Work) -> Plan | None:
    """The plan of a backfill that is complete, if its result is there."""
    record = read_record(work)
    return Plan.model_validate(record["plan"]) if record is not None and work.out.exists() else None


def _record(plan: Plan, manifests: list[Manifest], sha256: str) -> dict[str, Any]:
    refusals, unseen = Refusals(), UnseenCounts()
    for manifest in manifests:
        refusals.merge(manifest.refusals)
        unseen.merge(manifest.warnings)
    return {
        "model": plan.model,
        "version": plan.version,
        "run_id": plan.run_id,
        "content_sha256": plan.content_sha256,
        "data": plan.data,
        "data_sha256": plan.data_sha256,
        "out": plan.out,
        "sha256": sha256,
        "rows": plan.rows,
        "answered": plan.rows - refusals.count,
        "refused": refusals.count,
        "refusals": refusals.to_list(),
        "warnings": unseen.to_dict(),
        "started": plan.started,
        "ended": _now(),
        "plan": plan.model_dump(mode="json"),
    }


def _require_same(plan: Plan, request: Request, project: Project, report: Report) -> None:
    """Checks that a request is the one with which a backfill began.

    Raises:
        UsageError: it is another one.
        DataError: a file has changed or is gone.
    """
    version = versions.find_version(request.model, request.version, project)
    wanted = {
        "version": (plan.name, version.name),
        "content of the version": (plan.content_sha256[:12], content_hash(version.folder)[:12]),
        "data": (plan.data, redacted(request.data)),
        "query": (plan.selection or "none", request.selection or "none"),
        "--answers-only": (str(plan.answers_only), str(request.answers_only)),
        "project": (plan.project, str(project.root)),
        "form": tuple("a folder" if one else "a file" for one in (plan.is_folder, request.is_folder)),
    }
    for what, (before, now) in wanted.items():
        if before != now:
            raise UsageError(
                f"another backfill writes it: its {what} is {before}, and here {now}",
                where=str(request.out),
                hint=f"run the command with which it began, or use another name; or {RESTART}",
            )
    if not is_local(request.data) or request.read is not None:
        return  # its copy is in the folder of the backfill
    files = [str(path) for path in sources.find_files(request.data, None, Work(request.out).source, project, report)]
    if files != [file.path for file in plan.files]:
        others = sorted({*files} ^ {file.path for file in plan.files})
        raise DataError(
            f"the files of the data are not those with which the backfill began: {', '.join(others[:3])}",
            where=plan.data,
            hint=f"restore them, and run the same command; or {RESTART}",
        )
    for file in plan.files:
        sources.require_unchanged(file)


def _planned(request: Request, version: Version, work: Work, project: Project, report: Report) -> Plan:
    """Writes the plan of a new backfill, last of all."""
    content = versions.copy_files(version, work)
    contract = Contract.read(work.model / "contract.json")
    paths = sources.find_files(request.data, request.read, work.source, project, report)
    partitions = sources.partitions_of(paths, request.data, project)
    files = [sources.fingerprint(path, found) for path, found in zip(paths, partitions, strict=True)]
    first, counted = _counted(files, contract, request, report)
    group = group_rows(contract)
    plan = Plan(
        model=version.model,
        version=version.version,
        run_id=version.run_id,
        content_sha256=content,
        data=redacted(request.data),
        selection=request.selection,
        out=str(request.out),
        is_folder=request.is_folder,
        ending=ENDINGS[first.media_type][0],
        answers_only=request.answers_only,
        chunk_rows=_chunk_rows(request, version, work, group, project),
        group_rows=group,
        files=counted,
        project=str(project.root),
        started=_now(),
    )
    if plan.rows == 0:
        raise DataError("the data has no rows", where=plan.data, hint="add rows below the header")
    work.record.unlink(missing_ok=True)  # of an earlier result, which the new one replaces
    work.write_plan(plan)
    return plan


def _counted(
    files: list[SourceFile], contract: Contract, request: Request, report: Report
) -> tuple[RowsFile, list[SourceFile]]:
    """Opens and counts all files; returns the first one, and all with their rows.

    Raises:
        DataError: one cannot be read, or its columns are not those of the model, or of the first one.
        UsageError: the name of the result does not suit their format.
    """
    first: RowsFile | None = None
    found = []
    for file in files:
        path = Path(file.path)
        try:
            opened = open_file(file, contract, "ignore" if request.answers_only else "keep")
            if not request.is_folder:
                check_ending(opened, path, request.out, "--out")
            found.append(file.model_copy(update={"rows": opened.count()}))
            header = _columns(opened)
        except BadFile as error:
            raise as_data_error(error, path) from None
        if first is None:
            first, expected = opened, header
            for note in opened.notes:
                report(f"{path.name}: {note}")
        elif (opened.media_type, header) != (first.media_type, expected):
            raise DataError(
                f"its columns are not those of {Path(files[0].path).name}",
                where=str(path),
                hint="one result needs the same columns in all files; score files with other columns separately",
            )
    if first is None:
        raise DataError("the file does not exist", where=request.data, hint="correct --data")
    return first, found


def _columns(file: RowsFile) -> Any:
    """What the result has of a file's columns."""
    schema = getattr(file, "schema", None)
    return schema.remove_metadata() if schema is not None else header_of(file)


def _chunk_rows(request: Request, version: Version, work: Work, group: int, project: Project) -> int:
    """Rows of a chunk: a multiple of `group`, so that the groups of rows that run together do not depend on it."""
    if request.chunk_rows is not None:
        wanted = request.chunk_rows
    else:
        code = versions.code_of(version.model, version.version, project)
        seconds = load_model(work.model, project.root, code).sample_seconds
        wanted = min(int(CHUNK_SECONDS / max(seconds, 1e-6)), MAX_CHUNK_ROWS)
    return max(1, wanted // group) * group


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def local_address(data: str, folder: Path) -> str:
    """Returns the address with a local path made absolute, as seen from `folder`."""
    if not is_local(data):
        return data
    return str(local_file(data, folder))
