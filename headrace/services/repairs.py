"""Repairs that the watchdog runs in separate processes, since they import much: `python -m headrace.services.repairs`"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from headrace.errors import Busy, HeadraceError
from headrace.project import Project, find_project
from headrace.services import probes
from headrace.services.watchdog import log
from headrace.serving.gateway import gateway
from headrace.serving.replicas import environment, runners, supervisor

STOP_SECONDS = 3.0
"""From SIGTERM to SIGKILL for a stuck process."""
RECOVERY_SECONDS = 120.0


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
    """Renews credentials before they expire, and removes folders that no replica uses."""
    try:
        gateway.renew_credentials(project)
    except HeadraceError as error:  # for example a given certificate that has expired: the running gateway is left as it is
        log(f"not renewed: {error}")
    environment.remove_old_folders(project)


def revive(project: Project, reason: str) -> None:
    """Restarts supervisord with all its programs, and logs how long that took."""
    began = time.monotonic()
    if not supervisor.restart_killed(project):
        return
    recovered = _wait_for_recovery(project)
    outcome = "all services recovered in" if recovered else "some services are still down after"
    log(f"supervisord {reason}; {outcome} {time.monotonic() - began:.1f} s")


def _wait_for_recovery(project: Project) -> bool:
    """Whether Envoy, the API server and every replica answer within two minutes."""
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
