"""Settings: where and how the services run, from `headrace.toml` and `HEADRACE_...` variables. Recipes define what is built."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headrace import renamed
from headrace.errors import DamagedFile, SettingsError, near_miss
from headrace.event_names import EVENT_NAMES, NOTIFIED, EventName
from headrace.files import read_json

Port = Annotated[int, Field(ge=1, le=65535)]
LOOPBACK = "127.0.0.1"


class Webhook(BaseModel):
    """A receiver of events by HTTP: a table `[[webhooks]]` of `headrace.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")
    """Lower-case letters, digits and dashes; names it in `headrace webhooks`."""
    url: str = Field(pattern=r"^https?://[^/\s]+(/\S*)?$", repr=False)
    """Where events are sent by POST. Redirects are not followed."""
    secret_env: str | None = None
    """Environment variable with the secret (`whsec_…`) that signs each request, where `headrace up` starts the services."""
    secret_file: Path | None = None
    """File with the secret, readable by this user alone (mode 0600); relative to the project."""
    events: tuple[EventName, ...] = EVENT_NAMES
    """Events that are sent to it; by default all."""

    @field_validator("events", mode="before")
    @classmethod
    def _check_events(cls, events: Any) -> Any:
        return known_events(events)

    @model_validator(mode="after")
    def _check_secret(self) -> Webhook:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError(f"webhook {self.name!r}: expected either secret_env or secret_file")
        return self

    @property
    def origin(self) -> str:
        """The address without its path, which may hold a token, and without a password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}/…"


class Settings(BaseSettings):
    """Settings of a project. Each field is a key of `headrace.toml`, or the environment variable `HEADRACE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    """Address that the gateway binds to. Any address but loopback opens it to the network."""
    gateway_port: Port = 8080
    """Envoy: clients call models here."""
    gateway_admin_port: Port = 9901
    """Metrics of Envoy and of replicas, for Prometheus: always on loopback and with a token."""
    mlflow_port: Port = 5000
    """MLflow's server, always on loopback."""
    prefect_port: Port = 4200
    """Prefect's server, always on loopback."""
    runner: Literal["process", "docker"] = "process"
    """Where replicas run: as local processes or in Docker containers."""
    base_image: str = "python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7"
    """Image that serving images build on: Debian with Python 3.11. The default is one exact image, by its digest."""
    docker_host: str | None = None
    """The Docker engine's address; by default what the `docker` client uses."""
    container_network: str | None = None
    """The Docker network of replicas in containers, for example `bridge`; by default none, unless `quota_store` or traces
    (`OTEL_` variables) need one. A custom model that calls other services needs one too."""
    access: Literal["tokens", "open"] = "tokens"
    """Whether callers need a token; `open` admits all callers and is allowed on loopback only."""
    tls: Literal["off", "self_signed", "files"] = "off"
    """Whether the gateway uses TLS: with a certificate signed by the project's own authority, or with the files below."""
    tls_certificate: Path | None = None
    """PEM file with the gateway's certificate chain, for `tls = "files"`."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key, for `tls = "files"`."""
    quota_store: str | None = None
    """Redis (`redis://HOST:PORT`) that counts daily quotas; by default a folder of this machine."""
    quota_when_down: Literal["closed", "open"] = "closed"
    """Whether requests with a quota are refused (`closed`) or answered (`open`) while the store does not respond."""
    drain_seconds: float = Field(default=30.0, ge=0.0)
    """How long a replica that was removed from its pool may finish its requests."""
    ready_seconds: float = Field(default=60.0, gt=0.0)
    """How long a new replica may take to become ready."""
    request_seconds: float = Field(default=30.0, gt=0.0)
    """How long a model may send nothing: before its answer (the gateway then answers 504) or within a stream (it then ends)."""
    max_request_bytes: int = Field(default=16 * 1024 * 1024, ge=1024, le=2**32 - 1)
    """Largest request body; the gateway and the replicas refuse a larger one with 413."""
    max_connections: int = Field(default=4096, ge=1, le=1_000_000)
    """Open connections of all clients to the gateway; a further one is closed at once. Each uses a file descriptor."""
    max_connections_per_address: int = Field(default=1024, ge=1, le=1_000_000)
    """Open connections of one client address. Set it to `max_connections` where all clients come through one proxy."""
    max_batch_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024)
    """Largest file of a batch; a larger one is refused with 413."""
    max_source_bytes: int = Field(default=8 * 1024 * 1024 * 1024, ge=1)
    """Largest download of one file or package of a source; a larger one is refused. Local files have no limit."""
    licences_allowed: tuple[str, ...] = ()
    """Licences of imported models that are accepted, for example `["Apache-2.0", "MIT"]`; by default all. A model whose licence
    is not known is then refused."""
    licences_refused: tuple[str, ...] = ()
    """Licences of imported models that are refused."""
    upload_idle_seconds: float = Field(default=30.0, gt=0.0)
    """How long an upload of a batch may make no progress before it is refused with 408."""
    batch_days: float = Field(default=7.0, gt=0.0)
    """How long a finished batch is kept, with its answers."""
    batch_open_days: float = Field(default=30.0, gt=0.0, le=90.0)
    """How long a batch may take, waiting for a quota or a replica included; it then fails."""
    tenant_batch_bytes: int = Field(default=10 * 1024**3, ge=1024)
    """Disk space for the batches of one tenant, ended ones included. A file beyond it is refused with 413."""
    feedback_days: float = Field(default=90.0, gt=0.0)
    """How long feedback (the true answer to a request) is kept."""
    tenant_feedback_bytes: int = Field(default=1024**3, ge=1024)
    """Disk space for the feedback of one tenant. Feedback beyond it is refused with 413."""
    tenant_pending_rows: int = Field(default=100_000, ge=0)
    """Rows of feedback that a tenant may send for requests without a recorded answer. A further one is refused with 413."""
    sample_rows_per_hour: int = Field(default=300, ge=0, le=100_000)
    """Rows of requests, with their answers, that a replica keeps of each hour, chosen at random; 0 keeps none."""
    sample_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of requests from which these rows are chosen, from 0 to 1."""
    sample_days: float = Field(default=30.0, gt=0.0)
    """How long these rows are kept."""
    notify: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses that get notifications of events, as Apprise writes them, for example `mailto://USER:PASSWORD@example.org` or
    `json://hooks.example.org/models`: a list; in the variable separated by blanks."""
    notify_on: Annotated[tuple[EventName, ...], NoDecode] = NOTIFIED
    """Events that are sent to these addresses: a list; in the variable separated by blanks."""
    webhooks: tuple[Webhook, ...] = ()
    """Receivers of events by HTTP, with signed requests: tables `[[webhooks]]`; in the variable a list as JSON."""
    webhook_days: float = Field(default=3.0, gt=0.0, le=30.0)
    """How long an event is sent to a webhook again and again; then it is dropped."""
    disk_reserve_bytes: int = Field(default=1024**3, ge=0)
    """Free disk space below which batches and feedback are refused with 507, and batches that were accepted wait."""
    train_nodes: int = Field(default=1, ge=1)
    """Machines that the processes of a training run are divided among."""
    train_rendezvous: str | None = None
    """Rendezvous endpoint `HOST:PORT` of the machine that runs `headrace`. The port is open to the network during training."""
    tracking_uri: str | None = None
    """MLflow's tracking and registry URI; by default SQLite in `mlruns/`."""

    @property
    def is_loopback(self) -> bool:
        """Whether servers can be reached from this machine only."""
        return is_loopback(self.host)

    @property
    def mlflow_address(self) -> str:
        """Where MLflow's pages are on this machine."""
        return f"http://{LOOPBACK}:{self.mlflow_port}"

    @property
    def prefect_address(self) -> str:
        """Where Prefect's pages are on this machine; its API is below `/api`."""
        return f"http://{LOOPBACK}:{self.prefect_port}"

    @field_validator("notify", mode="before")
    @classmethod
    def _split_addresses(cls, notify: Any) -> Any:
        found = notify
        if isinstance(notify, str):  # one process passes the settings on to another as JSON
            found = json.loads(notify) if notify.startswith("[") else notify.split()
        if isinstance(found, list | tuple) and (wrong := [one for one in found if "://" not in str(one)]):
            raise ValueError(f"expected addresses such as mailto://USER:PASSWORD@example.org; entry {len(wrong)} has no ://")
        return found

    @field_validator("notify_on", mode="before")
    @classmethod
    def _split_events(cls, events: Any) -> Any:
        if isinstance(events, str):
            events = json.loads(events) if events.startswith("[") else events.split()
        return known_events(events)

    @field_validator("webhooks")
    @classmethod
    def _check_names(cls, webhooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
        names = [webhook.name for webhook in webhooks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two webhooks have the name {twice[0]!r}")
        return webhooks

    @model_validator(mode="after")
    def _check_combinations(self) -> Settings:
        if self.access == "open" and not self.is_loopback:
            raise ValueError(f"access: 'open' would admit the whole network at host {self.host!r}; set access to 'tokens'")
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


def known_events(names: Any) -> Any:
    """Checks a list of names of events.

    Raises:
        ValueError: one is unknown; with the near miss.
    """
    for name in names if isinstance(names, list | tuple) else ():
        if name not in EVENT_NAMES:
            raise ValueError(f"unknown event {name!r}; {near_miss(str(name), EVENT_NAMES)}")
    return names


def is_loopback(host: str) -> bool:
    """Whether a host name or address is of the loopback interface."""
    return host in ("localhost", "::1") or host.startswith("127.")


INTERNAL = frozenset(
    "ROOT STAGE_ERROR PARENT_PID SUPERVISED UMASK THREADS BODY_LIMIT_BYTES MAX_INSTANCES REQUIRE_DOCKER".split()  # noqa: SIM905
    + "TOKEN_KEYS USAGE QUOTAS REPLICA SHADOW GUARD LEDGER".split()  # noqa: SIM905
    + "LOG SLOW_SECONDS STUCK_SECONDS QUEUE_SECONDS".split()  # noqa: SIM905
    + "ADDRESS TOKEN BOOTSTRAP".split()  # noqa: SIM905
)
"""Names after `HEADRACE_` that are not settings: variables between processes, limits of replicas, and the address and token of
the Python client."""


PORTS = ("gateway_port", "gateway_admin_port", "mlflow_port", "prefect_port")
"""Settings that `headrace up` replaces by a free port where they are not given and the default is in use."""


WITH_SECRETS = ("notify", "webhooks")
"""Settings whose values may hold passwords and tokens: an error does not show them."""


def ports_file(root: Path) -> Path:
    """Where a project keeps the ports that were chosen for it."""
    return root / ".headrace" / "ports.json"


def read_kept_ports(root: Path) -> dict[str, int]:
    """
    Raises:
        DamagedFile: the file is not JSON, or holds something else than ports.
    """
    path, hint = ports_file(root), "headrace down; remove the file; headrace up (it chooses ports again)"
    found = read_json(path, hint)
    if found is None:
        return {}
    known = {*PORTS, *renamed.REMOVED_SETTINGS}  # an earlier version chose more of them
    if not isinstance(found, dict) or not all(name in known and type(port) is int for name, port in found.items()):
        raise DamagedFile(f"damaged file: expected a port for each of {', '.join(PORTS)}", where=str(path), hint=hint)
    return {name: port for name, port in found.items() if name in PORTS}


def load_settings(root: Path, with_kept_ports: bool = True) -> Settings:
    """Reads `headrace.toml` in `root`, if it exists; environment variables take precedence.

    Args:
        with_kept_ports: whether a port that neither gives is the one that was chosen for the project earlier, if any.

    Raises:
        SettingsError: an unknown or renamed setting, or an invalid value, with its field.
        DamagedFile: the chosen ports cannot be read.
    """
    _refuse_unknown_variables()
    kept = read_kept_ports(root) if with_kept_ports else {}

    class ProjectSettings(Settings):
        model_config = SettingsConfigDict(toml_file=root / "headrace.toml")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            found = super().settings_customise_sources(settings_cls, *sources, **named)
            return *found, InitSettingsSource(settings_cls, init_kwargs=dict(kept))

    try:
        return ProjectSettings()
    except ValidationError as error:
        raise SettingsError(
            "; ".join(_explain(mistake) for mistake in error.errors()),
            where="settings",
            hint="correct it in headrace.toml or in the environment (HEADRACE_<FIELD>)",
        ) from None
    except ValueError as error:  # tomllib's error: not valid TOML
        raise SettingsError(f"invalid TOML: {error}", where="headrace.toml", hint="edit headrace.toml") from None


def runs_as(runner: str) -> str:
    """The noun for replicas of a runner, for messages."""
    return "containers" if runner == "docker" else "processes"


def _refuse_unknown_variables() -> None:
    names = {name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        name = variable.removeprefix("HEADRACE_")
        if name == variable or name in names | INTERNAL:
            continue
        if new := renamed.SETTINGS.get(name.lower()):
            message, hint = f"{variable} was renamed to HEADRACE_{new.upper()}", f"unset {variable}, and use the new name"
        elif why := renamed.REMOVED_SETTINGS.get(name.lower()):
            message, hint = f"{variable} is not a setting any more: {why}", f"unset {variable}"
        else:
            known = {f"HEADRACE_{known}" for known in names}
            message, hint = (
                f"unknown setting {variable}; {near_miss(variable, known)}",
                f"unset {variable}, or correct its name",
            )
        raise SettingsError(message, where="environment", hint=hint)


def _explain(mistake: Any) -> str:
    field = ".".join(str(part) for part in mistake["loc"])
    value = mistake.get("input")
    if not field:  # two settings that contradict each other; the message names them
        return str(mistake["msg"]).removeprefix("Value error, ")
    if mistake["type"] == "extra_forbidden":
        if field in renamed.SETTINGS:
            return f"{field}: renamed to {renamed.SETTINGS[field]!r}"
        if field in renamed.REMOVED_SETTINGS:
            return f"{field}: no setting any more: {renamed.REMOVED_SETTINGS[field]}; remove the line"
        return f"{field}: unknown setting; {near_miss(field, Settings.model_fields)}"
    if isinstance(value, str) and (field, value) in renamed.SETTING_VALUES:
        return f"{field}: value {value!r} was renamed to {renamed.SETTING_VALUES[field, value]!r}"
    if field.split(".")[0] in WITH_SECRETS:
        return f"{field}: {mistake['msg']}"
    return f"{field}: {mistake['msg']} (got {value!r})"
