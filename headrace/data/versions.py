"""Data versions by DVC: `data.dvc` tracks all of `data/`; the hash of `data/<recipe>` is that recipe's version."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.data.dvc_files import drop_torn_table, keep_whole
from headrace.data.tables import batch_files, no_data
from headrace.errors import Busy, DataError, DiskFull
from headrace.files import is_disk_full, write_text
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.repo import Repo

T = TypeVar("T")
LOCK_WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""DVC itself tries for 3 seconds each time; together about half a minute."""


@dataclass(frozen=True)
class Batch:
    """One Parquet file of a version."""

    name: str
    rows: int


@dataclass(frozen=True)
class DataVersion:
    """What a recipe's data is at one moment; `md5` is the hash that `dvc.lock` gives for `data/<recipe>`."""

    recipe: str
    md5: str
    rows: int
    batches: tuple[Batch, ...]

    def __str__(self) -> str:
        batches = "1 batch" if len(self.batches) == 1 else f"{len(self.batches)} batches"
        return f"{self.rows:,} rows in {batches}, version {self.md5[:12]}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def open_repo(project: Project) -> Iterator[Repo]:
    """The project's DVC repository, in this process; made where there is none, and without git where git is not.

    Raises:
        DiskFull: no space is left.
        DataError: DVC cannot open it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCM, SCMError

    if not (project.root / ".dvc").is_dir():
        _make_dvc_folder(project)
    # DVC reports through loggers and bars of its own; the steps' lines come from our callers.
    logger = logging.getLogger("dvc")
    level = logger.level
    try:
        SCM(str(project.root), search_parent_directories=True)
        config: dict[str, Any] = {}
    except SCMError:
        config = {"core": {"no_scm": True}}
    try:
        repo = Repo(str(project.root), config=config)
    except DvcException as error:
        raise DataError(
            f"DVC cannot open the project: {error}",
            where=str(project.root / ".dvc"),
            hint="restore .dvc/config (git checkout .dvc/config)",
        ) from None
    try:
        logger.setLevel(logging.CRITICAL)
        repo.scm_context.quiet = True
        keep_whole(repo, project)
        drop_torn_table(repo)
        yield repo
    finally:
        logger.setLevel(level)
        repo.close()


def track(project: Project) -> str:
    """Records `data/` as it is now in `data.dvc` and in DVC's cache (`dvc add data`); quick when nothing changed.

    Returns the md5 of all of `data/`.

    Raises:
        Busy: another DVC process holds the lock for too long.
        DiskFull: no space is left; `data.dvc` names the version before.
    """
    with open_repo(project) as repo:
        _restore_absent(repo, project)
        if (md5 := _tracked_md5(repo, project)) and md5 == _hash_of(repo, project.data) and _is_cached(repo, project):
            return md5
        _add(repo, project)
        return _tracked_md5(repo, project) or ""


def is_tracked(project: Project) -> bool:
    """Whether `data.dvc` names `data/` as it lies there now; not so after a run that was killed half-way."""
    with open_repo(project) as repo:
        return _tracked_md5(repo, project) == _hash_of(repo, project.data) and _is_cached(repo, project)


def data_version(project: Project, recipe_name: str) -> DataVersion:
    """The version of `data/<recipe>` as it lies there now; hashes come from DVC's own record when files are unchanged.

    Raises:
        DataError: there is no data yet.
    """
    import pyarrow.parquet as pq

    files = batch_files(project, recipe_name)
    if not files:
        raise no_data(recipe_name, project)
    with open_repo(project) as repo:
        md5 = _hash_of(repo, project.raw(recipe_name))
    batches = tuple(Batch(path.name, pq.read_metadata(path).num_rows) for path in files)
    return DataVersion(recipe_name, md5, sum(batch.rows for batch in batches), batches)


def restore(project: Project, recipe_name: str) -> bool:
    """Brings a missing `data/<recipe>` back as `data.dvc` names it, from DVC's cache or a remote; False where it cannot."""
    with open_repo(project) as repo:
        return _checkout(repo, project, recipe_name)


def patient(call: Callable[[], T], project: Project) -> T:
    """Runs a DVC operation, waiting while another process holds DVC's lock.

    Raises:
        Busy: the lock was still held at the end.
        DiskFull: no space is left.
        DataError: whatever else DVC says.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    for wait in (*LOCK_WAITS_SECONDS, None):
        try:
            return call()
        except LockError:
            if wait is None:
                break
            time.sleep(wait)
        except Exception as error:
            if is_disk_full(error):
                raise _cache_full(project) from None
            if isinstance(error, DvcException):
                raise DataError(
                    f"DVC: {error}", where=str(project.data), hint="dvc status, then run the same command"
                ) from error
            raise
    raise Busy(
        "another DVC process holds the lock of this project",
        where=str(project.root / ".dvc" / "tmp" / "lock"),
        hint="wait until it ends, then run the same command",
    )


def _make_dvc_folder(project: Project) -> None:
    write_text(project.root / ".dvc" / ".gitignore", "/config.local\n/tmp\n/cache\n")
    write_text(project.root / ".dvc" / "config", "[core]\n    analytics = false\n")


def _hash_of(repo: Repo, folder: os.PathLike[str]) -> str:
    """The md5 that DVC gives for a folder, as in `dvc.lock`; nothing is stored."""
    from dvc_data.hashfile.build import build

    _, _, found = build(repo.cache.local, str(folder), repo.fs, "md5", dry_run=True, ignore=repo.dvcignore)
    return str(found.hash_info.value)


def _tracked_md5(repo: Repo, project: Project) -> str | None:
    out = _out(repo, project)
    return str(out.hash_info.value) if out is not None and out.hash_info else None


def _out(repo: Repo, project: Project) -> Any:
    from dvc.exceptions import DvcException

    if not (project.root / "data.dvc").is_file():
        return None
    try:
        return repo.stage.load_one(str(project.root / "data.dvc")).outs[0]
    except (DvcException, IndexError) as error:
        raise DataError(
            f"data.dvc cannot be read: {error}",
            where=str(project.root / "data.dvc"),
            hint="restore it (git checkout data.dvc), then run the same command",
        ) from None


def _is_cached(repo: Repo, project: Project) -> bool:
    """Whether the cache holds every file of the tracked version."""
    out = _out(repo, project)
    tree = out.get_obj() if out is not None else None
    return tree is not None and all(repo.cache.local.exists(entry.value) for _, _, entry in tree)


def _add(repo: Repo, project: Project) -> None:
    """`dvc add data`, all or nothing: DVC itself logs a file that it could not copy into its cache, and goes on.

    Raises:
        DiskFull, DataError: a file did not get into the cache; `data.dvc` is as it was.
        Busy: as `patient`.
    """
    pointer = project.root / "data.dvc"
    before = pointer.read_bytes() if pointer.is_file() else None
    try:
        with listening() as failures:
            patient(lambda: repo.add(str(project.data)), project)
        if _is_cached(repo, project):
            return
        if any(is_disk_full(failure) for failure in failures):
            raise _cache_full(project)
        said = "; ".join(str(failure) for failure in failures) or "a file did not get into the cache"
        raise DataError(
            f"DVC: {said}", where=str(project.root / ".dvc" / "cache"), hint="dvc status, then run the same command"
        )
    except BaseException:
        if before is None:
            pointer.unlink(missing_ok=True)
        elif pointer.read_bytes() != before:
            with pointer.open("r+b") as file:  # in place: on a full disk there is no room for a second file
                file.write(before)
                file.truncate()
        raise


@contextmanager
def listening() -> Iterator[list[BaseException]]:
    """The errors that DVC's data layer only logs."""
    failures: list[BaseException] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info and record.exc_info[1]:
                failures.append(record.exc_info[1])

    logger = logging.getLogger("dvc_data")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [Ear()], False  # who listens tells it, once and with the hint
    try:
        yield failures
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _cache_full(project: Project) -> DiskFull:
    return DiskFull(
        "no space left for DVC's cache",
        where=str(project.root / ".dvc" / "cache"),
        hint="free some space (dvc gc --workspace drops old versions), then run the same command",
    )


def _restore_absent(repo: Repo, project: Project) -> None:
    """Folders of other recipes that are tracked but absent come back first: adding `data/` without them would drop them."""
    for recipe in sorted(path.stem for path in project.recipes.glob("*.yaml")):
        if not project.raw(recipe).is_dir():
            _checkout(repo, project, recipe)
    project.data.mkdir(exist_ok=True)


def _checkout(repo: Repo, project: Project, recipe_name: str) -> bool:
    from dvc.exceptions import DvcException

    out = _out(repo, project)
    if out is None:
        return False
    # `Repo.checkout` and `Repo.fetch` look for targets from the working folder; an output knows its own place.
    target = str(project.raw(recipe_name))
    try:
        if repo.config["core"].get("remote"):
            for odb, wanted in out.get_used_objs(filter_info=target).items():
                repo.cloud.pull(wanted, odb=odb)
        tree = out.get_obj()
        if tree is None or not any(key[0] == recipe_name for key, *_ in tree):
            return False
        with repo.lock:
            out.checkout(force=True, filter_info=target)
    except (DvcException, FileNotFoundError):
        return False  # not in the cache: the caller fetches from the source again
    return bool(batch_files(project, recipe_name))
