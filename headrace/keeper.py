"""Looks after what supervisord cannot: replicas that run and do not answer, and supervisord itself. `python -m headrace.keeper`

Light, since it runs for as long as the services do: what needs more than sockets and files is done by a process of its own,
which ends when it is done.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

from headrace import ledger
from headrace.errors import HeadraceError
from headrace.files import read_json
from headrace.project import Project, find_project
from headrace.rollout import supervisor
from headrace.rollout.programs import MARK, log_path

TICK_SECONDS = 1.0
LOOK_SECONDS = 2.0
ANSWER_SECONDS = 1.5
STUCK_SECONDS = 10.0
READY_SECONDS = 60.0
STOP_SECONDS = 5.0
"""From SIGTERM to SIGKILL for a replica that is stuck."""
SUPERVISORD_SECONDS = 15.0
UNANSWERED = 3
"""A supervisord that does not answer so often in a row is stuck."""
FOLD_SECONDS = 600.0
RENEW_SECONDS = 6 * 3600.0
REVIVED_SECONDS = 120.0


class Keeper:
    """Watches over one project's replicas and its supervisord."""

    def __init__(self, project: Project, stuck_seconds: float, ready_seconds: float) -> None:
        """
        Args:
            stuck_seconds: a replica that answered before and is silent for so long, or says that it is not ready, is stuck.
            ready_seconds: how long one may take to start.
        """
        self._project = project
        self._stuck_seconds, self._ready_seconds = stuck_seconds, ready_seconds
        self._supervisord = os.getppid()
        self._deadlines: dict[str, float] = {}
        self._starting: set[str] = set()
        self._unanswered = 0

    def run(self) -> NoReturn:
        look_at = fold_at = 0.0
        renew_at = time.monotonic() + RENEW_SECONDS
        ask_at = time.monotonic() + SUPERVISORD_SECONDS
        while True:
            if os.getppid() != self._supervisord:
                self._revive("was killed")
            now = time.monotonic()
            if now >= look_at:
                self.look()
                look_at = now + LOOK_SECONDS
            if now >= ask_at:
                self._ask_supervisord()
                ask_at = time.monotonic() + SUPERVISORD_SECONDS
            if now >= fold_at:
                self._fold()
                fold_at = now + FOLD_SECONDS
            if now >= renew_at:
                self._command("renew")
                renew_at = now + RENEW_SECONDS
            time.sleep(TICK_SECONDS)

    def look(self) -> None:
        """Asks each replica that should serve, and starts those anew that are stuck."""
        serving = list(_endpoints(self._project))
        self._deadlines = {id: self._deadlines[id] for _, id, *_ in serving if id in self._deadlines}
        for model, replica, host, port in serving:
            said = _readiness(host, port)
            now = time.monotonic()
            if said is None:
                self._deadlines[replica] = now + self._stuck_seconds
                self._starting.discard(replica)
                continue
            nobody_listens = said == "nobody listens"
            if replica not in self._deadlines or (nobody_listens and replica not in self._starting):
                self._deadlines[replica] = now + self._ready_seconds
                self._starting.add(replica)
            if now > self._deadlines[replica]:
                _say(f"{replica} is stuck ({said}); it is started anew")
                self._command("restart", model, replica)
                self._deadlines[replica] = time.monotonic() + self._ready_seconds
                self._starting.add(replica)

    def _command(self, *arguments: str) -> None:
        """Does heavier work in another process."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-m", "headrace.keeper", *arguments], timeout=STOP_SECONDS + 60, check=False)

    def _ask_supervisord(self) -> None:
        self._unanswered = 0 if supervisor.is_up(self._project) else self._unanswered + 1
        if self._unanswered >= UNANSWERED:
            self._revive("did not answer")

    def _fold(self) -> None:
        try:
            ledger.fold(self._project.usage)
        except (HeadraceError, OSError) as error:
            _say(f"usage: {error}")

    def _revive(self, why: str) -> NoReturn:
        """Becomes the process that starts everything anew: without supervisord's mark, so that it does not end itself."""
        log = os.open(log_path(self._project, "keeper"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for descriptor in (1, 2):  # they led to supervisord
            os.dup2(log, descriptor)
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        os.execve(sys.executable, [sys.executable, "-m", "headrace.keeper", "revive", why], environment)  # noqa: S606


def restart(project: Project, model: str, replica_id: str) -> None:
    """Starts a replica anew, unless it was taken out meanwhile."""
    from headrace.rollout import door, steps
    from headrace.settings import load_settings

    endpoint = next((e for e in door.routes(project).get(model, []) if e.replica == replica_id), None)
    if endpoint is not None:
        runner = steps.runner_for(project, load_settings(project), endpoint.runner)
        runner.restart(steps.replica_of(endpoint, model), STOP_SECONDS)


def renew(project: Project) -> None:
    """What ends by itself is made anew before it does, and what nobody needs any longer is removed."""
    from headrace.rollout import door, environment
    from headrace.settings import load_settings

    try:
        door.renew(project, load_settings(project))
    except HeadraceError as error:  # a given certificate that has expired, say: what serves goes on
        _say(f"not renewed: {error}")
    environment.tidy(project)


def revive(project: Project, why: str) -> None:
    """Starts supervisord and all that it ran anew, and says how long nothing was watched."""
    from headrace.settings import load_settings

    began = time.monotonic()
    if not supervisor.revive(project):
        return
    whole = _wait_until_whole(project, load_settings(project).door_admin_port)
    seconds = f"{time.monotonic() - began:.1f} s"
    _say(f"supervisord {why}; " + (f"everything serves again after {seconds}" if whole else f"not all serves after {seconds}"))


def _wait_until_whole(project: Project, admin_port: int) -> bool:
    """Whether Envoy and every replica answer, within two minutes."""
    wanted = [("127.0.0.1", admin_port, "/ready"), *((host, port, "/readyz") for *_, host, port in _endpoints(project))]
    deadline = time.monotonic() + REVIVED_SECONDS
    while any(_readiness(*one) for one in wanted):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _endpoints(project: Project) -> Iterator[tuple[str, str, str, int]]:
    """Model, replica, host and port of all that should serve (`door.served` says the same, and needs ten times the memory)."""
    for model, found in (read_json(project.state / "door" / "models.json") or {}).items():
        for endpoint in found["endpoints"]:
            yield model, endpoint["replica"], endpoint["host"], endpoint["port"]


def _readiness(host: str, port: int, path: str = "/readyz") -> str | None:
    """None when it is ready, else what it says."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (ConnectionError, http.client.RemoteDisconnected):
        return "nobody listens"
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if status == 200 else f"{path} says {status}"


def _say(line: str) -> None:
    """To supervisord, which may be gone."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stdout.flush()


def program(
    environment: dict[str, str], ready_seconds: float = READY_SECONDS, stuck_seconds: float = STUCK_SECONDS
) -> supervisor.Program:
    """The keeper, as one of supervisord's programs. `environment` names the project and its settings."""
    arguments = ["--ready-seconds", f"{ready_seconds:g}", "--stuck-seconds", f"{stuck_seconds:g}"]
    return supervisor.Program(
        "keeper",
        [sys.executable, "-m", "headrace.keeper", *arguments],
        environment,
        stop_seconds=3.0,
        start_retries=10,
        priority=700,
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m headrace.keeper", description=__doc__)
    parser.add_argument("--stuck-seconds", type=float, default=STUCK_SECONDS)
    parser.add_argument("--ready-seconds", type=float, default=READY_SECONDS)
    parser.add_argument("command", nargs="*", help="restart MODEL REPLICA, renew, or revive WHY; nothing: keep watch")
    given = parser.parse_args(arguments)
    project = find_project()
    match given.command:
        case []:
            Keeper(project, given.stuck_seconds, given.ready_seconds).run()
        case ["restart", model, replica]:
            restart(project, model, replica)
        case ["renew"]:
            renew(project)
        case ["revive", why]:
            revive(project, why)
        case _:
            parser.error(f"no such command: {given.command}")


if __name__ == "__main__":
    main(sys.argv[1:])
