"""What the keeper lets another process do, which may import what it needs and then ends: `python -m headrace.services.repairs`"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

from headrace.errors import Busy, HeadraceError
from headrace.project import Project, find_project
from headrace.services import probes
from headrace.serving.gateway import gateway
from headrace.serving.replicas import environment, runners, supervisor
from headrace.settings import load_settings

STOP_SECONDS = 3.0
"""From SIGTERM to SIGKILL for what is stuck."""
REVIVED_SECONDS = 120.0


def restart(project: Project, name: str, model: str = "") -> None:
    """Starts a replica of `model` anew, unless it was taken out meanwhile; without a model, the program of this name."""
    if not model:
        supervisor.restart(project, name, STOP_SECONDS)
        return
    endpoint = next((e for e in gateway.endpoints_by_model(project).get(model, []) if e.id == name), None)
    if endpoint is not None:
        runner = runners.runner_for(project, load_settings(project), endpoint.runner)
        runner.restart(endpoint, STOP_SECONDS)


def end_abandoned(project: Project, model: str) -> None:
    """Ends what a killed release of a model left, unless a roll-out or a release is at work."""
    from headrace.release import recovery

    with contextlib.suppress(Busy):
        recovery.roll_back_interrupted_release(model, project, load_settings(project), say)


def renew(project: Project) -> None:
    """What ends by itself is made anew before it does, and what nobody needs any longer is removed."""
    try:
        gateway.renew_credentials(project, load_settings(project))
    except HeadraceError as error:  # a given certificate that has expired, say: what serves goes on
        say(f"not renewed: {error}")
    environment.remove_old_folders(project)


def revive(project: Project, why: str) -> None:
    """Starts supervisord and all that it ran anew, and says how long nothing was watched."""
    began = time.monotonic()
    if not supervisor.revive(project):
        return
    whole = _wait_until_whole(project)
    seconds = f"{time.monotonic() - began:.1f} s"
    say(f"supervisord {why}; " + (f"everything serves again after {seconds}" if whole else f"not all serves after {seconds}"))


def _wait_until_whole(project: Project) -> bool:
    """Whether Envoy, the desk and every replica answer, within two minutes."""
    wanted = [*probes.programs(project), *probes.replicas(project)]
    deadline = time.monotonic() + REVIVED_SECONDS
    while any(map(probes.unready, wanted)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def say(line: str) -> None:
    """To supervisord, which may be gone."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stdout.flush()


CHORES: dict[str, Callable[..., None]] = {
    "restart": restart,
    "end-abandoned": end_abandoned,
    "renew": renew,
    "revive": revive,
}


def main(name: str, *arguments: str) -> int:
    """Does one chore; one that cannot be done is said, and tried again when its time comes."""
    try:
        CHORES[name](find_project(), *arguments)
    except HeadraceError as error:
        say(f"{name}: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
