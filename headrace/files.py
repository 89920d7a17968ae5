"""Atomic file writes: to a temporary file in the same folder, synced, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headrace.errors import DamagedFile, DiskFull


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an error, the file there replaces `path`.

    Raises:
        DiskFull: no space is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except Exception as error:  # torch raises RuntimeError for a full disk, with the OSError as its context
        if is_disk_full(error):
            raise DiskFull(
                f"no space left to write {path.name}", where=str(path.parent), hint="free some space, then run the same command"
            ) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text`, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_secret(path: Path, text: str) -> None:
    """Writes `text`, completely or not at all, to a file in a folder that this user only can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with atomic_write(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)  # before anything is written; the file may exist from a killed process
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, completely or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path; the file is written completely or not at all."""
    with atomic_write(path) as temporary:
        write(temporary)


def read_json(path: Path, hint: str = "restore the file from a backup, or remove it and run the command again") -> Any:
    """Returns the JSON value in `path`, or None if the file does not exist.

    Args:
        hint: how to repair a damaged file.

    Raises:
        DamagedFile: the file is not JSON. It is not treated as missing: its content may exist nowhere else.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # JSONDecodeError, or UnicodeDecodeError
        raise DamagedFile(f"damaged file: not valid JSON ({error})", where=str(path), hint=hint) from None


def read_cached_json(path: Path) -> Any:
    """Returns the JSON value in `path`, or None if the file does not exist or is damaged: for files that can be rebuilt."""
    with suppress(DamagedFile):
        return read_json(path)
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` or its cause is a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
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
