"""Packs what cannot be created again of the released project: `trim`, `keep_running` and `pack`."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path

from fixture_recipes import RECIPES

ROOT_WAS = "/headrace-before-the-move"
"""Replaces the project's folder in the fixture."""
RUNNING = ("door", "replicas", "supervisor/programs")
"""Parts of `.headrace` while all models are served: what a newer version finds in a project that runs."""
KEPT = ("bentoml/bentos", "bentoml/models", "keys", "guard", "door/models.json", "usage")
"""Parts of `.headrace` that a rollback, a replica or the gateway reads. Everything else is created again when it is missing."""


LEFT = (
    *(".headrace", "artifacts", "mlruns", ".git", ".dvc/tmp", ".dvc/cache"),
    *("headrace", "flows", "tasks", "bentos", "deploy", "pyproject.toml", "prefect.yaml"),
)
"""Parts of the project that are kept in part, and the code, which an upgrade replaces. Git has it."""


def trim(root: Path, place: Path) -> None:
    """Copies the project without what can be created again."""
    state = root / ".headrace"
    left = {str(root / name) for name in LEFT}
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        root, place, ignore=lambda folder, names: {n for n in names if str(Path(folder, n)) in left} | ignore(folder, names)
    )
    for name in KEPT:
        if (state / name).is_dir():
            shutil.copytree(state / name, place / ".headrace" / name, ignore=ignore)
        elif (state / name).exists():
            (place / ".headrace" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(state / name, place / ".headrace" / name)
    _keep_data(root / ".dvc" / "cache" / "files" / "md5", place / ".dvc" / "cache" / "files" / "md5")
    _keep_registry(root, place)
    _keep_git(root, place)
    was = str(root)
    for path in [p for p in place.rglob("*") if p.is_file() and ".git" not in p.parts]:
        content = path.read_bytes()
        if was.encode() in content and path.suffix != ".db":
            path.chmod(0o644)
            path.write_bytes(content.replace(was.encode(), ROOT_WAS.encode()))
            print("has the folder's name in it:", path.relative_to(place), flush=True)


def _keep_data(cache: Path, place: Path) -> None:
    """Keeps the versions of `data/` in DVC's cache; outputs of stages are created again."""
    for tree in sorted(cache.glob("??/*.dir")):
        entries = json.loads(tree.read_text())
        if all(entry["relpath"].partition("/")[0] in RECIPES for entry in entries):
            for file in [tree, *(cache / e["md5"][:2] / e["md5"][2:] for e in entries)]:
                kept = place / file.relative_to(cache)
                kept.parent.mkdir(parents=True, exist_ok=True)
                if not kept.exists():
                    shutil.copyfile(file, kept)


def _keep_registry(root: Path, place: Path) -> None:
    """Keeps journal, audit log, the registry's database in one file, and the models' files."""
    (place / "mlruns").mkdir()
    for path in (root / "mlruns").glob("*.jsonl"):
        shutil.copyfile(path, place / "mlruns" / path.name)
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as source, sqlite3.connect(place / "mlruns" / "mlflow.db") as kept:
        source.backup(kept)
    kept = sqlite3.connect(place / "mlruns" / "mlflow.db", isolation_level=None)
    tables = [name for (name,) in kept.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        for _, column, kind, *_ in kept.execute(f"PRAGMA table_info({table})").fetchall():
            if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                changed = kept.execute(
                    f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE instr({column}, ?) > 0",
                    (str(root), ROOT_WAS, str(root)),
                ).rowcount
                if changed:
                    print(f"has the folder's name in it: mlflow.db {table}.{column}, {changed} rows", flush=True)
    kept.execute("PRAGMA journal_mode=DELETE")
    kept.execute("VACUUM")
    kept.close()
    shutil.copytree(root / "mlruns" / "artifacts", place / "mlruns" / "artifacts", ignore=shutil.ignore_patterns("*.png"))


def _keep_git(root: Path, place: Path) -> None:
    """Keeps one pack without compression: the archive compresses it together with the same text elsewhere."""
    shutil.copytree(root / ".git", place / ".git", ignore=shutil.ignore_patterns("logs", "hooks", "COMMIT_EDITMSG"))
    for command in (
        ["-c", "pack.compression=0", "repack", "-adfq", "--window=0", "--depth=0"],
        ["prune-packed", "-q"],
        ["reset", "-q"],
    ):
        subprocess.run(["git", "-C", str(place), *command], check=True)


def keep_running(root: Path, running: Path, place: Path) -> None:
    """Copies files of the project while it served, as examples of their form: without this machine's folders."""
    shutil.copytree(running, place)
    for path in [p for p in place.rglob("*") if p.is_file()]:
        text = path.read_text().replace(str(root), ROOT_WAS).replace(sys.prefix, "/environment")
        path.write_text(re.sub(r"/[\w/.-]*/headrace-\d+-[0-9a-f]{12}", "/headrace-runtime", text))


def pack(place: Path, archive: Path) -> None:
    """Packs with equal times and owners, in the order of names; the window of `.xz` holds all of it."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 1_767_225_600
        return entry

    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 64 * 2**20}]
    with (
        lzma.open(archive, "wb", filters=filters) as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(place.rglob("*"), key=lambda p: (p.name, str(p))):  # files of one name are next to each other
            tar.add(path, path.relative_to(place), recursive=False, filter=plain)
