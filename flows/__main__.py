"""Runs a flow: `headrace run` replaces its process by `python -m flows release digits`. Prints a summary, or an error."""

from __future__ import annotations

import sys
from typing import Any

from headrace import console, permissions, processes
from headrace.cli.shared import print_json, report_error
from headrace.cli.summary import print_summary
from headrace.project import find_project


def main(arguments: list[str]) -> int:
    """Runs a flow in this process and returns the exit code."""
    name, recipe, *options = arguments
    as_json = "--json" in options
    try:
        facts = _run(name, recipe, {"force": True} if "--force" in options else {})
    except (Exception, KeyboardInterrupt) as error:
        return report_error(_cause(error), as_json)
    if as_json:
        print_json({**facts, "unchanged": False})
    else:
        project = find_project()
        print_summary(facts, project)
    return 0


def _run(name: str, recipe: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Runs the flow called `name`."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    from flows.cancellation import RunEnded
    from flows.outcomes import run_flow
    from flows.refresh import refresh
    from flows.release import release
    from headrace.errors import Interrupted
    from headrace.services import prefect, status, up

    project = find_project()
    prefect.wait_for_server(project, console.report)  # it starts while the imports above run
    flow: Any = {"release": release, "refresh": refresh}[name]
    # Prefect's heartbeat delays the end of each run by a second; the release lock finds killed runs instead.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        try:
            facts = run_flow(flow, recipe, **parameters)
        except RunEnded as ended:
            hint = f"to continue from its last checkpoint: headrace run {recipe}"
            raise Interrupted(f"the run of {recipe} was {ended}", hint=hint) from None
    up.wait_for_background(project)
    for service in status.services(project):
        if service.state in ("stopped", "failed", "degraded"):
            why = f": {service.problem}" if service.problem else ""
            console.report(f"{service.name} is {service.state}{why}; see headrace logs {service.name}")
    return facts


def _cause(error: BaseException) -> BaseException:
    """Maps Prefect's errors about its server to one with a hint; other errors stay."""
    import httpx

    from headrace.errors import ServiceError

    if isinstance(error, httpx.TransportError) or type(error).__name__ == "PrefectHTTPStatusError":
        return ServiceError(
            f"the Prefect server stopped answering: {error}",
            where="prefect-server",
            hint="headrace up starts it again; then run the same command",
        )
    return error


if __name__ == "__main__":
    permissions.set_private_umask()
    processes.raise_gc_threshold()
    code = main(sys.argv[1:])
    processes.freeze_gc()
    sys.exit(code)
