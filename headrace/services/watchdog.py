"""Restarts replicas and servers when they fail health checks, and supervisord when it was killed.

`python -m headrace.services.watchdog` runs for as long as the services do. It imports little; what needs more than sockets and
files is a repair in a separate process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from headrace.console import log
from headrace.errors import HeadraceError
from headrace.events import outbox, running
from headrace.processes import PARENT_PID
from headrace.project import Project, find_project
from headrace.runtime import usage
from headrace.services import probes
from headrace.services.probes import NOT_LISTENING, Target
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.programs import SUPERVISED, log_path

SERVER = "watchdog"
TICK_SECONDS = 1.0
PROBE_SECONDS = 2.0
STUCK_SECONDS = 10.0
READY_SECONDS = 60.0
TRIAL_SECONDS = 30.0
SUPERVISORD_SECONDS = 15.0
SUPERVISORD_FAILURES = 3
"""A supervisord that fails this many checks in a row is stuck."""
FOLD_SECONDS = 600.0
RENEW_SECONDS = 6 * 3600.0
APPROVALS_SECONDS, REMINDER_SECONDS = 30.0, 300.0
"""How often the journal is looked at for candidates that wait, and how often for reminders and expiry."""
REPAIR_SECONDS = 120.0
EVENT_SECONDS = 1.0
FAILED_DELIVERY_SECONDS = 60.0
"""How long a process of deliveries that has failed is not started again."""
DEAD_RUN_SECONDS = 10.0
"""How long it is not started again for a run that was killed: Prefect may not answer yet, which is to close the run."""
ENDED_RUNS_SECONDS = 300.0
"""How often it is started to ask Prefect for runs that failed or crashed and have not said so."""


class Watchdog:
    """Checks the replicas, the servers and the supervisord of one project."""

    def __init__(self, project: Project, stuck_seconds: float, ready_seconds: float, trial_seconds: float) -> None:
        """
        Args:
            stuck_seconds: a target that was ready and fails its checks for this long is restarted.
            ready_seconds: how long a target may take to start.
            trial_seconds: how often interrupted releases are looked for.
        """
        self._project = project
        self._stuck_seconds, self._ready_seconds = stuck_seconds, ready_seconds
        self._supervisord = supervisor.read_pid(project) or os.getppid()  # it may have been killed already
        self._deadlines: dict[str, float] = {}
        self._starting: set[str] = set()
        self._supervisord_failures = 0
        self._last_error = ""
        self._deliveries: subprocess.Popen[bytes] | None = None
        self._deliveries_at = time.monotonic()
        self._journal_seen: tuple[int, int] | None = None
        self._approvals: subprocess.Popen[bytes] | None = None
        self._approvals_seen: tuple[int, int] | None = None
        self._approvals_due = 0.0
        now = time.monotonic()
        self._checks: list[tuple[float, Callable[[], None]]] = [
            (PROBE_SECONDS, self.probe_all),
            (SUPERVISORD_SECONDS, self._probe_supervisord),
            (trial_seconds, self._roll_back_interrupted),
            (FOLD_SECONDS, self._fold_usage),
            (RENEW_SECONDS, lambda: self._repair("renew")),
            (EVENT_SECONDS, self._deliver_events),
            (APPROVALS_SECONDS, self._look_after_approvals),
        ]
        # The first probe is at once: a replica that is stuck before it counts as one that starts, and is given time.
        self._due = [now if check == self.probe_all else now + seconds for seconds, check in self._checks]

    def run(self) -> NoReturn:
        while True:
            if os.getppid() != self._supervisord:
                self._revive("was killed")
            for number, (seconds, check) in enumerate(self._checks):
                if time.monotonic() >= self._due[number]:
                    self._run(check)
                    self._due[number] = time.monotonic() + seconds
            time.sleep(TICK_SECONDS)

    def _run(self, check: Callable[[], None]) -> None:
        """Runs a check; logs an error, for example a damaged file, once instead of at every check."""
        try:
            check()
        except HeadraceError as error:
            if str(error) != self._last_error:
                log(str(error))
            self._last_error = str(error)

    def probe_all(self) -> None:
        """Probes each replica that should serve and each server, and restarts those that are stuck."""
        targets = [*probes.programs(self._project), *probes.replicas(self._project)]
        names = {target.name for target in targets}
        self._deadlines = {name: deadline for name, deadline in self._deadlines.items() if name in names}
        self._starting &= names
        for target in targets:
            self._probe(target)

    def _probe(self, target: Target) -> None:
        failure, now = probes.failure(target), time.monotonic()
        if failure is None:
            self._deadlines[target.name] = now + self._stuck_seconds * target.patience
            self._starting.discard(target.name)
            return
        died = failure == NOT_LISTENING and target.name not in self._starting  # supervisord restarts it
        if target.name not in self._deadlines or died:
            self._allow_start(target, now)
        if now > self._deadlines[target.name]:
            log(f"{target.name} is stuck ({failure}); restarting it")
            self._repair("restart", target.name, target.model)
            self._allow_start(target, time.monotonic())

    def _allow_start(self, target: Target, now: float) -> None:
        """Gives a target time to start."""
        self._deadlines[target.name] = now + self._ready_seconds * target.patience
        self._starting.add(target.name)

    def _roll_back_interrupted(self) -> None:
        """Rolls back killed releases; the repair does nothing while a release is running."""
        for model in probes.interrupted_models(self._project):
            self._repair("roll-back-interrupted", model)

    def _probe_supervisord(self) -> None:
        self._supervisord_failures = 0 if supervisor.is_up(self._project) else self._supervisord_failures + 1
        if self._supervisord_failures >= SUPERVISORD_FAILURES:
            self._revive("did not answer")

    def _fold_usage(self) -> None:
        try:
            usage.fold(self._project.usage)
        except (HeadraceError, OSError) as error:
            log(f"usage: {error}")

    def _deliver_events(self) -> None:
        """Starts a process that delivers events, if something is due and none is running; regularly to look for dead runs."""
        if self._deliveries is not None:
            if (code := self._deliveries.poll()) is None:
                return
            if code != 0 and time.monotonic() < self._deliveries_at + FAILED_DELIVERY_SECONDS:
                return
        journal, is_time = _size_and_time(self._project.journal), time.monotonic() > self._deliveries_at + ENDED_RUNS_SECONDS
        if journal == self._journal_seen and not is_time and not self._are_events_due():
            return
        self._journal_seen, self._deliveries_at = journal, time.monotonic()
        environment = {**os.environ, PARENT_PID: str(os.getpid())}
        command = [sys.executable, "-m", "headrace.services.events.deliver"]
        self._deliveries = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    def _are_events_due(self) -> bool:
        if time.monotonic() > self._deliveries_at + DEAD_RUN_SECONDS and running.dead_runs(self._project):
            return True
        if not outbox.database(self._project).exists():
            return False
        try:
            with outbox.opened(self._project) as connection:
                return outbox.due_in(connection, time.time()) == 0
        except sqlite3.Error as error:
            log(f"events: {error}")
            return False

    def _look_after_approvals(self) -> None:
        """Starts what looks after candidates that wait, after a change of the journal and regularly; does not wait for it."""
        if self._approvals is not None and self._approvals.poll() is None:
            return
        waiting, now = probes.waiting_models(self._project), time.monotonic()
        if waiting is None:
            return
        seen = _size_and_time(self._project.journal)
        if seen == self._approvals_seen and (not waiting or now < self._approvals_due):
            return
        self._approvals_seen, self._approvals_due = seen, now + REMINDER_SECONDS
        self._approvals = subprocess.Popen(_command("approvals"), stdin=subprocess.DEVNULL)

    def _repair(self, *arguments: str) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(_command(*arguments), timeout=REPAIR_SECONDS, check=False)

    def _revive(self, reason: str) -> NoReturn:
        """Ends, and leaves a process that restarts everything.

        It has a session of its own and not supervisord's mark, so that neither supervisord nor the restart ends it.
        """
        environment = {name: value for name, value in os.environ.items() if name != SUPERVISED}
        path = log_path(self._project, SERVER)  # standard output led to supervisord
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            subprocess.Popen(
                _command("revive", reason),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        sys.exit()


def _size_and_time(path: Path) -> tuple[int, int] | None:
    """Changes when a line is added to a file; None if the file does not exist."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headrace.services.repairs", *arguments]


def program(
    environment: dict[str, str],
    ready_seconds: float = READY_SECONDS,
    stuck_seconds: float = STUCK_SECONDS,
    trial_seconds: float = TRIAL_SECONDS,
) -> supervisor.Program:
    """The watchdog as one of supervisord's programs. `environment` holds the project and its settings."""
    seconds = {"ready": ready_seconds, "stuck": stuck_seconds, "trial": trial_seconds}
    arguments = [part for name, value in seconds.items() for part in (f"--{name}-seconds", f"{value:g}")]
    return supervisor.Program(
        SERVER,
        [sys.executable, "-m", "headrace.services.watchdog", *arguments],
        environment,
        stop_seconds=3.0,
        start_retries=10,
        priority=700,
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m headrace.services.watchdog", description=__doc__)
    parser.add_argument("--stuck-seconds", type=float, default=STUCK_SECONDS)
    parser.add_argument("--ready-seconds", type=float, default=READY_SECONDS)
    parser.add_argument("--trial-seconds", type=float, default=TRIAL_SECONDS)
    parsed = parser.parse_args(arguments)
    Watchdog(find_project(), parsed.stuck_seconds, parsed.ready_seconds, parsed.trial_seconds).run()


if __name__ == "__main__":
    main(sys.argv[1:])
