"""Data versions in DVC: `data.dvc` tracks all of `data/`, and the hash of `data/<recipe>` is that recipe's version."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.data.dvc_files import remove_damaged_rwlock, repair_lock_file
from headrace.data.tables import batch_files, no_data
from headrace.errors import Busy, DataError, DiskFull
from headrace.files import is_disk_full, write_text
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.repo import Repo

T = TypeVar("T")
LOCK_WAITS_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""DVC itself waits for 3 seconds each time; together about half a minute."""


@dataclass(frozen=True)
class Batch:
    """A Parquet file of a version."""

    name: str
    rows: int


@dataclass(frozen=True)
class DataVersion:
    """The data of a recipe at one moment; `md5` is the hash of `data/<recipe>` in `dvc.lock`."""

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
    """Opens the project's DVC repository in this process. It is created if it does not exist, without Git outside of a Git repository.

    Raises:
        DiskFull: no space is left.
        DataError: DVC cannot open it.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCM, SCMError

    if not (project.root / ".dvc").is_dir():
        _make_dvc_folder(project)
    # DVC has its own log lines and progress bars; our callers report the steps.
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
        repair_lock_file(repo, project)
        remove_damaged_rwlock(repo)
        yield repo
    finally:
        logger.setLevel(level)
        repo.close()


def track(project: Project) -> str:
    """Records the current `data/` in `data.dvc` and in DVC's cache (`dvc add data`), and returns its md5. Quick when nothing
    has changed.

    Raises:
        Busy: another DVC process holds the lock for too long.
        DiskFull: no space is left; `data.dvc` is unchanged.
        DataError: DVC failed; `data.dvc` is unchanged.
    """
    with open_repo(project) as repo:
        _restore_absent(repo, project)
        if (md5 := _tracked_md5(repo, project)) and md5 == _hash_of(repo, project.data) and _is_cached(repo, project):
            return md5
        _add(repo, project)
        md5 = _tracked_md5(repo, project)
        assert md5 is not None  # `_add` raises when it could not track the data
        return md5


def is_tracked(project: Project) -> bool:
    """Returns whether `data.dvc` describes the current `data/`; it does not after a run that was killed."""
    with open_repo(project) as repo:
        return _tracked_md5(repo, project) == _hash_of(repo, project.data) and _is_cached(repo, project)


def data_version(project: Project, recipe_name: str) -> DataVersion:
    """Returns the version of the current `data/<recipe>`; DVC's records give the hashes of unchanged files.

    Raises:
        DataError: the recipe has no data yet.
    """
    import pyarrow.parquet as pq

    files = batch_files(project, recipe_name)
    if not files:
        raise no_data(recipe_name, project)
    with open_repo(project) as repo:
        md5 = _hash_of(repo, project.raw_data(recipe_name))
    batches = tuple(Batch(path.name, pq.read_metadata(path).num_rows) for path in files)
    return DataVersion(recipe_name, md5, sum(batch.rows for batch in batches), batches)


def restore(project: Project, recipe_name: str) -> bool:
    """Restores a missing `data/<recipe>` of the tracked version from DVC's cache or a remote; returns False if it cannot."""
    with open_repo(project) as repo:
        return _checkout(repo, project, recipe_name)


def retry_while_locked(call: Callable[[], T], project: Project) -> T:
    """Runs a DVC operation, and runs it again while another process holds DVC's lock. Other errors pass through.

    Raises:
        Busy: the lock was still held after all of `LOCK_WAITS_SECONDS`.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    for wait in (*LOCK_WAITS_SECONDS, None):
        try:
            return call()
        except DvcException as error:
            if not isinstance(error, LockError) and not isinstance(error.__cause__, LockError):
                raise
            if wait is not None:
                time.sleep(wait)
    raise Busy(
        "another DVC process holds the lock of this project",
        where=str(project.root / ".dvc" / "tmp" / "lock"),
        hint="wait until it ends, then run the same command",
    )


def _make_dvc_folder(project: Project) -> None:
    write_text(project.root / ".dvc" / ".gitignore", "/config.local\n/tmp\n/cache\n")
    write_text(project.root / ".dvc" / "config", "[core]\n    analytics = false\n")


def _hash_of(repo: Repo, folder: os.PathLike[str]) -> str:
    """Returns the md5 of a folder as in `dvc.lock`; nothing is stored."""
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
    """Returns whether the cache holds every file of the tracked version."""
    out = _out(repo, project)
    tree = out.get_obj() if out is not None else None
    return tree is not None and all(repo.cache.local.exists(entry.value) for _, _, entry in tree)


def _add(repo: Repo, project: Project) -> None:
    """Runs `dvc add data`, all or nothing: DVC itself only logs a file that it could not copy into its cache.

    Raises:
        DiskFull, DataError: a file is not in the cache; `data.dvc` is unchanged.
        Busy: as `retry_while_locked`.
    """
    from dvc.exceptions import DvcException

    pointer = project.root / "data.dvc"
    before = pointer.read_bytes() if pointer.is_file() else None
    try:
        with captured_errors() as failures:
            try:
                retry_while_locked(lambda: repo.add(str(project.data)), project)
            except DvcException as error:
                raise DataError(
                    f"DVC: {error}", where=str(project.data), hint="dvc status, then run the same command"
                ) from error
        if _is_cached(repo, project):
            return
        if any(is_disk_full(failure) for failure in failures):
            raise _cache_full(project)
        reason = "; ".join(str(failure) for failure in failures) or "a file is not in the cache"
        raise DataError(
            f"DVC: {reason}", where=str(project.root / ".dvc" / "cache"), hint="dvc status, then run the same command"
        )
    except BaseException as error:
        if before is None:
            pointer.unlink(missing_ok=True)
        elif pointer.read_bytes() != before:
            with pointer.open("r+b") as file:  # in place: a full disk has no space for a second file
                file.write(before)
                file.truncate()
        if isinstance(error, Exception) and not isinstance(error, DiskFull) and is_disk_full(error):
            raise _cache_full(project) from None
        raise


class ErrorCollector(logging.Handler):
    """Collects the exceptions of log records."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


@contextmanager
def captured_errors() -> Iterator[list[BaseException]]:
    """Captures the errors that DVC's data layer only logs: in dvc-data 3 `hashfile.transfer` logs the exception of a file that
    it could not copy, and `dvc add` raises at most an error without its cause
    (https://github.com/iterative/dvc-data/blob/main/src/dvc_data/hashfile/transfer.py)."""
    collector = ErrorCollector()
    logger = logging.getLogger("dvc_data")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collector], False  # the caller reports them once, with a hint
    try:
        yield collector.errors
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _cache_full(project: Project) -> DiskFull:
    return DiskFull(
        "no space left for DVC's cache",
        where=str(project.root / ".dvc" / "cache"),
        hint="free some space (dvc gc --workspace drops old versions), then run the same command",
    )


def _restore_absent(repo: Repo, project: Project) -> None:
    """Restores folders of other recipes that are tracked but missing: `dvc add data` without them would drop them."""
    for recipe in sorted(path.stem for path in project.recipes.glob("*.yaml")):
        if not project.raw_data(recipe).is_dir():
            _checkout(repo, project, recipe)
    project.data.mkdir(exist_ok=True)


def _checkout(repo: Repo, project: Project, recipe_name: str) -> bool:
    from dvc.exceptions import DvcException

    out = _out(repo, project)
    if out is None:
        return False
    # `Repo.checkout` and `Repo.fetch` resolve targets from the working folder; an output has an absolute path.
    target = str(project.raw_data(recipe_name))
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
        return False  # not in the cache: the caller fetches the source again
    return bool(batch_files(project, recipe_name))
