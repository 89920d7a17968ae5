"""What the gateway serves, and the files that configure it.

`.headrace/gateway/models.json` is the only record of which replicas serve. Envoy's files are generated from it, so a kill
between two writes is repaired by generating them again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from headrace.errors import SettingsError
from headrace.files import read_cached_json, read_object, write_json
from headrace.project import Project
from headrace.serving.access import keys, tls, tokens
from headrace.serving.gateway import clusters, listener, metrics_listener, routes
from headrace.serving.gateway.access_filters import Access
from headrace.serving.gateway.model_route import ModelRoute, Routes, Traffic
from headrace.serving.gateway.models_file import VERSION, adopt_old_folder, folder, read_models
from headrace.serving.gateway.prometheus_targets import FILE, targets
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.replica import SCHEMA_VERSION, Replica
from headrace.settings import Settings

PROGRAM = "envoy"
SETTINGS_FILE = "settings.json"
GATEWAY_SETTINGS = frozenset(
    {
        "host",
        "gateway_port",
        "gateway_admin_port",
        "access",
        "tls",
        "request_seconds",
        "max_request_bytes",
        "max_connections",
        "max_connections_per_address",
        "upload_idle_seconds",
    }
)
"""Settings that the gateway was started with, stored in `SETTINGS_FILE`."""


def address(settings: Settings, model: str | None = None) -> str:
    """Returns the URL of the gateway, or of one model behind it."""
    scheme = "http" if settings.tls == "off" else "https"
    root = f"{scheme}://{settings.host}:{settings.gateway_port}"
    return f"{root}/v1/models/{model}" if model else root


# -- what is served


def read_routes(project: Project) -> Routes:
    """Returns the replicas and the traffic split of each model; empty before the first `up`.

    Raises:
        DamagedFile: `models.json` is not JSON. Envoy keeps serving from its own files.
    """
    return {model: _parse_route(model, stored) for model, stored in read_models(project).items()}


def endpoints_by_model(project: Project) -> dict[str, list[Replica]]:
    """Returns the replicas of each model, in all its pools, as recorded; empty when nothing is served."""
    return {model: route.endpoints for model, route in read_routes(project).items()}


def traffic(project: Project, model: str) -> Traffic:
    """Returns which share of the requests goes to canaries and shadows, as recorded."""
    route = read_routes(project).get(model)
    return route.traffic if route else Traffic()


def previous_replicas(project: Project, model: str) -> tuple[Replica, ...]:
    """Returns the replicas of the previous version, which are kept until the current version is final; else nothing."""
    route = read_routes(project).get(model)
    return route.previous if route else ()


def update_model(
    project: Project,
    model: str,
    endpoints: Sequence[Replica],
    traffic: Traffic | None = None,
    previous: Sequence[Replica] | None = None,
) -> None:
    """Makes `endpoints`, and no other replicas, serve `model`; an empty list removes the model. Other models are unaffected.

    Traffic and previous replicas stay as they are unless given. Replicas have to be healthy (`admin.wait_until_healthy`)
    before traffic is sent to their pool, and traffic has to be moved away before they are removed: two updates.
    """
    with locked(project):
        wanted = dict(read_routes(project))
        before = wanted.pop(model, ModelRoute([]))
        if endpoints:
            kept = before.previous if previous is None else tuple(previous)
            wanted[model] = ModelRoute(list(dict.fromkeys(endpoints)), traffic or before.traffic, kept)
        write_configuration_files(project, wanted)


def finalize(project: Project, model: str) -> None:
    """Marks the current version of `model` as final: drops the record of the replicas that served before it."""
    with locked(project):
        wanted = dict(read_routes(project))
        if model in wanted and wanted[model].previous:
            wanted[model] = replace(wanted[model], previous=())
            write_configuration_files(project, wanted)


def remove_all_models(project: Project) -> None:
    """Removes every model from the gateway."""
    if (folder(project) / "models.json").exists():
        with locked(project):
            write_configuration_files(project, {})


# -- Envoy's files


def write_configuration_files(project: Project, wanted: Routes) -> None:
    """Writes `models.json`, then Envoy's files: replicas before clusters before routes, so that every reference resolves."""
    place = folder(project)
    write_json(place / "models.json", {VERSION: SCHEMA_VERSION} | {m: _format_route(route) for m, route in wanted.items()})
    assignments = {
        clusters.cluster_name(model, pool): route.pool(pool) for model, route in wanted.items() for pool in clusters.POOLS
    }
    for name, endpoints in assignments.items():
        write_resources(place / "eds" / f"{name}.json", [clusters.assignment(name, endpoints)])
    access = _access(project)
    models = [cluster for model in sorted(wanted) for cluster in clusters.clusters(model, place)]
    cluster_list = [*clusters.server_clusters(project), *models]
    route_table = [routes.route_configuration(wanted, project.settings, access)]
    # A removed model leaves the routes first, a new one enters them last.
    is_growing = len(cluster_list) >= len((read_cached_json(place / "cds.json") or {"resources": []})["resources"])
    for name, resources in [("cds.json", cluster_list), ("rds.json", route_table)][:: 1 if is_growing else -1]:
        write_resources(place / name, resources)
    metrics = metrics_listener.listener(project.settings, access)
    write_resources(place / "lds.json", [listener.listener(project.settings, place, access), metrics])
    write_json(place / FILE, targets(wanted, project.settings))
    for path in (place / "eds").glob("*.json"):
        if path.stem not in assignments:
            path.unlink(missing_ok=True)


def write_startup_files(project: Project) -> None:
    """Writes all files that Envoy starts with. The caller holds `locked`.

    Raises:
        SettingsError: the configured certificate is not valid; the files stay as they were.
        DamagedFile: `models.json` is not JSON; the files stay as they were.
    """
    read_routes(project)
    adopt_old_folder(project)
    folder(project).mkdir(parents=True, exist_ok=True)
    folder(project).chmod(0o700)  # before Envoy opens its admin socket in it
    _renew(project)
    write_json(folder(project) / SETTINGS_FILE, _gateway_settings(project.settings))
    bootstrap = listener.bootstrap(project.settings, folder(project), listener.admin_socket(project))
    write_resources(folder(project) / "bootstrap.json", bootstrap)


def reload_tokens(project: Project) -> None:
    """Tells Envoy about issued and revoked tokens, effective within a second. Does nothing before the first `up`.

    Other settings of the gateway stay as it was started: a token issued in a shell with other variables does not move it.
    """
    if (folder(project) / "rds.json").exists():
        with locked(project):
            write_configuration_files(project.using(_started_settings(project)), read_routes(project))


def renew_credentials(project: Project) -> None:
    """Renews the operator's token and the gateway's certificate when they expire soon. Cheap enough to call every hour.

    Raises:
        SettingsError: the configured certificate is not valid any more.
    """
    with locked(project):
        _renew(project.using(_started_settings(project)))


def _renew(project: Project) -> None:
    if project.settings.access == "tokens":
        tokens.prepare_tokens(project)
    if project.settings.tls != "off":  # Envoy loads a new certificate at once
        certificate = tls.prepare_certificate(project)
        write_resources(folder(project) / "sds.json", [listener.secret(certificate)])
        tls.remove_other_certificates(project, certificate)
    write_configuration_files(project, read_routes(project))


def _access(project: Project) -> Access:
    """Keys are included even with open access, so that switching to tokens changes the routes alone."""
    public = keys.public_keys(project)
    if not public:
        tokens.prepare_tokens(project)
        public = keys.public_keys(project)
    return Access(public, tokens.revoked_ids(project), tokens.rates(project), is_open=project.settings.access == "open")


def write_resources(path: Path, value: Any) -> None:
    """Writes a file of Envoy, only if it changed: each rename makes Envoy read the file again."""
    wanted = clusters.resources(value) if isinstance(value, list) else value
    if read_cached_json(path) != wanted:
        write_json(path, wanted)


# -- the settings it was started with


def runs_with_settings(project: Project) -> bool:
    """Whether the gateway was started with these settings."""
    return bool(read_cached_json(folder(project) / SETTINGS_FILE) == _gateway_settings(project.settings))


def require_same_access(project: Project) -> None:
    """
    Raises:
        SettingsError: Envoy runs with another value of `access` than `settings`.
    """
    started = _started_settings(project).access
    if started != project.settings.access and supervisor.program_path(project, PROGRAM).exists():
        raise SettingsError(
            f"access is set to {project.settings.access!r}, but the gateway and all replicas run with {started!r}",
            where="access",
            hint="headrace up   (it updates the gateway, the API server and every model without losing a request)",
        )


def _started_settings(project: Project) -> Settings:
    """Returns `settings`, with those of the gateway as it was started."""
    stored = read_object(folder(project) / SETTINGS_FILE, "headrace up") or {}
    return project.settings.model_copy(update={name: stored[name] for name in GATEWAY_SETTINGS & stored.keys()})


def _gateway_settings(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", include=set(GATEWAY_SETTINGS))


def _format_route(route: ModelRoute) -> dict[str, Any]:
    stored = {"endpoints": [e.to_dict() for e in route.endpoints], **asdict(route.traffic)}
    return stored | ({"previous": [e.to_dict() for e in route.previous]} if route.previous else {})


def _parse_route(model: str, stored: Any) -> ModelRoute:
    """Reads one model of `models.json`. Older files hold a bare list, or the key `predecessors`."""
    if isinstance(stored, list):
        stored = {"endpoints": stored}
    previous = stored.get("previous", stored.get("predecessors", []))
    endpoints, previous = ([Replica.from_dict(e, model) for e in found] for found in (stored.get("endpoints", []), previous))
    return ModelRoute(endpoints, Traffic(stored.get("canary", 0.0), stored.get("shadow", 0.0)), tuple(previous))


@contextlib.contextmanager
def locked(project: Project) -> Iterator[None]:
    """Holds the lock of the gateway's files."""
    from filelock import FileLock

    project.locks.mkdir(parents=True, exist_ok=True)
    with FileLock(project.locks / "gateway.lock"):
        yield
