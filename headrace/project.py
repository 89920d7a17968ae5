"""Where things lie. One `Project` a clone; every path of the house is named here and nowhere else."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import UsageError


@dataclass(frozen=True)
class Project:
    """The folder that holds `recipes/` and `dvc.yaml`, and the places beneath it."""

    root: Path

    @property
    def recipes(self) -> Path:
        return self.root / "recipes"

    @property
    def data(self) -> Path:
        """Raw data, versioned by DVC as a whole (`data.dvc`)."""
        return self.root / "data"

    @property
    def state(self) -> Path:
        """What a running Headrace keeps on this machine: logs, sockets, locks, configuration of servers."""
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
        """The last validation of a batch, or of all, whether it passed or not."""
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
    def journal(self) -> Path:
        return self.mlruns / "journal.jsonl"

    @property
    def token_keys(self) -> Path:
        """Public keys and ids of revoked tokens, with which replicas verify tokens. Nothing in it is secret."""
        return self.state / "token-keys"

    @property
    def keys(self) -> Path:
        """The key that signs tokens, and the operator's token: for this user alone."""
        return self.state / "keys"

    @property
    def tls(self) -> Path:
        """The project's own authority; clients trust `authority.pem`."""
        return self.state / "tls"

    @property
    def usage(self) -> Path:
        """What replicas count: one folder each, and the sums of those that are gone."""
        return self.state / "usage"

    @property
    def quotas(self) -> Path:
        """Where the replicas of this machine count daily quotas together."""
        return self.state / "quotas"

    @property
    def audit(self) -> Path:
        """Every administrative act, one line each."""
        return self.mlruns / "audit.jsonl"

    @property
    def bentoml_home(self) -> Path:
        return self.state / "bentoml"

    @property
    def wheelhouse(self) -> Path:
        """Wheels of the serving image; used offline when the folder is there."""
        return self.root / "wheelhouse"

    @property
    def runtime(self) -> Path:
        """Sockets, in a short path: a Unix socket's address may not exceed 107 bytes."""
        digest = hashlib.sha256(str(self.root).encode()).hexdigest()[:12]
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return Path(base) / f"headrace-{os.getuid()}-{digest}"

    def raw(self, recipe: str) -> Path:
        """`data/<recipe>/`: one Parquet file a batch, read in the order of their names."""
        return self.data / recipe

    def artifacts(self, recipe: str) -> Path:
        """Outputs of the stages in `dvc.yaml`."""
        return self.root / "artifacts" / recipe


def find_project(start: Path | None = None) -> Project:
    """The project around `start` (the working folder by default), or the one `HEADRACE_ROOT` names.

    Raises:
        UsageError: no folder upwards holds both `recipes/` and `dvc.yaml`.
    """
    named = os.environ.get("HEADRACE_ROOT")
    here = Path(named) if named else (start or Path.cwd())
    for folder in [here.resolve(), *here.resolve().parents]:
        if (folder / "recipes").is_dir() and (folder / "dvc.yaml").is_file():
            return Project(folder)
        if named:
            break
    raise UsageError(
        f"no Headrace project at {here}" + ("" if named else " or above it") + " (looked for recipes/ and dvc.yaml)",
        where="HEADRACE_ROOT" if named else None,
        hint="run the command inside a clone of the project, or set HEADRACE_ROOT to one",
    )
