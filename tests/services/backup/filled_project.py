"""A project with some of every state that cannot be made again, made by the product's own writers, without services."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.data.versions import track
from headrace.project import Project
from headrace.release import journal
from headrace.runtime.usage import UsageWriter
from headrace.services.api.batch_store import BatchStore, Submitted, batch_id
from headrace.services.feedback_store import FeedbackStore, Truth
from headrace.serving.access import audit, tls, tokens
from headrace.tracking.database import initialise_tracking
from tests.projects import CODE, git, make_project

BENTO = "tiny:1-0a1b2c3d"


def make_filled_project(root: Path) -> Project:
    """Has registry, journal, keys, usage, feedback, a batch, quotas, bentos, data, settings, and a recipe outside of git."""
    project = make_project(root)
    initialise_tracking(project)
    artifact = project.mlruns / "artifacts" / "1" / "model.onnx"
    artifact.parent.mkdir(parents=True)
    artifact.write_bytes(bytes(range(256)) * 400)
    journal.record(project, "released", "tiny", "1", {"bento": BENTO, "runner": "process"})
    audit.record(project, "run", {"recipe": "tiny"})
    tokens.prepare_tokens(project)
    tls.prepare_certificate(project)
    add_usage(project, "tiny-v1-0000", rows=3)
    feedback = FeedbackStore(project, 90)
    feedback.add([Truth("acme", "tiny", "1", "r1", 0, "big")], None)
    feedback.close()
    add_batch(project)
    project.quotas.mkdir()
    (project.quotas / "rows-2026-01-01.bin").write_bytes(bytes(512))
    for store in ("bentos", "models"):
        for version in (BENTO.partition(":")[2], "2-ffffffff"):
            folder = project.bentoml_home / store / "tiny" / version
            folder.mkdir(parents=True)
            (folder / "file").write_text(f"{store} {version}")
    (project.state / "prefect").mkdir()
    add_rows(project.state / "prefect" / "prefect.db", 1)
    table = pa.Table.from_pandas(pd.DataFrame({"a": range(1000)}))
    project.raw_data("tiny").mkdir(parents=True)
    pq.write_table(table, project.raw_data("tiny") / "0000-first.parquet")
    track(project)
    git(root, "add", "data.dvc")
    git(root, "commit", "--quiet", "--message", "data")
    (root / "headrace.toml").write_text("drain_seconds = 5.0\n")
    (project.recipes / "new.yaml").write_text("name: new\n")
    (root / "my_model.py").write_text("WIDTH = 3\n")
    (project.logs).mkdir(exist_ok=True)
    (project.logs / "envoy.log").write_text("a log\n")
    return project


def clone_of(project: Project, root: Path) -> Project:
    """A fresh clone of the project's repository."""
    git(project.root, "clone", "--quiet", str(project.root), str(root))
    return Project(root)


def add_usage(project: Project, replica: str, rows: int) -> None:
    (project.usage / replica).mkdir(parents=True, exist_ok=True)
    writer = UsageWriter(project.usage / replica)
    writer.add("acme", "tiny", rows)
    writer.close()


def add_batch(project: Project) -> None:
    store = BatchStore(project)
    store.open()
    incoming = store.incoming()
    (incoming / "input").write_bytes(b"{}\n")
    sha256 = hashlib.sha256(b"{}\n").hexdigest()
    name = batch_id("acme", "tiny", "key")
    store.accept(incoming, Submitted(name, "tiny", "acme", "jti", None, "application/x-ndjson", 3, sha256, 1.0))


def add_rows(database: Path, count: int) -> None:
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS tried (n INTEGER)")
        connection.executemany("INSERT INTO tried VALUES (?)", [(n,) for n in range(count)])
    connection.close()


def contents(root: Path) -> dict[str, tuple[int, str]]:
    """Mode and sha256 of every file below a folder, without code, git's own files and locks."""
    left_out = {".git", *(name for name in CODE if "." not in name)}
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mode & 0o777, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in left_out and path.suffix != ".lock"
    }
