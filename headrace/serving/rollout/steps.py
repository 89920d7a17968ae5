"""The moves that every roll-out is made of: start, try out, let in, take out, drain, stop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from headrace.errors import Busy, HeadraceError, ServiceError
from headrace.project import Project
from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Traffic, versions
from headrace.serving.gateway.route_sync import wait_until_sent
from headrace.serving.local_http import request
from headrace.serving.replicas import environment, ports
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec, Runner
from headrace.settings import Settings

Report = Callable[[str], None]
POLL_SECONDS = 0.1
CALL_SECONDS = 10.0
"""A replica that is tried out may take so long for one answer."""
LOG_LINES = 12
ENDED = "it ended"


@dataclass(frozen=True)
class Site:
    """Where one model is rolled out, and with what."""

    model: str
    project: Project
    settings: Settings
    runner: Runner
    report: Report

    @cached_property
    def token(self) -> str | None:
        """With which replicas are called; None where everybody may."""
        if self.settings.access == "open":
            return None
        from headrace.serving.access.tokens import operator_token

        return operator_token(self.project)

    def serving(self, pool: Pool = "main") -> list[Replica]:
        """The replicas of a pool, as the door has them written down."""
        return [endpoint for endpoint in gateway.endpoints_by_model(self.project).get(self.model, []) if endpoint.pool == pool]

    def at(self, place: str) -> Site:
        """The same, with the runner of another place."""
        if self.runner.name == place:
            return self
        return replace(self, runner=runner_for(self.project, self.settings, place))

    def change(self, endpoints: Iterable[Replica], predecessors: Sequence[Replica] | None = None) -> None:
        """Lets these replicas and no others be known to the door, each once."""
        known = list(dict.fromkeys(endpoints))
        gateway.change(self.project, self.settings, self.model, known, predecessors=predecessors)

    def settle(self) -> None:
        """What serves now serves for good."""
        gateway.settle(self.project, self.settings, self.model)

    def send(self, traffic: Traffic) -> None:
        """Sends shares to canaries and shadows, and returns when Envoy does so."""
        gateway.change(self.project, self.settings, self.model, gateway.endpoints_by_model(self.project)[self.model], traffic)
        if gateway.ours(self.project, self.settings):
            wait_until_sent(self.project, self.settings, self.model)


def runner_for(project: Project, settings: Settings, place: str | None = None) -> Runner:
    """The runner of `place`, by default the one that the setting `runner` names."""
    if (place or settings.runner) == "docker":
        from headrace.serving.replicas.docker_runner import DockerRunner

        return cast(Runner, DockerRunner(project, settings))
    from headrace.serving.replicas.process_runner import ProcessRunner

    return ProcessRunner(project, settings=settings)


@contextlib.contextmanager
def alone(project: Project, model: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """
    Raises:
        Busy: another roll-out of the same model is under way, and does not end within `wait_seconds`.
    """
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(project.locks / f"rollout-{model}.lock", timeout=wait_seconds):
            yield
    except Timeout:
        raise Busy(
            f"another roll-out of {model!r} is under way", hint="wait for it to end, then run the same command"
        ) from None


def start_ready(site: Site, spec: ReplicaSpec, count: int) -> list[Replica]:
    """`count` new replicas that have each answered the contract's sample; none is left when one of them does not."""
    started: list[Replica] = []
    taken: list[int] = []
    try:
        for _ in range(count):
            used = {e.port for found in gateway.endpoints_by_model(site.project).values() for e in found}
            used |= {replica.port for replica in site.runner.list()}
            taken.append(ports.take_port(site.settings.replica_ports, site.project.locks / "ports", used))
            started.append(site.runner.start(spec, taken[-1]))
        if started:
            kind = "replica" if spec.pool == "main" else spec.pool
            site.report(
                f"{count} new {kind}{'s' * (count > 1)} of version {spec.version}: "
                + ", ".join(f"{replica.host}:{replica.port}" for replica in started)
            )
        wait_ready(site, spec, started, site.settings.ready_seconds)
        return started
    except BaseException:
        stop_all(started, site.settings, lambda replica: site.runner, drain_seconds=1.0)
        raise
    finally:
        for port in taken:
            ports.release(port)


def add_to_pool(site: Site, fresh: Sequence[Replica], predecessors: Sequence[Replica] | None = None) -> None:
    """Puts new replicas beside those there are and returns when Envoy uses them; else everything is as before.

    Args:
        predecessors: what serves again should this process be killed, until `settle`.
    """
    before = gateway.endpoints_by_model(site.project).get(site.model, [])
    try:
        add(site, fresh, predecessors)
    except BaseException:
        site.change(before)
        known = {endpoint.id for endpoint in before}
        stop(site, [endpoint for endpoint in fresh if endpoint.id not in known])
        raise


def add(site: Site, endpoints: Sequence[Replica], predecessors: Sequence[Replica] | None = None) -> None:
    """Puts replicas beside those there are, and returns when Envoy uses them."""
    site.change([*gateway.endpoints_by_model(site.project).get(site.model, []), *endpoints], predecessors)
    for pool in {endpoint.pool for endpoint in endpoints}:
        addresses = {endpoint.address for endpoint in endpoints if endpoint.pool == pool}
        gateway.wait_until_healthy(site.settings, site.model, addresses, pool=pool)


def remove_from_pool(site: Site, out: Sequence[Replica]) -> None:
    """Takes replicas out of the balancer; returns when Envoy has let go of them. They run on and end what they have begun."""
    site.change(endpoint for endpoint in gateway.endpoints_by_model(site.project).get(site.model, []) if endpoint not in out)
    if out and gateway.ours(site.project, site.settings):
        for pool in {endpoint.pool for endpoint in out}:
            addresses = {endpoint.address for endpoint in out if endpoint.pool == pool}
            gateway.wait_until_gone(site.settings, site.model, addresses, pool=pool)


def stop(site: Site, out: Sequence[Replica]) -> None:
    """Lets replicas that were taken out finish, and stops them."""
    if not out:
        return
    site.report(f"draining {len(out)} replica{'s' * (len(out) > 1)} of version {versions(out)}")
    stop_all(out, site.settings, lambda replica: site.at(replica.runner).runner)


def end_trials(site: Site) -> None:
    """No canary and no shadow any more: no request goes to them, then they leave the door, then they stop."""
    tried = [*site.serving("canary"), *site.serving("shadow")]
    if not tried:
        return
    site.send(Traffic())
    remove_from_pool(site, tried)
    kept = {endpoint.id for endpoint in site.serving()}
    stop(site, [endpoint for endpoint in tried if endpoint.id not in kept])


def stop_all(
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


# -- whether a new replica is ready


def wait_ready(site: Site, spec: ReplicaSpec, started: Sequence[Replica], seconds: float) -> None:
    """Returns when each replica answers its contract's own sample.

    Raises:
        ServiceError: one does not within `seconds`, or it ended.
    """
    deadline = time.monotonic() + seconds
    pids = {replica.id: replica.pid for replica in started if replica.pid}
    for replica in started:
        while (unready := _try_out(site, spec, replica)) is not None:
            now = next((r for r in site.runner.list(spec.model) if r.id == replica.id), None)
            pid = now.pid if now else None
            died = now is None or now.state in ("failed", "stopped") or (pid and pids.setdefault(replica.id, pid) != pid)
            if died or time.monotonic() > deadline:
                why = ENDED if died or now is None else f"{unready}; its process is {now.state}"
                raise _not_ready(site, replica, why)
            time.sleep(POLL_SECONDS)


def _not_ready(site: Site, replica: Replica, why: str) -> ServiceError:
    logs = site.runner.logs(replica, LOG_LINES).strip()
    more_time = f" (or give it more than {site.settings.ready_seconds:g} s: ready_seconds in headrace.toml)"
    return ServiceError(
        f"replica {replica.id} of version {replica.version} does not become ready: {why}; what served before serves on."
        + (f" Its last words:\n{logs}" if logs else ""),
        where=replica.url,
        hint="correct what its log says, then release again" + ("" if why == ENDED else more_time),
    )


def _try_out(site: Site, spec: ReplicaSpec, replica: Replica) -> str | None:
    """Why the replica is not ready yet; None when it answers its contract's own sample, under the right version.

    Raises:
        ServiceError: it answers as another model or version: waiting would not help.
    """
    try:
        if (status := _call(site, replica, "GET", "/readyz")[0]) != 200:
            return f"/readyz says {status}"
        path = f"/v1/models/{spec.model}"
        status, described = _call(site, replica, "GET", path)
        if status != 200:
            return f"GET {path} says {status}: {described}"
        body = {"instances": [described["contract"]["sample"]]}
        status, answer = _call(site, replica, "POST", f"{path}/predict", body)
    except (OSError, TypeError, KeyError) as error:
        return f"no answer ({error or type(error).__name__})"
    if status != 200:
        return f"its contract's own sample is answered with {status}: {answer}"
    if str(answer.get("version")) != spec.version:
        raise ServiceError(
            f"replica {replica.id} serves version {answer.get('version')}, not {spec.version}",
            where=replica.url,
            hint="release again, so that the bento is built anew",
        )
    return None


def _call(site: Site, replica: Replica, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON (or text) of one request straight to a replica, as the operator."""
    answer = request(replica.address, path, method=method, body=body, token=site.token, timeout_seconds=CALL_SECONDS)
    return answer.status, answer.json_or_text()


def serves_as(replica: Replica, spec: ReplicaSpec, settings: Settings) -> bool:
    """Whether it serves this spec and was started with these settings."""
    return replica.spec == spec and replica.settings_digest == environment.settings_digest(settings)
