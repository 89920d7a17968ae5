"""Marks of runs in progress: `.headrace/running/RUN_ID.json`, locked by the run's process. The operating system frees the lock
when the process is killed and when the machine stops, and the file stays: that run has crashed, whoever else died with it.

Prefect learns of a run's end after the run's code has ended. So the mark of a run that has ended stays until its process ends,
and says how the run ended.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from headrace.files import read_cached_json
from headrace.project import Project

CLOSED = "closed"
"""End of a run whose state Prefect has already."""


@dataclass(frozen=True)
class Run:
    """A run of a flow."""

    id: str
    """Of the flow run in Prefect."""
    flow: str
    """Name of the flow, such as `release`."""
    model: str
    """Name of the recipe."""
    pid: int = 0
    end: str = ""
    """Type of the state in which its code has ended: `COMPLETED` or `FAILED`; empty before."""

    @property
    def key(self) -> str:
        """For `publish`: whoever finds out how it ended, its end is published once."""
        return f"end of run {self.id}"


def model_of(parameters: dict[str, Any] | None) -> str:
    """The model that a run with these parameters is about; empty where they name none."""
    found = next((parameters[name] for name in ("recipe_name", "model") if parameters and name in parameters), None)
    return found if isinstance(found, str) else ""


@contextmanager
def marked(
    run: Run, project: Project, killed_by: type[BaseException], closed_by: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Marks a run as in progress until the block ends, and as ended until the process does. A mark that cannot be written is
    left out.

    Args:
        killed_by: the exception by which a signal that ends the process is raised; the mark then stays, as after a kill.
        closed_by: the exceptions after which Prefect has the state already; the mark is removed.
    """
    path = _path(run.id, project)
    descriptor = None
    with suppress(OSError):
        descriptor = _write(path, run)
    end = "COMPLETED"
    try:
        yield
    except killed_by:
        end = ""
        raise
    except closed_by:
        end = CLOSED
        raise
    except BaseException:
        end = "FAILED"
        raise
    finally:
        if descriptor is not None:
            _end(path, descriptor, replace(run, end=end))


def _end(path: Path, descriptor: int, run: Run) -> None:
    """Writes how the run ended into its mark, and removes the mark when the process ends. One that was killed keeps it."""
    if run.end == CLOSED:
        _remove(path, descriptor, os.getpid())
    elif run.end:
        with suppress(OSError):  # longer than what is there, in one call: a kill leaves one or the other
            os.pwrite(descriptor, json.dumps(asdict(run)).encode(), 0)
        atexit.register(_remove, path, descriptor, os.getpid())
    else:
        os.close(descriptor)


def _remove(path: Path, descriptor: int, pid: int) -> None:
    """Removes the mark of a run of this process; a process that was forked from it leaves it."""
    if pid == os.getpid():
        with suppress(OSError):
            path.unlink(missing_ok=True)  # before the lock is free, or the run would count as killed
        os.close(descriptor)


def is_marked(run_id: str, project: Project) -> bool:
    """Whether the run is in progress, or its process has ended and `dead_runs` has it."""
    return _path(run_id, project).exists()


def dead_runs(project: Project) -> list[Run]:
    """Runs whose process has ended without removing its mark."""
    return [run for path in sorted(folder(project).glob("*.json")) if _is_dead(path) and (run := _read(path)) is not None]


def forget(run: Run, project: Project) -> None:
    """Removes the mark of a run whose process has ended."""
    _path(run.id, project).unlink(missing_ok=True)


def folder(project: Project) -> Path:
    return project.state / "running"


def _path(run_id: str, project: Project) -> Path:
    return folder(project) / f"{run_id}.json"


def _write(path: Path, run: Run) -> int:
    """Writes the mark and returns the descriptor that holds its lock. It appears under its name locked and complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(asdict(run)).encode())
        os.fsync(descriptor)
        new.rename(path)
        _sync_folder(path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_dead(path: Path) -> bool:
    """Whether nobody holds the lock of the mark, and it was not removed by its run meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _read(path: Path) -> Run | None:
    """The run of a mark; one that is damaged is removed, since nobody can say whose it is."""
    found = read_cached_json(path)
    try:
        return Run(str(found["id"]), str(found["flow"]), str(found["model"]), int(found["pid"]), str(found.get("end", "")))
    except (TypeError, KeyError, ValueError):
        path.unlink(missing_ok=True)
        return None
