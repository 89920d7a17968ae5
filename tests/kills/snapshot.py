"""A copy of what a project's releases have made, to put it back before the next kill while the servers go on."""

from __future__ import annotations

import contextlib
import errno
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from headrace.project import Project
from headrace.release import deploy
from headrace.serving.gateway import gateway
from headrace.serving.replicas import runners
from headrace.serving.rollout import rolling
from tests.kills.scenarios import RECIPE, RESULTS

OF_PROJECT = (
    *("data", "data.dvc", "dvc.lock", "dvc.yaml", "artifacts", "mlruns", ".dvc/cache", ".headrace", RESULTS),
    f"recipes/{RECIPE}.yaml",
)
OF_SERVERS = {
    *("gateway", "locks", "logs", "login", "prefect", "process", "quotas", "replicas", "run", "sockets", "supervisor"),
    *("tls", "token-keys", "usage"),
}
"""Parts of `.headrace` that servers and replicas hold open; a release makes nothing in them that a later one would miss."""
DATABASE = "mlflow.db"


@dataclass(frozen=True)
class Snapshot:
    """A copy in `folder` of what releases have made in `project`."""

    project: Project
    folder: Path

    def take(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in OF_PROJECT:
            _copy(self.project.root / name, self.folder / name)
        _copy_database(self.project.mlruns / DATABASE, self.folder / "mlruns" / DATABASE)

    def restore(self) -> None:
        """Puts the copy back, and serves what it says; the project's services run."""
        self._stop_serving()
        for name in OF_PROJECT:
            _remove(self.project.root / name)
            _copy(self.folder / name, self.project.root / name)
        _copy_database(self.folder / "mlruns" / DATABASE, self.project.mlruns / DATABASE)
        deploy.serve_production(self.project, lambda line: None)

    def _stop_serving(self) -> None:
        runner = runners.runner_for(self.project)
        for model in {*gateway.read_routes(self.project), *(replica.model for replica in runner.list())}:
            rolling.remove(model, self.project, runner, lambda line: None)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, ignore=_left_out, dirs_exist_ok=True)


def _remove(place: Path) -> None:
    if place.is_file():
        place.unlink()
        return
    for path in place.glob("*"):
        if path.name in _left_out(str(place), [path.name]):
            continue
        if path.is_dir() and not path.is_symlink():
            _remove_folder(path)
        else:
            path.unlink()


def _remove_folder(path: Path) -> None:
    """Removes a folder into which a process that delivers events may write meanwhile."""
    for last in (False, False, False, True):
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if last or error.errno != errno.ENOTEMPTY:
                raise
            time.sleep(0.5)


def _left_out(folder: str, names: list[str]) -> set[str]:
    if Path(folder).name == ".headrace":
        return OF_SERVERS & set(names)
    return {name for name in names if name.startswith(DATABASE)}


def _copy_database(source: Path, target: Path) -> None:
    """Copies its content; programs that have it open see the new one."""
    old, new = sqlite3.connect(source, timeout=60), sqlite3.connect(target, timeout=60)
    with contextlib.closing(old), contextlib.closing(new):
        old.backup(new)
