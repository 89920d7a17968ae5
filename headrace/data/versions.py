"""Data versions in DVC: `data.dvc` tracks all of `data/`, and the hash of `data/<recipe>` is that recipe's version."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from headrace import console
from headrace.data.dvc_files import remove_damaged_rwlock, repair_lock_file
from headrace.data.pointer import NamedFile, listed_files, locked_files, named_files, out_of_reach, write_list
from headrace.data.tables import batch_files, no_data
from headrace.errors import Busy, DataError, DiskFull
from headrace.files import is_disk_full, write_text
from headrace.permissions import tracked_files, tracked_mode
from headrace.project import Project

if TYPE_CHECKING:
    from dvc.repo import Repo

T = TypeVar("T")
BLOCKED_BY = re.compile(r"\(PID (\d+)\): (.*)")
"""How DVC names a process that holds the lock of a file."""
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
        if not self.batches:
            return f"an imported model, version {self.md5[:12]}"
        batches = "1 batch" if len(self.batches) == 1 else f"{len(self.batches)} batches"
        return f"{self.rows:,} rows in {batches}, version {self.md5[:12]}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def open_repo(project: Project) -> Iterator[Repo]:
    """Opens the project's DVC repository in this process. It is created if it does not exist; outside of a Git repository,
    without Git.

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
        core: dict[str, Any] = {}
    except SCMError:
        core = {"no_scm": True}
    # By default DVC's records of files are in a folder of /var/tmp that every user of the machine can change.
    records = project.state / "dvc"
    (records / "repo").mkdir(parents=True, exist_ok=True)  # DVC would make them writable for all
    core["site_cache_dir"] = str(records)
    try:
        repo = Repo(str(project.root), config={"core": core})
    except DvcException as error:
        raise DataError(
            f"DVC cannot open the project: {error}",
            where=str(project.root / ".dvc"),
            hint="correct the file .dvc/config; git diff .dvc/config shows what changed since the last commit",
        ) from None
    try:
        logger.setLevel(logging.CRITICAL)
        repo.scm_context.quiet = True
        repair_lock_file(repo, project)
        remove_damaged_rwlock(repo)
        with tracked_files(project.root / name for name in ("data.dvc", "dvc.lock", ".gitignore")):
            yield repo
    finally:
        logger.setLevel(level)
        repo.close()


def track(project: Project) -> str:
    """Records the current `data/` in `data.dvc` and in DVC's cache (`dvc add data`), and returns its md5. Quick when nothing
    has changed. Folders that are not on this machine stay as `data.dvc` names them.

    Raises:
        Busy: another DVC process holds the lock for too long.
        DiskFull: no space is left; `data.dvc` is unchanged.
        DataError: DVC failed, or a file that `data.dvc` names can be had nowhere; `data.dvc` is unchanged.
    """
    with open_repo(project) as repo:
        _restore_absent(repo, project)
        named = named_files(repo, _out(repo, project), project)
        if named is None:
            _require_known_folders(repo, project, _present_folders(project))
        for folder in _present_folders(project):
            if missing := _lost(repo, project, named or [], folder):
                raise out_of_reach(folder, missing)
        if (md5 := _tracked_md5(repo, project)) and md5 == _current_md5(repo, project) and _is_cached(repo, project):
            if not listed_files(project, md5):  # of an older Headrace
                _write_list(repo, project)
            return md5
        _add(repo, project)
        md5 = _tracked_md5(repo, project)
        assert md5 is not None  # `_add` raises when it could not track the data
        return md5


def is_tracked(project: Project) -> bool:
    """Returns whether `data.dvc` describes the current `data/`; it does not after a run that was killed."""
    with open_repo(project) as repo:
        return _tracked_md5(repo, project) == _current_md5(repo, project) and _is_cached(repo, project)


def missing_files(project: Project, recipe_name: str) -> list[NamedFile]:
    """Returns the files of `data/<recipe>` that `data.dvc` names and that are neither there nor in DVC's cache.

    Raises:
        DataError: `data.dvc` does not list its files, and `dvc.lock` names several of this folder: which cannot be known.
    """
    with open_repo(project) as repo:
        named = named_files(repo, _out(repo, project), project)
        if named is None:
            _require_known_folders(repo, project, [*_present_folders(project), recipe_name])
            count = locked_files(project).get(recipe_name, 0)
            if count > max(1, len(batch_files(project, recipe_name))):
                raise out_of_reach(recipe_name, [f"a version of {count} files"])
        return _lost(repo, project, named or [], recipe_name)


def _lost(repo: Repo, project: Project, named: list[NamedFile], folder: str) -> list[NamedFile]:
    def is_lost(file: NamedFile) -> bool:
        return not (project.data / file.path).is_file() and not repo.cache.local.exists(file.md5)

    return [file for file in named if file.folder == folder and is_lost(file)]


def _present_folders(project: Project) -> list[str]:
    """Returns names of the folders of `data/` that have files."""
    folders = [path for path in project.data.iterdir() if path.is_dir()] if project.data.is_dir() else []
    return sorted(folder.name for folder in folders if any(folder.iterdir()))


def _require_known_folders(repo: Repo, project: Project, folders: Iterable[str]) -> None:
    """Checks that a list of the files of these folders would leave out none that `data.dvc` names, where its list is unknown.

    Raises:
        DataError: `data.dvc` names more files than `dvc.lock` counts in these folders.
    """
    out, locked = _out(repo, project), locked_files(project)
    files = (out.meta.nfiles or 0) if out is not None and out.meta else 0
    if files > sum(count for name, count in locked.items() if name in folders):
        absent = ", ".join(f"data/{name}" for name in sorted(locked) if name not in folders)
        raise DataError(
            f"data.dvc names {files} files, and neither DVC's cache nor a remote has their list"
            + (f"; dvc.lock names {absent}, which this machine does not have" if absent else ""),
            where="data.dvc",
            hint="dvc push where the data is, and dvc pull here (dvc remote add -d NAME PLACE names a remote); "
            "then the same command",
        )


def data_version(project: Project, recipe_name: str) -> DataVersion:
    """Returns the version of the current `data/<recipe>`; DVC's records give the hashes of unchanged files.

    Raises:
        DataError: the recipe has no data yet.
    """
    import pyarrow.parquet as pq

    files = batch_files(project, recipe_name)
    if not files and not project.imported_model(recipe_name).is_dir():
        raise no_data(recipe_name, project)
    with open_repo(project) as repo:
        md5 = _hash_of(repo, project.raw_data(recipe_name))
    batches = tuple(Batch(path.name, pq.read_metadata(path).num_rows) for path in files)
    return DataVersion(recipe_name, md5, sum(batch.rows for batch in batches), batches)


def file_hashes(project: Project, recipe_name: str) -> dict[str, str]:
    """Returns the md5 of each file of `data/<recipe>`, by its path in that folder; DVC's cache names files by it."""
    with open_repo(project) as repo:
        tree = _build(repo, project.raw_data(recipe_name))
        return {"/".join(key): str(found.value) for key, _, found in tree}


def fetch_files(repo: Repo, hashes: Iterable[str]) -> None:
    """Brings files from the project's default remote to the cache; those that it does not have stay absent."""
    from dvc.exceptions import DvcException
    from dvc_data.hashfile.hash_info import HashInfo

    with suppress(DvcException, FileNotFoundError):
        repo.cloud.pull([HashInfo("md5", value) for value in hashes])


def restore(project: Project, recipe_name: str) -> bool:
    """Restores a missing `data/<recipe>` of the tracked version from DVC's cache or a remote; returns False if it cannot."""
    with open_repo(project) as repo:
        return _checkout(repo, project, recipe_name)


def retry_while_locked(call: Callable[[], T], project: Project) -> T:
    """Runs a DVC operation, and runs it again while another process holds DVC's lock. Other errors pass through.

    Prints once which process it waits for.

    Raises:
        Busy: the lock was still held after all of `LOCK_WAITS_SECONDS`.
    """
    from dvc.exceptions import DvcException
    from dvc.lock import LockError

    holder, printed = "", False
    for wait in (*LOCK_WAITS_SECONDS, None):
        try:
            return call()
        except DvcException as error:
            locked = next((one for one in (error, error.__cause__) if isinstance(one, LockError)), None)
            if locked is None:
                raise
            holder = _lock_holder(project, str(locked)) or holder
            if wait is not None:
                if not printed:
                    console.report(f"waiting for DVC's lock, held by {holder or 'another process'}")
                    printed = True
                time.sleep(wait)
    raise Busy(
        f"another DVC process holds the lock of this project{f': {holder}' if holder else ''}",
        where=str(project.root / ".dvc" / "tmp" / "lock"),
        hint="wait until it ends, or stop it; then run the same command",
    )


def _lock_holder(project: Project, message: str) -> str | None:
    """The process that holds DVC's lock, with its command.

    Args:
        message: DVC's error, which names a process that reads or writes the same files.
    """
    import psutil

    found = BLOCKED_BY.search(message)
    if found:
        return f"process {found[1]} ({found[2].strip()})"
    try:
        pid = int((project.root / ".dvc" / "tmp" / "lock").read_text().split()[0])
        command = " ".join(" ".join(psutil.Process(pid).cmdline()).split())  # on one line
        return f"process {pid} ({command[:200]})"
    except (OSError, ValueError, IndexError, psutil.Error):  # it has ended meanwhile
        return None


def _make_dvc_folder(project: Project) -> None:
    folder = project.root / ".dvc"
    files = {".gitignore": "/config.local\n/tmp\n/cache\n", "config": "[core]\n    analytics = false\n"}
    for name, text in files.items():
        write_text(folder / name, text, tracked_mode(folder / name))


def _hash_of(repo: Repo, folder: os.PathLike[str]) -> str:
    """Returns the md5 of a folder as in `dvc.lock`; nothing is stored."""
    return str(_build(repo, folder).hash_info.value)


def _build(repo: Repo, folder: os.PathLike[str]) -> Any:
    """Returns DVC's tree of a folder: a key (the parts of a path), meta data and hash for each file. Nothing is stored."""
    from dvc_data.hashfile.build import build

    return build(repo.cache.local, str(folder), repo.fs, "md5", dry_run=True, ignore=repo.dvcignore)[2]


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
            hint="correct it, then run the same command; git diff data.dvc shows what changed since the last commit",
        ) from None


def _is_cached(repo: Repo, project: Project) -> bool:
    """Returns whether the cache holds every file of the tracked version, without the folders that are not on this machine."""
    out, here = _out(repo, project), _present_folders(project)
    tree = out.get_obj() if out is not None else None
    return tree is not None and all(
        repo.cache.local.exists(entry.value) for key, _, entry in tree if len(key) == 1 or key[0] in here
    )


def _current_md5(repo: Repo, project: Project) -> str:
    """Returns the md5 of the current `data/`, with the tracked files of the folders that are not on this machine."""
    from dvc_data.hashfile.tree import Tree

    absent = _absent(repo, project)
    if not absent:
        return _hash_of(repo, project.data)
    current = Tree()  # type: ignore[no-untyped-call]
    for key, meta, found in _build(repo, project.data):
        current.add(key, meta, found)
    for key, meta, found in absent:
        current.add(key, meta, found)
    current.digest()
    return str(current.hash_info.value)


def _absent(repo: Repo, project: Project) -> list[Any]:
    """Returns the entries of the tracked tree in folders that are not on this machine."""
    out, here = _out(repo, project), _present_folders(project)
    tree = out.get_obj() if out is not None else None
    return [entry for entry in tree if len(entry[0]) > 1 and entry[0][0] not in here] if tree is not None else []


def _add(repo: Repo, project: Project) -> None:
    """Runs `dvc add data`, all or nothing: DVC itself only logs a file that it could not copy into its cache.

    Raises:
        DiskFull, DataError: a file is not in the cache; `data.dvc` is unchanged.
        Busy: as `retry_while_locked`.
    """
    from dvc.exceptions import DvcException

    pointer = project.root / "data.dvc"
    before = pointer.read_bytes() if pointer.is_file() else None
    # With a folder that is not on this machine `dvc add data` would forget it, and `dvc add data/FOLDER` does not.
    targets = [project.data / name for name in _present_folders(project)] if _absent(repo, project) else [project.data]
    try:
        with captured_errors() as failures:
            try:
                for target in targets:
                    retry_while_locked(lambda target=target: repo.add(str(target)), project)  # type: ignore[misc]
            except DvcException as error:
                raise DataError(
                    f"DVC: {error}", where=str(project.data), hint="dvc status, then run the same command"
                ) from error
        if _is_cached(repo, project):
            _write_list(repo, project)
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


def _write_list(repo: Repo, project: Project) -> None:
    import pyarrow.parquet as pq

    before = {file.path: file.rows for file in listed_files(project)}
    here = {path.relative_to(project.data).as_posix(): path for path in project.data.rglob("*.parquet")}
    rows = {path: pq.read_metadata(file).num_rows for path, file in here.items()}
    write_list(_out(repo, project), before | rows, project)


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
        hint="free some space (headrace prune --dry-run lists old versions that can go), then run the same command",
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
        files = [file for file in named_files(repo, out, project) or [] if file.folder == recipe_name]
        if not files or not all(repo.cache.local.exists(file.md5) for file in files):  # DVC would leave an empty folder
            return False
        with repo.lock:
            out.checkout(force=True, filter_info=target)
    except (DvcException, FileNotFoundError):
        return False  # not in the cache: the caller fetches the source again
    return bool(batch_files(project, recipe_name)) or project.imported_model(recipe_name).is_dir()
