"""What a replica is told about the house: whose tokens it believes, where it counts, whether its answers matter."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from fnmatch import fnmatch
from pathlib import Path

from headrace.project import Project
from headrace.runtime.usage_file import PATTERN
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.settings import Settings

IN_CONTAINER = Path("/run/headrace")
PASSED_ON = ("HEADRACE_LOG", "HEADRACE_SLOW_SECONDS", "HEADRACE_STUCK_SECONDS", "HEADRACE_QUEUE_SECONDS")
KEPT_DAYS = 30
"""How long answers of replicas that are gone are kept, for feedback that comes late."""


def of_replica(spec: ReplicaSpec, replica_id: str, project: Project, settings: Settings) -> dict[str, str]:
    """Variables of a replica that is a process here. Makes the folders that it writes to."""
    return _told(spec, replica_id, settings, project.guard, _ledger(project, replica_id), _quotas(project))


def of_container(spec: ReplicaSpec, replica_id: str, project: Project, settings: Settings) -> list[str]:
    """Arguments of `docker run`: the same variables, and the folders they name. Only its own and the quotas can be written."""
    guard, ledger, quotas = IN_CONTAINER / "guard", IN_CONTAINER / "ledger", IN_CONTAINER / "quotas"
    told = _told(spec, replica_id, settings, guard, ledger, quotas)
    told |= {"HEADRACE_THREADS": str(spec.threads), "OMP_NUM_THREADS": str(spec.threads)}
    mounts = [f"type=bind,source={_ledger(project, replica_id)},target={ledger}"]
    if settings.access == "tokens":
        mounts.append(f"type=bind,source={_readable(project.guard)},target={guard},readonly")
    if settings.quota_store is None:
        mounts.append(f"type=bind,source={_quotas(project)},target={quotas}")
    given = {**told, **dict.fromkeys(of_client(settings), None)}
    variables = [part for name, value in given.items() for part in ("--env", name if value is None else f"{name}={value}")]
    return variables + [part for mount in mounts for part in ("--mount", mount)]


def of_client(settings: Settings) -> dict[str, str]:
    """Variables that `docker run` takes from its own environment: its arguments are everybody's to read."""
    return {"HEADRACE_QUOTAS": settings.quota_store} if settings.quota_store else {}


def settings_digest(settings: Settings) -> str:
    """Twelve hex digits that stand for what `settings` say to replicas: one started with others has to be replaced."""
    said = sorted(_of_settings(settings, Path("guard"), Path("quotas")).items())
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]  # an address of Redis may hold a password


def tidy(project: Project) -> list[Path]:
    """Removes the folders of replicas that are gone: once their usage is folded, and their answers are `KEPT_DAYS` old."""
    now, removed = time.time(), []
    for folder in project.usage.glob("*/"):
        try:
            files = [(path.name, path.stat().st_mtime) for path in folder.iterdir()]
            last = max(at for _, at in [("", folder.stat().st_mtime), *files])
        except FileNotFoundError:
            continue
        uncounted = any(fnmatch(name.removeprefix("."), f"{PATTERN}*") for name, _ in files)  # also of an idle one that lives
        if not uncounted and now - last > KEPT_DAYS * 86400:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _passed_on() -> dict[str, str]:
    """What the operator has set for replicas alone: how they log, trace and watch themselves."""
    return {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("OTEL_")}


def _told(spec: ReplicaSpec, replica_id: str, settings: Settings, guard: Path, ledger: Path, quotas: Path) -> dict[str, str]:
    return {
        **_passed_on(),
        **_of_settings(settings, guard, quotas),
        "HEADRACE_LEDGER": str(ledger),
        "HEADRACE_REPLICA": replica_id,
        **({"HEADRACE_SHADOW": "1"} if spec.pool == "shadow" else {}),
    }


def _of_settings(settings: Settings, guard: Path, quotas: Path) -> dict[str, str]:
    return {
        **({"HEADRACE_GUARD": str(guard)} if settings.access == "tokens" else {}),
        "HEADRACE_QUOTAS": settings.quota_store or str(quotas),
        "HEADRACE_QUOTA_WHEN_DOWN": settings.quota_when_down,
        "HEADRACE_BODY_LIMIT_BYTES": str(settings.max_request_bytes),
        "HEADRACE_REQUEST_SECONDS": f"{settings.request_seconds:g}",
    }


def _ledger(project: Project, replica_id: str) -> Path:
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
    return folder
