"""Helpers for short-lived processes: garbage collection, the end of the parent process, errors passed to the caller."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from types import FrameType
from typing import NoReturn

from headrace.errors import DiskFull, HeadraceError
from headrace.files import is_disk_full

PARENT_PID = "HEADRACE_PARENT_PID"
"""Environment variable with the id of the process that `die_with_parent` watches."""
PARENT_POLL_SECONDS = 0.2
CHILD_SECONDS = 15.0
"""From SIGTERM to SIGKILL for children of an interrupted process: a training closes its run in MLflow."""
OF_THE_MACHINE = {
    errno.EROFS: ("the file system is read-only", "mount it writable"),
    errno.EIO: ("the disk cannot be read or written", "check the disk, and restore what it lost from a backup"),
    errno.EMFILE: ("too many open files in this process", "raise the limit with ulimit -n"),
    errno.ENFILE: ("too many open files on this machine", "end other programs"),
}
"""Errors of a system call that are not bugs and that the user can act on: what they mean, and the hint."""
DRAIN_SECONDS = 2.0
"""How long `broken_pipes_ignored` waits at its end for what is still to be written."""


def raise_gc_threshold() -> None:
    """Lets imports run without a garbage collection every few hundred objects, none of which would find anything."""
    gc.set_threshold(200_000, 20, 100)


def freeze_gc() -> None:
    """Hides all living objects from the garbage collector: walking a million objects once more at exit costs a second."""
    gc.freeze()


def die_with_parent(pid: int | None = None) -> None:
    """Ends this process soon after its parent has ended, however that happened.

    Args:
        pid: the parent's process id; by default the one in `HEADRACE_PARENT_PID`. Without either, nothing is watched.
    """
    parent = pid if pid is not None else int(os.environ.get(PARENT_PID) or 0)
    if parent:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(pid: int) -> None:
    """A dead parent is gone, or a zombie until it is reaped; another process may have its id by then."""
    import psutil

    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PARENT_POLL_SECONDS)
    except psutil.Error:
        pass
    os._exit(1)


_interrupted = threading.Event()


def interrupt_on_signals() -> None:
    """Lets SIGTERM and SIGINT (Ctrl-C) raise KeyboardInterrupt in the main thread, so that a process closes what it has
    opened. Earlier signals are forgotten."""
    _interrupted.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt again after a signal. Python drops an exception that a signal handler raises within a finalizer
    or a callback; a loop that runs for hours calls this in each iteration, so that it ends all the same."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the clean-up
    _interrupted.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def children_ended(seconds: float = CHILD_SECONDS) -> Iterator[None]:
    """When the block ends with an error, first ends the processes that it has started and that are still running.

    Args:
        seconds: from SIGTERM to SIGKILL.
    """
    import psutil

    before = set(psutil.Process().children(recursive=True))
    try:
        yield
    except BaseException:
        started = [child for child in psutil.Process().children(recursive=True) if child not in before]
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.terminate()
        for child in psutil.wait_procs(started, timeout=seconds)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        raise


@contextlib.contextmanager
def broken_pipes_ignored() -> Iterator[None]:
    """Keeps standard output and standard error usable in the block, for this process and its children.

    A flow that Prefect's worker started writes to pipes of the worker. Without this, a line written after the worker has died
    would end a healthy training. A terminal or a file cannot break, and is left as it is.
    """
    with contextlib.ExitStack() as stack:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed
                mode = os.fstat(descriptor).st_mode
                if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                    stack.enter_context(_pumped(descriptor))
        yield


@contextlib.contextmanager
def _pumped(descriptor: int) -> Iterator[None]:
    """Puts a pipe of this process in the descriptor's place; a thread copies from it, and drops what cannot be written."""
    original = os.dup(descriptor)
    reading, writing = os.pipe()
    os.dup2(writing, descriptor)
    os.close(writing)
    pump = threading.Thread(target=_copy, args=(reading, original), daemon=True)
    pump.start()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os.dup2(original, descriptor)
        pump.join(DRAIN_SECONDS)  # longer only where a process that goes on in the background still holds the pipe
        if not pump.is_alive():
            os.close(original)


def _copy(reading: int, original: int) -> None:
    """Copies until the pipe is closed. A target that cannot be written is replaced by /dev/null, also for later output."""
    while block := os.read(reading, 65536):
        try:
            while block:
                block = block[os.write(original, block) :]
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, original)
            os.close(nowhere)
    os.close(reading)


def as_headrace_error(error: Exception) -> HeadraceError | None:
    """Maps an exception to an error that the user can act on; None for a bug."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, MemoryError):
        return HeadraceError("out of memory", hint="lower train.batch_size, or use a machine with more memory")
    if is_disk_full(error):
        where = getattr(error, "filename", None)
        return DiskFull("no space left", where=where, hint="free some space, then run the same command")
    if isinstance(error, PermissionError):
        return HeadraceError(
            "permission denied", where=error.filename, hint=f"grant this user write access to {error.filename or 'the file'}"
        )
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        message, hint = OF_THE_MACHINE[error.errno]
        return HeadraceError(message, where=error.filename, hint=f"{hint}, then run the same command")
    return None


def bypass_proxies_on_loopback(environment: MutableMapping[str, str]) -> None:
    """Adds this machine to `NO_PROXY`: a proxy cannot reach servers on loopback. Other entries are kept."""
    given = ",".join(environment.get(name, "") for name in ("NO_PROXY", "no_proxy"))
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    both = ",".join(dict.fromkeys([*hosts, "127.0.0.1", "localhost", "::1"]))
    environment.update(NO_PROXY=both, no_proxy=both)
