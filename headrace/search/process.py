"""The handle of a process that trains trials, which is replaced when a trial has ended it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from headrace.errors import HeadraceError
from headrace.processes import PARENT_PID
from headrace.project import Project
from headrace.search.place import Place

END_SECONDS = 5.0


class Ended(Exception):
    """The process has ended; the message says how."""


class TrialProcess:
    """A worker process. It is used by one thread; any thread may kill it."""

    def __init__(self, place: Place, number: int, threads: int, project: Project) -> None:
        self._place, self._number, self._project = place, number, project
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "HEADRACE_ROOT": str(project.root),
            PARENT_PID: str(os.getpid()),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_over = False

    def train(self, trial: dict[str, Any], on_epoch: Callable[[int, float], bool]) -> dict[str, Any]:
        """Trains one trial, and returns the last reply.

        Raises:
            Ended: the process has ended, for example because the system was out of memory.
            HeadraceError: no trial of this search can be trained.
        """
        if self._process is None:
            self._start()
        self._send(trial)
        while "epoch" in (reply := self._reply()):
            self._send({"go": on_epoch(reply["epoch"], reply["value"])})
        if "failed" in reply and not reply.get("is_clean"):
            self._end()
        return reply

    def kill(self) -> None:
        """Ends the process for good."""
        with self._lock:
            self._is_over = True
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        self.kill()
        self._end()

    def _start(self) -> None:
        with self._lock:
            if self._is_over:
                raise Ended("stopped")
            self._place.root.mkdir(parents=True, exist_ok=True)
            with self._place.log(self._number).open("ab") as log:
                # In a group of its own, so that Ctrl-C reaches only the process that ends all of them.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "headrace.search.worker", str(self._place.root)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=self._environment,
                    cwd=self._project.root,
                    process_group=0,
                )
        self._reply()

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its output ends too
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()

    def _reply(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            code = self._process.wait(END_SECONDS)
            self._end()
            raise Ended(self._ending(code))
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            self._end()
            raise HeadraceError.from_dict(reply["error"])
        return reply

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            process.wait(END_SECONDS)

    def _ending(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
            why = "; the system may be out of memory" if -code == signal.SIGKILL else ""
            return f"its process was killed by {name}{why}"
        log = self._place.log(self._number)
        return f"its process ended with exit code {code}; see {log.relative_to(self._project.root)}"
