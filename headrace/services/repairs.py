"""Repairs that the watchdog runs in separate processes, since they import much: `python -m headrace.services.repairs`"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from headrace.console import log
from headrace.errors import Busy, HeadraceError
from headrace.project import Project, find_project
from headrace.services import probes
from headrace.serving.gateway import gateway
from headrace.serving.replicas import environment, runners, supervisor

STOP_SECONDS = 3.0
"""From SIGTERM to SIGKILL for a stuck process."""
RECOVERY_SECONDS = 120.0
REVIVE_SECONDS, REVIVE_PAUSE_SECONDS = 600.0, 5.0


def restart(project: Project, name: str, model: str = "") -> None:
    """Restarts a replica of `model`, unless it was removed meanwhile; without a model, the program of this name."""
    if not model:
        supervisor.restart(project, name, STOP_SECONDS)
        return
    replica = next((e for e in gateway.endpoints_by_model(project).get(model, []) if e.id == name), None)
    if replica is not None:
        runners.runner_for(project, replica.runner).restart(replica, STOP_SECONDS)


def roll_back_interrupted(project: Project, model: str) -> None:
    """Rolls back what a killed release of a model left, unless a release or a roll-out is running."""
    from headrace.release import recovery

    with contextlib.suppress(Busy):
        recovery.roll_back_interrupted_release(model, project, log)


def renew(project: Project) -> None:
    """Renews credentials before they expire, and removes samples that are too old and folders that no replica uses."""
    try:
        gateway.renew_credentials(project)
    except HeadraceError as error:  # for example a given certificate that has expired: the running gateway is left as it is
        log(f"not renewed: {error}")
    environment.remove_old_samples(project)
    environment.remove_old_folders(project)


def approvals(project: Project) -> None:
    """Reminds people of candidates that wait, records those whose time is over, and makes Prefect's runs follow."""
    from headrace.services import approvals

    approvals.look_after(project, log)


def revive(project: Project, reason: str) -> None:
    """Restarts supervisord with all its programs, and logs how long that took. Tries again for ten minutes if it fails."""
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Timeout), FileLock(project.locks / "revive.lock", timeout=0):
        _revive(project, reason)


def _revive(project: Project, reason: str) -> None:
    began, last = time.monotonic(), ""
    while True:
        try:
            if not supervisor.restart_killed(project):
                return
            break
        except (HeadraceError, OSError) as error:
            if time.monotonic() > began + REVIVE_SECONDS:
                raise
            if str(error) != last:
                log(f"revive: {error}")
            last = str(error)
            time.sleep(REVIVE_PAUSE_SECONDS)
    recovered = _wait_for_recovery(project)
    outcome = "all services recovered in" if recovered else "some services are still down after"
    log(f"supervisord {reason}; {outcome} {time.monotonic() - began:.1f} s")


def _wait_for_recovery(project: Project) -> bool:
    """Whether every server and every replica answers within two minutes."""
    targets = [*probes.programs(project), *probes.replicas(project)]
    deadline = time.monotonic() + RECOVERY_SECONDS
    while any(map(probes.failure, targets)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


REPAIRS: dict[str, Callable[..., None]] = {
    "restart": restart,
    "roll-back-interrupted": roll_back_interrupted,
    "renew": renew,
    "approvals": approvals,
    "revive": revive,
}


def main(name: str, *arguments: str) -> int:
    """Runs one repair. A failure is logged; the watchdog tries again."""
    try:
        REPAIRS[name](find_project(), *arguments)
    except HeadraceError as error:
        log(f"{name}: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
