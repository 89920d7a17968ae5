"""Checks that a new replica is ready: it has to answer the sample of its contract, under the right version."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from headrace.errors import ServiceError
from headrace.serving.gateway.model_route import versions
from headrace.serving.local_http import address_text, request
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.serving.rollout.context import RolloutContext

POLL_SECONDS = 0.1
CALL_SECONDS = 10.0
"""Time limit for one answer."""
LOG_LINES = 12
EXITED = "its process exited"


def wait_ready(context: RolloutContext, spec: ReplicaSpec, started: Sequence[Replica], seconds: float) -> None:
    """Returns when each replica answers the sample of its contract.

    Raises:
        ServiceError: a replica does not within `seconds`, or its process exited.
    """
    deadline = time.monotonic() + seconds
    pids = {replica.id: replica.pid for replica in started if replica.pid}
    for replica in started:
        while (reason := _unready_reason(context, spec, replica)) is not None:
            now = next((r for r in context.runner.list(spec.model) if r.id == replica.id), None)
            pid = now.pid if now else None
            exited = now is None or now.state in ("failed", "stopped") or (pid and pids.setdefault(replica.id, pid) != pid)
            if exited or time.monotonic() > deadline:
                reason = EXITED if exited or now is None else f"{reason}; its process is {now.state}"
                raise _not_ready(context, replica, reason)
            time.sleep(POLL_SECONDS)


def _not_ready(context: RolloutContext, replica: Replica, reason: str) -> ServiceError:
    log = context.runner.logs(replica, LOG_LINES).strip()
    serving = versions(context.endpoints("main"))
    serves = f"; {context.model}@{serving} keeps serving" if serving else ", and nothing serves this model"
    more_time = f" (or raise ready_seconds in headrace.toml, now {context.settings.ready_seconds:g} s)"
    return ServiceError(
        f"replica {replica.id} did not become ready ({reason}){serves}." + (f" Last log lines:\n{log}" if log else ""),
        where=address_text(replica.address),
        hint="fix the cause shown in its log, then release again" + ("" if reason == EXITED else more_time),
    )


def _unready_reason(context: RolloutContext, spec: ReplicaSpec, replica: Replica) -> str | None:
    """Why the replica is not ready yet; None when it is.

    Raises:
        ServiceError: it answers as another version: waiting would not help.
    """
    try:
        if (status := _call(context, replica, "GET", "/readyz")[0]) != 200:
            return f"/readyz returned {status}"
        path = f"/v1/models/{spec.model}"
        status, described = _call(context, replica, "GET", path)
        if status != 200:
            return f"GET {path} returned {status}: {described}"
        body = {"instances": [described["contract"]["sample"]]}
        status, answer = _call(context, replica, "POST", f"{path}/predict", body)
    except (OSError, TypeError, KeyError) as error:
        return f"no answer ({error or type(error).__name__})"
    if status != 200:
        return f"predicting the sample of its contract returned {status}: {answer}"
    if str(answer.get("version")) != spec.version:
        raise ServiceError(
            f"replica {replica.id} serves version {answer.get('version')}, not {spec.version}",
            where=address_text(replica.address),
            hint="release again, so that the bento is rebuilt",
        )
    return None


def _call(context: RolloutContext, replica: Replica, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Sends one request to a replica as the operator; returns its status and its JSON or text."""
    address = replica.address_in(context.project)
    answer = request(address, path, method=method, body=body, token=context.token, timeout_seconds=CALL_SECONDS)
    return answer.status, answer.json_or_text()
