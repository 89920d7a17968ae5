"""Looks after what supervisord cannot: what runs and does not answer, and supervisord itself. `python -m headrace.services.watchdog`

Light, since it runs for as long as the services do: what needs more than sockets and files is a chore of another process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from headrace.errors import HeadraceError
from headrace.project import Project, find_project
from headrace.runtime import usage
from headrace.services import probes
from headrace.services.probes import NOBODY, Watched
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.programs import MARK, log_path

TICK_SECONDS = 1.0
LOOK_SECONDS = 2.0
STUCK_SECONDS = 10.0
READY_SECONDS = 60.0
TRIAL_SECONDS = 30.0
SUPERVISORD_SECONDS = 15.0
UNANSWERED = 3
"""A supervisord that does not answer so often in a row is stuck."""
FOLD_SECONDS = 600.0
RENEW_SECONDS = 6 * 3600.0
CHORE_SECONDS = 120.0


class Keeper:
    """Watches over one project's replicas, its door and its supervisord."""

    def __init__(self, project: Project, stuck_seconds: float, ready_seconds: float, trial_seconds: float) -> None:
        """
        Args:
            stuck_seconds: what answered before and is silent for so long, or says that it is not ready, is stuck.
            ready_seconds: how long one may take to start.
            trial_seconds: how often it is seen whether a roll-out was abandoned.
        """
        self._project = project
        self._stuck_seconds, self._ready_seconds = stuck_seconds, ready_seconds
        self._supervisord = os.getppid()
        self._deadlines: dict[str, float] = {}
        self._starting: set[str] = set()
        self._unanswered = 0
        now = time.monotonic()
        self._rounds: list[tuple[float, Callable[[], None]]] = [
            (LOOK_SECONDS, self.look),
            (SUPERVISORD_SECONDS, self._ask_supervisord),
            (trial_seconds, self._end_abandoned),
            (FOLD_SECONDS, self._fold),
            (RENEW_SECONDS, lambda: self._chore("renew")),
        ]
        self._due = [now + every for every, _ in self._rounds]

    def run(self) -> NoReturn:
        while True:
            if os.getppid() != self._supervisord:
                self._revive("was killed")
            for number, (every, make_round) in enumerate(self._rounds):
                if time.monotonic() >= self._due[number]:
                    make_round()
                    self._due[number] = time.monotonic() + every
            time.sleep(TICK_SECONDS)

    def look(self) -> None:
        """Asks each replica that should serve, Envoy and the desk, and starts those anew that are stuck."""
        found = [*probes.programs(self._project), *probes.replicas(self._project)]
        names = {one.name for one in found}
        self._deadlines = {name: deadline for name, deadline in self._deadlines.items() if name in names}
        self._starting &= names
        for one in found:
            self._look_at(one)

    def _look_at(self, one: Watched) -> None:
        said, now = probes.unready(one), time.monotonic()
        if said is None:
            self._deadlines[one.name] = now + self._stuck_seconds
            self._starting.discard(one.name)
            return
        died = said == NOBODY and one.name not in self._starting  # supervisord starts it again
        if one.name not in self._deadlines or died:
            self._give_time(one, now)
        if now > self._deadlines[one.name]:
            _say(f"{one.name} is stuck ({said}); it is started anew")
            self._chore("restart", one.name, one.model)
            self._give_time(one, time.monotonic())

    def _give_time(self, one: Watched, now: float) -> None:
        self._deadlines[one.name] = now + self._ready_seconds
        self._starting.add(one.name)

    def _end_abandoned(self) -> None:
        """A release that was killed leaves a version that nobody watches; one that is alive keeps others from ending it."""
        for model in probes.unfinished(self._project):
            self._chore("end-abandoned", model)

    def _ask_supervisord(self) -> None:
        self._unanswered = 0 if supervisor.is_up(self._project) else self._unanswered + 1
        if self._unanswered >= UNANSWERED:
            self._revive("did not answer")

    def _fold(self) -> None:
        try:
            usage.fold(self._project.usage)
        except (HeadraceError, OSError) as error:
            _say(f"usage: {error}")

    def _chore(self, *arguments: str) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(_command(*arguments), timeout=CHORE_SECONDS, check=False)

    def _revive(self, why: str) -> NoReturn:
        """Becomes the process that starts everything anew: without supervisord's mark, so that it does not end itself."""
        log = os.open(log_path(self._project, "keeper"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for descriptor in (1, 2):  # they led to supervisord
            os.dup2(log, descriptor)
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        os.execve(sys.executable, _command("revive", why), environment)  # noqa: S606


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headrace.services.repairs", *arguments]


def _say(line: str) -> None:
    """To supervisord, which may be gone."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stdout.flush()


def program(
    environment: dict[str, str],
    ready_seconds: float = READY_SECONDS,
    stuck_seconds: float = STUCK_SECONDS,
    trial_seconds: float = TRIAL_SECONDS,
) -> supervisor.Program:
    """The keeper, as one of supervisord's programs. `environment` names the project and its settings."""
    seconds = {"ready": ready_seconds, "stuck": stuck_seconds, "trial": trial_seconds}
    arguments = [part for name, value in seconds.items() for part in (f"--{name}-seconds", f"{value:g}")]
    return supervisor.Program(
        "keeper",
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
    given = parser.parse_args(arguments)
    Keeper(find_project(), given.stuck_seconds, given.ready_seconds, given.trial_seconds).run()


if __name__ == "__main__":
    main(sys.argv[1:])
