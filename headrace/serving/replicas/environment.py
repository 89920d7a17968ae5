"""Environment variables of a replica: token keys, usage and quota folders, limits, shadow mode."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from fnmatch import fnmatch
from pathlib import Path

from headrace.files import safe_filename
from headrace.project import Project
from headrace.runtime.sample_file import PATTERN as SAMPLES
from headrace.runtime.sample_file import is_expired
from headrace.runtime.usage_file import PATTERN
from headrace.serving.access.keys import token_keys_folder
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings

IN_CONTAINER = Path("/run/headrace")
SOCKETS_IN_CONTAINER = IN_CONTAINER / "sockets"
PASSED_ON = ("HEADRACE_LOG", "HEADRACE_SLOW_SECONDS", "HEADRACE_STUCK_SECONDS", "HEADRACE_QUEUE_SECONDS")
OLD_NAMES = {"HEADRACE_TOKEN_KEYS": "HEADRACE_GUARD", "HEADRACE_USAGE": "HEADRACE_LEDGER"}
"""Earlier names, which older bentos read: a bento keeps the code that it was built with."""
LISTENS = {"listens on": "unix socket"}
"""Part of the digest: replicas that an earlier version started on a port are replaced."""
KEPT_DAYS = 30
"""How long answers of removed replicas are kept, for feedback that comes late."""


def process_variables(spec: ReplicaSpec, replica_id: str, project: Project) -> dict[str, str]:
    """Environment variables of a replica that is a local process. Makes the folders that it writes to."""
    folders = (token_keys_folder(project), _usage(project, replica_id), _quotas(project))
    return _variables(spec, replica_id, project.settings, *folders) | _redis(project)


def container_arguments(spec: ReplicaSpec, replica_id: str, project: Project) -> list[str]:
    """Arguments of `docker run`: the same variables, and mounts of the folders that they name.

    A container can write to its own usage folder and to the quotas, and only read the token keys.
    """
    token_keys, usage, quotas = (IN_CONTAINER / name for name in ("token-keys", "usage", "quotas"))
    variables = _variables(spec, replica_id, project.settings, token_keys, usage, quotas)
    variables |= _redis(project)
    variables |= {"HEADRACE_THREADS": str(spec.threads), "OMP_NUM_THREADS": str(spec.threads)}
    mounts = [
        f"type=bind,source={_usage(project, replica_id)},target={usage}",
        f"type=bind,source={socket_folder(replica_id, project)},target={SOCKETS_IN_CONTAINER}",
    ]
    if project.settings.access == "tokens":
        mounts.append(f"type=bind,source={_readable(token_keys_folder(project))},target={token_keys},readonly")
    if project.settings.quota_store is None:
        mounts.append(f"type=bind,source={_quotas(project)},target={quotas}")
    inherited = docker_client_variables(project)
    assigned = [f"{name}={value}" for name, value in variables.items() if name not in inherited]
    arguments = [part for one in (*assigned, *inherited) for part in ("--env", one)]
    return arguments + [part for mount in mounts for part in ("--mount", mount)]


def socket_folder(replica_id: str, project: Project) -> Path:
    """The folder for a container's Unix socket, which is mounted at `SOCKETS_IN_CONTAINER`. Made on the first call."""
    return _writable(project.sockets, replica_id)


def docker_client_variables(project: Project) -> dict[str, str]:
    """Variables that `docker run` passes on from its own environment, because every user can read its arguments."""
    return _redis(project) | _passed_on()  # headers for an exporter of traces may contain a key


def _redis(project: Project) -> dict[str, str]:
    """Returns the address of Redis with a name for this project, by which its keys differ from those of others."""
    store = project.settings.quota_store
    if store is None or "#" in store:
        return {"HEADRACE_QUOTAS": store} if store else {}
    digest = hashlib.sha256(str(project.root).encode()).hexdigest()[:8]
    return {"HEADRACE_QUOTAS": f"{store}#{safe_filename(project.root.name)}-{digest}"}


def settings_digest(settings: Settings) -> str:
    """Twelve hex digits of the settings that replicas depend on: a replica with another digest has to be replaced."""
    values = sorted((LISTENS | _settings_variables(settings, Path("token-keys"), Path("quotas"))).items())
    if settings.container_network is not None:
        values.append(("container_network", settings.container_network))
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]  # hashed, since the address of Redis may hold a password


def remove_old_samples(project: Project) -> list[Path]:
    """Removes samples of requests that are older than `sample_days`, also of replicas that are gone.

    Returns:
        The files that were removed.
    """
    now, days = time.time(), project.settings.sample_days
    found = [path for path in project.usage.glob(f"*/{SAMPLES}") if is_expired(path, now, days)]
    for path in found:
        path.unlink(missing_ok=True)  # a running replica removes its own too
    return found


def remove_old_folders(project: Project) -> list[Path]:
    """Removes the folders of replicas that are gone, once their usage is summed up, their samples have expired, and their
    answers are `KEPT_DAYS` old.

    Returns:
        The folders that were removed.
    """
    now, removed = time.time(), []
    for folder in project.usage.glob("*/"):
        try:
            files = [(path.name, path.stat().st_mtime) for path in folder.iterdir()]
            last = max(at for _, at in [("", folder.stat().st_mtime), *files])
        except FileNotFoundError:
            continue
        # A replica that runs has such a file, even when it is idle.
        has_usage = any(fnmatch(name.removeprefix("."), f"{PATTERN}*") for name, _ in files)
        has_samples = any(fnmatch(name, SAMPLES) for name, _ in files)
        if not has_usage and not has_samples and now - last > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _variables(
    spec: ReplicaSpec, replica_id: str, settings: Settings, token_keys: Path, usage: Path, quotas: Path
) -> dict[str, str]:
    variables = {
        **_passed_on(),
        **_settings_variables(settings, token_keys, quotas),
        "HEADRACE_USAGE": str(usage),
        "HEADRACE_REPLICA": replica_id,
        **({"HEADRACE_SHADOW": "1"} if spec.pool == "shadow" else {}),
    }
    return variables | {old: variables[name] for name, old in OLD_NAMES.items() if name in variables}


def _settings_variables(settings: Settings, token_keys: Path, quotas: Path) -> dict[str, str]:
    return {
        **({"HEADRACE_TOKEN_KEYS": str(token_keys)} if settings.access == "tokens" else {}),
        "HEADRACE_QUOTAS": settings.quota_store or str(quotas),
        "HEADRACE_QUOTA_WHEN_DOWN": settings.quota_when_down,
        "HEADRACE_BODY_LIMIT_BYTES": str(settings.max_request_bytes),
        "HEADRACE_REQUEST_SECONDS": f"{settings.request_seconds:g}",
        "HEADRACE_SAMPLE_ROWS_PER_HOUR": str(settings.sample_rows_per_hour),
        "HEADRACE_SAMPLE_SHARE": f"{settings.sample_share:g}",
        "HEADRACE_SAMPLE_DAYS": f"{settings.sample_days:g}",
    }


def has_tracing() -> bool:
    """Whether replicas send traces to a collector."""
    return any(name.startswith("OTEL_") for name in _passed_on())


def _passed_on() -> dict[str, str]:
    """Variables that an operator sets for replicas alone: logging, tracing and their own watchdog."""
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("OTEL_")}


def _usage(project: Project, replica_id: str) -> Path:
    return _writable(project.usage, replica_id)


def _quotas(project: Project) -> Path:
    return _writable(project.quotas, "store")


def _writable(parent: Path, name: str) -> Path:
    """A folder that a container's user can write to, below one that no other user of this machine can enter."""
    parent.mkdir(parents=True, exist_ok=True)
    parent.chmod(0o700)
    folder = parent / name
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    return folder


def _readable(folder: Path) -> Path:
    """A folder that a container's user can read."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    return folder.resolve()  # the engine mounts a link's target
