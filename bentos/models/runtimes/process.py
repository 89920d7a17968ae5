"""The process of a runtime: started by a replica, watched, and ended with it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bentos.models.runtimes.runtime import Runtime
from bentos.models.runtimes.upstream import UpstreamLost, opened
from bentos.models.served_model import NotServable

logger = logging.getLogger("headrace.serve")
FOLDER = "headrace-runtime-"
SOCKET = "runtime.sock"
POLL_SECONDS = 0.02
HEALTH_SECONDS = 5.0


class RuntimeProcess:
    """A runtime's server in a process of its own, with a Unix socket that no other user can reach."""

    def __init__(self, runtime: Runtime) -> None:
        """Starts the server, and returns when it has loaded the model.

        Raises:
            NotServable: it ends before; what it wrote is in the replica's log.
        """
        self._runtime = runtime
        _remove_abandoned()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        self.address = self._folder / SOCKET
        # A session of its own: a replica that is asked to stop answers its requests first, and then stops the server.
        self._process = subprocess.Popen(runtime.command(self.address), start_new_session=True, stdin=subprocess.DEVNULL)
        try:
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def end(self) -> str:
        """How the process ended; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return f"the server of {self._runtime.name} ended {how}"

    def close(self) -> None:
        """Ends the server."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_ready(self) -> None:
        while True:
            if self.end:
                raise NotServable(f"{self.end} while it loaded the model; its messages are above")
            with contextlib.suppress(UpstreamLost), opened(self.address, "/health", None, HEALTH_SECONDS) as answer:
                if answer.status == 200:
                    return
            time.sleep(POLL_SECONDS)


def _remove_abandoned() -> None:
    """Removes folders of replicas that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and not Path("/proc", pid).exists() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
