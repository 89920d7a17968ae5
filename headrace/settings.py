"""Where and how things run, as opposed to what is built: `headrace.toml` and `HEADRACE_...` variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from headrace.errors import SettingsError, near_miss
from headrace.project import Project

Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """Every field can stand in `headrace.toml`, or in the environment as `HEADRACE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Address that servers bind to. Anything but loopback opens them to the network."""
    gateway_port: Port = 8080
    """Envoy: clients call models here."""
    gateway_admin_port: Port = 9901
    """Envoy's own administration, always on loopback."""
    mlflow_port: Port = 5000
    prefect_port: Port = 4200
    replica_ports: tuple[Port, Port] = (21000, 21999)
    """First and last port that replicas may take."""
    runner: Literal["process", "docker"] = "process"
    """Where replicas run."""
    base_image: str = "python:3.11-slim"
    """Image that serving images build on: Debian with Python 3.11."""
    docker_host: str | None = None
    """The Docker engine's address; by default what the `docker` client uses."""
    api_port: Port = 8090
    """The desk, behind the door: catalogue, OpenAPI, feedback, batches. Always on loopback."""
    access: Literal["tokens", "open"] = "tokens"
    """Whether callers need a token; `open` lets everybody in, and only on loopback."""
    tls: Literal["off", "self_signed", "files"] = "off"
    """Whether the door speaks TLS: with a certificate of the project's own authority, or with given files."""
    tls_certificate: Path | None = None
    """PEM: the door's certificate and what leads to its authority, for `tls = "files"`."""
    tls_key: Path | None = None
    """PEM: the certificate's private key, for `tls = "files"`."""
    quota_store: str | None = None
    """Redis (`redis://HOST:PORT`) where daily quotas are counted; by default a folder of this machine."""
    quota_when_down: Literal["closed", "open"] = "closed"
    """Whether requests with a quota are refused or let through while the store does not answer."""
    drain_seconds: float = Field(default=30.0, ge=0.0)
    """How long a replica that was taken out of the balancer may finish its requests."""
    ready_seconds: float = Field(default=60.0, gt=0.0)
    """How long a new replica may take until it is ready."""
    request_seconds: float = Field(default=30.0, gt=0.0)
    """How long a model may be silent: before its answer, then the door says 504, or amid a stream, which then ends."""
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=2**32 - 1)
    """A larger request is refused with 413, at the door and by replicas."""
    max_batch_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024)
    """A larger file of a batch is refused with 413."""
    upload_idle_seconds: float = Field(default=30.0, gt=0.0)
    """A batch's file may take as long as it makes progress; when nothing of it comes for so long, it is refused with 408."""
    batch_days: float = Field(default=7.0, gt=0.0)
    """How long a batch that has ended is kept, with its answers."""
    feedback_days: float = Field(default=90.0, gt=0.0)
    """How long a true answer is kept that a client told."""
    train_nodes: int = Field(default=1, ge=1)
    """Machines that share a training's processes."""
    train_rendezvous: str | None = None
    """Where they meet: host and port, of the machine that runs `headrace`. The port is open to the network meanwhile."""
    tracking_uri: str | None = None
    """MLflow's tracking and registry; by default SQLite in `mlruns/`."""

    @property
    def is_loopback(self) -> bool:
        """Whether servers are out of the network's reach."""
        return is_loopback(self.host)

    @model_validator(mode="after")
    def _sound_together(self) -> Settings:
        if self.access == "open" and not self.is_loopback:
            raise ValueError(f"access: 'open' lets the whole network in at host {self.host!r}; set access to 'tokens'")
        if self.tls == "files" and (self.tls_certificate is None or self.tls_key is None):
            raise ValueError("tls: 'files' needs tls_certificate and tls_key")
        if self.quota_store is not None and not self.quota_store.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError(f"quota_store: expected redis://HOST:PORT, got {self.quota_store!r}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine alone."""
    return host in ("localhost", "::1") or host.startswith("127.")


INTERNAL = frozenset(
    "ROOT STAGE_ERROR PARENT_PID SUPERVISED THREADS BODY_LIMIT_BYTES MAX_INSTANCES REQUIRE_DOCKER".split()  # noqa: SIM905
    + "GUARD LEDGER QUOTAS REPLICA SHADOW".split()  # noqa: SIM905
    + "LOG SLOW_SECONDS STUCK_SECONDS QUEUE_SECONDS".split()  # noqa: SIM905
    + "ADDRESS TOKEN BOOTSTRAP".split()  # noqa: SIM905
)
"""Names after `HEADRACE_` that are no settings: what processes tell each other, the replicas' own limits, and where the Python
client calls, with which token."""


def load_settings(project: Project) -> Settings:
    """Reads `headrace.toml` beside `recipes/`, if any, under the environment.

    Raises:
        SettingsError: a value that cannot be, with its field and where it may be set.
    """

    _refuse_unknown_variables()

    class ProjectSettings(Settings):
        model_config = SettingsConfigDict(toml_file=project.root / "headrace.toml")

    try:
        return ProjectSettings()
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_explain(mistake) for mistake in error.errors()),
            where="settings",
            hint="correct it in headrace.toml or in the environment (HEADRACE_<FIELD>)",
        ) from None
    except ValueError as error:  # tomllib's error: not valid TOML
        raise SettingsError(f"no valid TOML: {error}", where="headrace.toml", hint="edit headrace.toml") from None


def _refuse_unknown_variables() -> None:
    names = {name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        name = variable.removeprefix("HEADRACE_")
        if name != variable and name not in names | INTERNAL:
            raise SettingsError(
                f"{variable}: no such setting; {near_miss(variable, {f'HEADRACE_{known}' for known in names})}",
                where="environment",
                hint=f"unset {variable}, or correct its name",
            )


def tracking_uri(project: Project, settings: Settings) -> str:
    """MLflow's address: the one that is set, else the project's SQLite database."""
    return settings.tracking_uri or f"sqlite:///{database(project)}"


def database(project: Project) -> Path:
    return project.mlruns / "mlflow.db"


def _explain(mistake: Any) -> str:
    field = ".".join(str(part) for part in mistake["loc"])
    if not field:  # two settings that do not go together; the message names them
        return str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        return f"{field}: no such setting; {near_miss(field, Settings.model_fields)}"
    return f"{field}: {mistake['msg']} (it says {mistake.get('input')!r})"
