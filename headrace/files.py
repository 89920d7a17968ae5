"""Atomic file writes: to a temporary file in the same folder, synced, then renamed; the folder is synced too."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headrace.errors import DamagedFile, DiskFull, HeadraceError, NewerFile, ServiceError

SCHEMA_VERSION = 1
"""Of most stores that Headrace writes: what older versions wrote has it too, without saying so."""
PARTIAL = re.compile(r"\..+\.(\d+)\.part")
"""Name of a file that a process is writing, with its process id."""


@contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an error, the file there replaces `path`.

    Args:
        mode: permissions of the file; by default those that the umask leaves.

    Raises:
        DiskFull: no space is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as error:  # torch raises RuntimeError for a full disk, with the OSError as its context
        if is_disk_full(error):
            raise DiskFull(
                f"no space left to write {path.name}", where=str(path.parent), hint="free some space, then run the same command"
            ) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial_files(folder: Path, apart_from: Collection[str] = ()) -> list[Path]:
    """Removes the temporary files of `atomic_write` below `folder` whose process was killed; returns their paths.

    Args:
        apart_from: names of folders in it that are left alone, for example since containers, whose process ids are their own,
            write there.
    """
    removed = []
    for top in sorted(folder.iterdir()) if folder.is_dir() else []:
        found = [] if top.name in apart_from else [*top.rglob(".*.part")] if top.is_dir() else [top]
        for path in found:
            if (written_by := PARTIAL.fullmatch(path.name)) and not _is_alive(int(written_by[1])):
                path.unlink(missing_ok=True)
                removed.append(path)
    return removed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def errors_collected(found: list[OSError | HeadraceError]) -> Iterator[None]:
    """Ends the block at an error, for example of a file that cannot be written, and appends it to `found`."""
    try:
        yield
    except (OSError, HeadraceError) as error:
        found.append(error)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Writes `text`, completely or not at all, with the permissions `mode`."""
    with atomic_write(path, mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_secret(path: Path, text: str) -> None:
    """Writes `text`, completely or not at all, to a file in a folder that this user only can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with atomic_write(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)  # before anything is written; the file may exist from a killed process
        temporary.write_text(text, encoding="utf-8")


def private_folder(path: Path) -> None:
    """Makes a folder that only this user can enter, unless it exists.

    Raises:
        ServiceError: the path is a link or a file, or others own the folder or can enter it.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        reason = "it is a link" if stat.S_ISLNK(found.st_mode) else "it is not a folder"
    elif found.st_uid != os.getuid():
        reason = f"it belongs to user {found.st_uid}, and this is user {os.getuid()}"
    elif found.st_mode & 0o077:
        reason = f"its mode is {stat.S_IMODE(found.st_mode):o}, which lets other users in; expected 700"
    else:
        return
    hint = f"move it away: mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}"
    raise ServiceError(f"the folder is not used: {reason}", where=str(path), hint=hint)


def create_secret(path: Path, text: str) -> None:
    """As `write_secret`, unless the file exists: of several processes the first one wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        Path(temporary).unlink()
    sync_folder(path.parent)


def write_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Writes `value` as JSON, completely or not at all, with the permissions `mode`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", mode)


def write_with(path: Path, write: Callable[[Path], object], mode: int | None = None) -> None:
    """Calls `write` with a temporary path; the file is written completely or not at all, with the permissions `mode`."""
    with atomic_write(path, mode) as temporary:
        write(temporary)


def read_json(
    path: Path,
    hint: str = "restore the file from a backup, or remove it and run the command again",
    newest: int = SCHEMA_VERSION,
) -> Any:
    """Returns the JSON value in `path`, or None if the file does not exist.

    Args:
        hint: how to repair a damaged file.
        newest: the newest schema version of this store.

    Raises:
        DamagedFile: the file is not JSON. It is not treated as missing: its content may exist nowhere else.
        NewerFile: a newer version of Headrace wrote it.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError
        raise DamagedFile(f"damaged file: not valid JSON ({error})", where=str(path), hint=hint) from None
    require_known_schema(value, path, newest)
    return value


def require_known_schema(value: Any, path: Path, newest: int = SCHEMA_VERSION) -> None:
    """Checks the number `schema_version` of an object from a store of Headrace; without it, it is 1.

    Raises:
        NewerFile: it is greater than `newest`.
    """
    found = value.get("schema_version", 1) if isinstance(value, dict) else 1
    if isinstance(found, int) and found > newest:
        raise NewerFile(
            f"{path.name} has schema version {found}, and this Headrace knows versions up to {newest}",
            where=str(path),
            hint="run the version of Headrace that wrote it, or restore the file from a backup of this version",
        )


def read_object(path: Path, hint: str, newest: int = SCHEMA_VERSION, /, **fields: type) -> dict[str, Any] | None:
    """Returns the JSON object in `path`, or None if the file does not exist.

    Args:
        hint: how to repair a damaged file.
        newest: the newest schema version of this store.
        fields: names of required fields, with the type of their values.

    Raises:
        DamagedFile: the file is not JSON, not an object, or without one of `fields`.
    """
    if (found := read_json(path, hint, newest)) is None and not path.exists():
        return None
    if not isinstance(found, dict):
        raise DamagedFile(f"damaged file: expected an object, got {type(found).__name__}", where=str(path), hint=hint)
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind):
            message = f"damaged file: expected a {kind.__name__} in the field {name!r}, got {type(found.get(name)).__name__}"
            raise DamagedFile(message, where=str(path), hint=hint)
    return found


def read_cached_json(path: Path) -> Any:
    """Returns the JSON value in `path`, or None if there is none that this version can read: for files that can be rebuilt."""
    with suppress(DamagedFile, NewerFile):
        return read_json(path)
    return None


SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""What NumPy says, without an error number, where an array was written in part."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or its cause is a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, OSError) and SHORT_WRITE.fullmatch(str(error)):
            return True
        if type(error).__name__ == "OperationalError" and "full" in str(error):  # SQLite, where DVC keeps its records
            return True
        error = error.__cause__ or error.__context__
    return False


def visible_names(folder: Path) -> list[str]:
    """Names of the files in a folder, sorted, without hidden ones; none if the folder does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def safe_filename(name: str) -> str:
    """Returns `name` in lower case without a data file's extension, other characters than letters and digits as dashes."""
    stem = re.sub(r"(\.(csv|tsv|tab|parquet|pq|gz|zip))+$", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:60] or "batch"
