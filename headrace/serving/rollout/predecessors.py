"""What served before a version that serves and is not released yet, and how it serves again.

It stands in the door's `models.json`, and gets there by the very write that lets the new version in: whatever is killed
afterwards, there is something by which to go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from headrace.errors import ServiceError
from headrace.serving.gateway import gateway
from headrace.serving.replicas.replica import Replica
from headrace.serving.rollout.steps import Site, add, remove_from_pool, start_ready, stop, wait_ready

PATIENCE_SECONDS = 20.0
"""A predecessor that stands by answers at once; after a reboot it is starting."""


def restore_previous(site: Site) -> None:
    """Lets the predecessors serve again, then takes out and stops what came after them. They are remembered still (`settle`).

    Safe to run again after a kill. Those that do not answer any longer are started anew.

    Raises:
        ServiceError: they cannot be; what serves now serves on.
    """
    before = gateway.predecessors(site.project, site.model)
    if not before:
        return
    spec, there = before[-1].spec, site.at(before[-1].runner)
    known = dict.fromkeys([*before, *(endpoint for endpoint in site.serving() if endpoint.spec == spec)])
    back = _that_answer(there, list(known))[: len(before)]
    back += start_ready(there, spec, len(before) - len(back))
    add(site, back)
    out = [endpoint for endpoint in site.serving() if endpoint not in back]
    remove_from_pool(site, out)
    stop(site, out)


def _that_answer(site: Site, endpoints: Sequence[Replica]) -> list[Replica]:
    def answers(endpoint: Replica) -> bool:
        try:
            wait_ready(site, endpoint.spec, [endpoint], min(PATIENCE_SECONDS, site.settings.ready_seconds))
        except ServiceError:
            return False
        return True

    with ThreadPoolExecutor(len(endpoints)) as pool:
        found = list(pool.map(answers, endpoints))
    return [endpoint for endpoint, well in zip(endpoints, found, strict=True) if well]
