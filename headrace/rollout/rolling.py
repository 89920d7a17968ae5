"""One model version after another, without a request lost: start, try out, let in, take out, drain, stop.

Which replicas serve stands in the door's `models.json` and nowhere else. Whatever a killed roll-out left is therefore known
for what it is: a replica that does not stand there serves nobody, and the next roll-out ends it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from headrace.errors import Busy, HeadraceError, ServiceError
from headrace.project import Project
from headrace.rollout import door, ports
from headrace.rollout.envoy import Endpoint
from headrace.rollout.replicas import Place, Replica, ReplicaSpec, Runner
from headrace.settings import Settings

Report = Callable[[str], None]
POLL_SECONDS = 0.1
LOG_LINES = 12
ENDED = "it ended"


@dataclass(frozen=True)
class Rollout:
    """What serves after a roll-out."""

    spec: ReplicaSpec
    replicas: list[Replica]
    address: str
    """Where clients call the model."""
    changed: bool
    """False when just this served already."""
    replaced: tuple[str, ...] = ()
    """Versions that served before and do no longer."""


def runner_for(project: Project, settings: Settings, place: str | None = None) -> Runner:
    """The runner of `place`, by default the one that the setting `on` names."""
    if (place or settings.on) == "docker":
        from headrace.rollout.containers import DockerRunner

        return cast(Runner, DockerRunner(project, settings))
    from headrace.rollout.processes import ProcessRunner

    return ProcessRunner(project, settings=settings)


def is_serving(spec: ReplicaSpec, replicas: int, project: Project, settings: Settings) -> bool:
    """Whether Envoy sends requests to just `replicas` healthy replicas of `spec`. Takes milliseconds."""
    endpoints = door.routes(project).get(spec.model, [])
    if len(endpoints) != replicas or any(_spec(e, spec.model) != spec for e in endpoints):
        return False
    return door.healthy_endpoints(settings, spec.model) == {e.address for e in endpoints} and door.is_open(project, settings)


def roll_out(spec: ReplicaSpec, replicas: int, project: Project, settings: Settings, runner: Runner, report: Report) -> Rollout:
    """Lets `replicas` replicas of `spec` serve its model, in place of whatever serves it now.

    Safe to run again after a kill at any instant. When the new replicas do not become ready, the old ones serve on.

    Raises:
        Busy: another roll-out of the same model is under way.
        ServiceError: the new replicas do not become ready; with the last lines of their log.
        PortTaken: no port is left for a replica, or another program holds one of Envoy's.
    """
    address = door.address(settings, spec.model)
    if is_serving(spec, replicas, project, settings):
        return Rollout(spec, [_replica(e, spec.model) for e in door.routes(project)[spec.model]], address, changed=False)
    with _alone(project, spec.model):
        door.open_door(project, settings)
        clean_up(spec.model, project, settings, runner)
        before = door.routes(project).get(spec.model, [])
        kept = _keep(spec, replicas, before, settings)
        started = _start_ready(spec, replicas - len(kept), project, settings, runner, report)
        after = [*kept, *(_endpoint(replica) for replica in started)]
        _let_in(spec.model, before, after, started, project, settings, runner)
        out = [endpoint for endpoint in before if endpoint not in after]
        _take_out(spec.model, after, out, project, settings, runner, report)
    replaced = tuple(sorted({e.version for e in out} - {spec.version}))
    return Rollout(spec, [_replica(e, spec.model) for e in after], address, changed=True, replaced=replaced)


def scale(model: str, replicas: int, project: Project, settings: Settings, runner: Runner, report: Report) -> Rollout:
    """More or fewer replicas of what serves now.

    Raises:
        ServiceError: nothing serves `model`; and whatever `roll_out` raises.
    """
    endpoints = door.routes(project).get(model)
    if not endpoints:
        raise ServiceError(f"no replica serves {model!r}", mend=f"headrace run {model}")
    return roll_out(_spec(endpoints[-1], model), replicas, project, settings, runner, report)


def remove(model: str, project: Project, settings: Settings, runner: Runner, report: Report) -> list[Replica]:
    """Takes a model out of the door and stops its replicas, which are returned. Removing what does not serve does nothing."""
    with _alone(project, model):
        out = door.routes(project).get(model, [])
        _take_out(model, [], out, project, settings, runner, report)
        return [_replica(e, model) for e in out] + clean_up(model, project, settings, runner)


def clean_up(model: str, project: Project, settings: Settings, runner: Runner) -> list[Replica]:
    """Stops what a killed roll-out left: replicas that do not stand in the door. They are returned."""
    serving = {endpoint.replica for endpoint in door.routes(project).get(model, [])}
    left = [replica for replica in runner.list(model) if replica.id not in serving]
    _stop_all(left, settings, lambda replica: runner)
    return left


# -- the steps of a roll-out


@contextlib.contextmanager
def _alone(project: Project, model: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(project.locks / f"rollout-{model}.lock", timeout=0):
            yield
    except Timeout:
        raise Busy(
            f"another roll-out of {model!r} is under way", mend="wait for it to end, then run the same command"
        ) from None


def _keep(spec: ReplicaSpec, wanted: int, before: Sequence[Endpoint], settings: Settings) -> list[Endpoint]:
    """Those that serve this very spec and are healthy, as many as are wanted."""
    healthy = door.healthy_endpoints(settings, spec.model)
    return [e for e in before if _spec(e, spec.model) == spec and e.address in healthy][:wanted]


def _start_ready(
    spec: ReplicaSpec, count: int, project: Project, settings: Settings, runner: Runner, report: Report
) -> list[Replica]:
    """`count` new replicas that have each answered the contract's sample; none is left when one of them does not."""
    started: list[Replica] = []
    taken: list[int] = []
    try:
        for _ in range(count):
            used = {e.port for found in door.routes(project).values() for e in found} | {r.port for r in runner.list()}
            taken.append(ports.take_port(settings.replica_ports, project.locks / "ports", used))
            started.append(runner.start(spec, taken[-1]))
        if started:
            report(
                f"{count} new replica{'s' * (count > 1)} of version {spec.version}: "
                + ", ".join(f"{replica.host}:{replica.port}" for replica in started)
            )
        return _wait_ready(spec, started, settings, runner)
    except BaseException:
        _stop_all(started, settings, lambda replica: runner, drain_seconds=1.0)
        raise
    finally:
        for port in taken:
            ports.release(port)


def _wait_ready(spec: ReplicaSpec, started: list[Replica], settings: Settings, runner: Runner) -> list[Replica]:
    deadline = time.monotonic() + settings.ready_seconds
    pids = {replica.id: replica.pid for replica in started if replica.pid}
    for replica in started:
        while (unready := _try_out(spec, replica, settings)) is not None:
            now = next((r for r in runner.list(spec.model) if r.id == replica.id), None)
            pid = now.pid if now else None
            died = now is None or now.state in ("failed", "stopped") or (pid and pids.setdefault(replica.id, pid) != pid)
            if died or time.monotonic() > deadline:
                why = ENDED if died or now is None else f"{unready}; its process is {now.state}"
                raise _not_ready(replica, why, settings, runner)
            time.sleep(POLL_SECONDS)
    return started


def _not_ready(replica: Replica, why: str, settings: Settings, runner: Runner) -> ServiceError:
    logs = runner.logs(replica, LOG_LINES).strip()
    more_time = f" (or give it more than {settings.ready_seconds:g} s: ready_seconds in headrace.toml)"
    return ServiceError(
        f"replica {replica.id} of version {replica.version} does not become ready: {why}; what served before serves on."
        + (f" Its last words:\n{logs}" if logs else ""),
        where=replica.url,
        mend="correct what its log says, then release again" + ("" if why == ENDED else more_time),
    )


def _try_out(spec: ReplicaSpec, replica: Replica, settings: Settings) -> str | None:
    """Why the replica is not ready yet; None when it answers its contract's own sample, under the right version.

    Raises:
        ServiceError: it answers as another model or version: waiting would not help.
    """
    try:
        if (status := _call(replica, "GET", "/readyz")[0]) != 200:
            return f"/readyz says {status}"
        path = f"/v1/models/{spec.model}"
        status, described = _call(replica, "GET", path)
        if status != 200:
            return f"GET {path} says {status}: {described}"
        status, answer = _call(replica, "POST", f"{path}/predict", {"instances": [described["contract"]["sample"]]})
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"no answer ({error or type(error).__name__})"
    if status != 200:
        return f"its contract's own sample is answered with {status}: {answer}"
    if str(answer.get("version")) != spec.version:
        raise ServiceError(
            f"replica {replica.id} serves version {answer.get('version')}, not {spec.version}",
            where=replica.url,
            mend="release again, so that the bento is built anew",
        )
    return None


def _let_in(
    model: str,
    before: list[Endpoint],
    after: list[Endpoint],
    started: list[Replica],
    project: Project,
    settings: Settings,
    runner: Runner,
) -> None:
    """Puts the new replicas beside the old ones and returns when Envoy uses them; else everything is as before."""
    try:
        door.change(project, settings, model, [*after, *(e for e in before if e not in after)])
        door.wait_until_healthy(settings, model, {replica.endpoint for replica in started})
    except BaseException:
        door.change(project, settings, model, before)
        _stop_all(started, settings, lambda replica: runner, drain_seconds=settings.drain_seconds)
        raise


def _take_out(
    model: str, after: list[Endpoint], out: list[Endpoint], project: Project, settings: Settings, runner: Runner, report: Report
) -> None:
    """Takes `out` out of the balancer, waits until Envoy has let go of them, then lets them finish and stops them."""
    door.change(project, settings, model, after)
    if not out:
        return
    if door.ours(project, settings):
        door.wait_until_gone(settings, model, {endpoint.address for endpoint in out})
    report(f"draining {len(out)} replica{'s' * (len(out) > 1)} of version " + ", ".join(sorted({e.version for e in out})))

    def engine(replica: Replica) -> Runner:
        here = runner.list(model)
        return runner if any(r.id == replica.id for r in here) else runner_for(project, settings, replica.runner)

    _stop_all([_replica(e, model) for e in out], settings, engine)


def _stop_all(
    replicas: Sequence[Replica], settings: Settings, engine: Callable[[Replica], Runner], drain_seconds: float | None = None
) -> None:
    """Drains and stops them at the same time; one that cannot be stopped is left to the next clean-up."""
    limit = settings.drain_seconds if drain_seconds is None else drain_seconds
    if not replicas:
        return
    with ThreadPoolExecutor(len(replicas)) as pool:
        ended = [pool.submit(_drain, replica, engine(replica), limit) for replica in replicas]
    for end in ended:
        with contextlib.suppress(HeadraceError):
            end.result()


def _drain(replica: Replica, runner: Runner, limit: float) -> None:
    """Envoy closes a connection to a replica that left it once its last request is answered; then SIGTERM meets nobody."""
    start = time.monotonic()
    while ports.has_connections(replica.port) and time.monotonic() - start < limit:
        time.sleep(POLL_SECONDS)
    runner.stop(replica, max(1.0, limit - (time.monotonic() - start)))


# -- between a replica, its spec and its endpoint


def _endpoint(replica: Replica) -> Endpoint:
    return Endpoint(
        replica.host,
        replica.port,
        replica.id,
        replica.version,
        replica.bento_tag,
        replica.runner,
        replica.image,
        replica.threads,
    )


def _replica(endpoint: Endpoint, model: str) -> Replica:
    return Replica(
        endpoint.replica,
        model,
        endpoint.version,
        endpoint.bento_tag,
        endpoint.host,
        endpoint.port,
        cast(Place, endpoint.runner),
        "running",
        image=endpoint.image,
        threads=endpoint.threads,
    )


def _spec(endpoint: Endpoint, model: str) -> ReplicaSpec:
    return ReplicaSpec(model, endpoint.version, endpoint.bento_tag, endpoint.image, endpoint.threads)


def _call(replica: Replica, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON (or text) of one request straight to a replica."""
    connection = http.client.HTTPConnection(replica.host, replica.port, timeout=10.0)
    try:
        headers = {"content-type": "application/json"}
        connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        response = connection.getresponse()
        raw = response.read()
        return response.status, json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode(errors="replace")
    finally:
        connection.close()
