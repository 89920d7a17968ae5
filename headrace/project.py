"""The paths of a project. All paths inside a clone are defined here."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.files import remove_partial_files

if TYPE_CHECKING:
    from headrace.settings import Settings

WITHOUT_PARTIAL_FILES = ("usage", "quotas", "token-keys", "bentoml", "prefect", "logs")
"""Parts of `.headrace` without partial files of this machine: containers write the first three, with process ids of their
own."""
MODEL_RECORD = "source.json"
"""Beside a model that others trained: its source, sha256, names of files, licence, revision, labels."""


@dataclass(frozen=True)
class Project:
    """The folder with `recipes/` and `dvc.yaml`, and paths in it."""

    root: Path
    given: Settings | None = field(default=None, repr=False, compare=False)
    """Settings that replace those of `headrace.toml` and the environment."""

    @cached_property
    def settings(self) -> Settings:
        """Where and how things run: `headrace.toml` and `HEADRACE_...` variables, read once.

        Raises:
            SettingsError: an unknown or renamed setting, or an invalid value.
        """
        from headrace.settings import load_settings

        return self.given or load_settings(self.root)

    def using(self, settings: Settings) -> Project:
        """Returns the same project with other settings."""
        return Project(self.root, settings)

    @property
    def is_clone(self) -> bool:
        """Whether it is a clone of Headrace's repository, whose code the project then runs; other projects run the installed
        one."""
        return (self.root / "headrace" / "__init__.py").is_file()

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def data(self) -> Path:
        """Raw data, versioned by DVC as a whole (`data.dvc`)."""
        return self.root / "data"

    @property
    def state(self) -> Path:
        """State of the services on this machine: logs, locks, keys, configuration of servers."""
        return self.root / ".headrace"

    @property
    def quarantine(self) -> Path:
        """Batches that the data gate refused, each with its report."""
        return self.state / "quarantine"

    @property
    def data_docs(self) -> Path:
        """Great Expectations' Data Docs; `index.html` is the page to open."""
        return self.state / "data_docs"

    def validation_report(self, recipe: str) -> Path:
        """Report of the last validation, passed or not."""
        return self.state / "validation" / f"{recipe}.json"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def gateway(self) -> Path:
        """What the gateway serves (`models.json`), and the files that Envoy reads."""
        return self.state / "gateway"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def mlruns(self) -> Path:
        """MLflow's database and artifacts, and the release journal."""
        return self.root / "mlruns"

    @property
    def mlflow_database(self) -> Path:
        """MLflow's SQLite file."""
        return self.mlruns / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking URI: the setting, or the project's SQLite database."""
        return self.settings.tracking_uri or f"sqlite:///{self.mlflow_database}"

    @property
    def journal(self) -> Path:
        return self.mlruns / "journal.jsonl"

    @property
    def token_keys(self) -> Path:
        """Public keys and ids of revoked tokens, with which replicas verify tokens. Nothing in it is secret."""
        return self.state / "token-keys"

    @property
    def keys(self) -> Path:
        """The key that signs tokens, and the operator token; readable by this user only."""
        return self.state / "keys"

    @property
    def tls(self) -> Path:
        """The project's certificate authority; clients trust `authority.pem`."""
        return self.state / "tls"

    @property
    def usage(self) -> Path:
        """Usage: a folder per running replica, and the sums of the stopped ones."""
        return self.state / "usage"

    @property
    def quotas(self) -> Path:
        """Shared counters of daily quotas of all replicas on this machine."""
        return self.state / "quotas"

    @property
    def audit_log(self) -> Path:
        """The audit log: one line per administrative action."""
        return self.mlruns / "audit.jsonl"

    @property
    def bentoml_home(self) -> Path:
        return self.state / "bentoml"

    @property
    def restoring(self) -> Path:
        """Where `headrace restore` unpacks a backup; the folder exists only meanwhile, or after it was killed."""
        return self.root / ".headrace-restore"

    @property
    def wheelhouse(self) -> Path:
        """Wheels for the serving image; if the folder exists, images are built from it without network."""
        return self.root / "wheelhouse"

    @property
    def runtime_dir(self) -> Path:
        """supervisord's socket and pid file. In the project: every shell finds it, and no logout or cleaner removes it."""
        return self.state / "run"

    @property
    def sockets(self) -> Path:
        """Unix sockets of the API server and of replicas, in a folder that this user only can enter."""
        return self.state / "sockets"

    @property
    def api_socket(self) -> Path:
        """Where the API server listens."""
        return self.sockets / "api-server.sock"

    @property
    def label(self) -> str:
        """Marks processes and containers of this user and project."""
        return f"headrace-{os.getuid()}-{hashlib.sha256(str(self.root).encode()).hexdigest()[:12]}"

    @property
    def gateway_admin(self) -> Path:
        """The Unix socket of Envoy's admin interface, below a folder that this user only can enter."""
        return self.gateway / "admin.sock"

    def raw_data(self, recipe: str) -> Path:
        """`data/<recipe>/`: one Parquet file per batch, read in the order of their names."""
        return self.data / recipe

    def imported_model(self, recipe: str) -> Path:
        """The folder of a model that others trained, beside its batches if there are any."""
        return self.raw_data(recipe) / "model"

    def artifacts(self, recipe: str) -> Path:
        """Outputs of the stages in `dvc.yaml`."""
        return self.root / "artifacts" / recipe

    def remove_partial_files(self) -> None:
        """Removes the files that killed processes have not written to their end."""
        remove_partial_files(self.state, WITHOUT_PARTIAL_FILES)
        remove_partial_files(self.root / "artifacts")
        remove_partial_files(self.mlruns, ("artifacts",))


def find_project(start: Path | None = None) -> Project:
    """Returns the project that contains `start` (by default the working folder), or the one in `HEADRACE_ROOT`.

    Raises:
        UsageError: neither the folder nor one above it has both `recipes/` and `dvc.yaml`.
    """
    root = os.environ.get("HEADRACE_ROOT")
    start = Path(root) if root else (start or Path.cwd())
    for folder in [start.resolve(), *start.resolve().parents]:
        if (folder / "recipes").is_dir() and (folder / "dvc.yaml").is_file():
            return Project(folder)
        if root:
            break
    raise UsageError(
        f"no Headrace project at {start}" + ("" if root else " or above it") + " (searched for recipes/ and dvc.yaml)",
        where="HEADRACE_ROOT" if root else None,
        hint="headrace init NAME makes a project in the new folder NAME; run the command there, or set HEADRACE_ROOT to it",
    )
