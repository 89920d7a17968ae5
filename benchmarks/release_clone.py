"""A throw-away clone of the project: free ports, this interpreter's environment, and nothing left when the block ends."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from headrace.errors import HeadraceError, UsageError
from headrace.project import Project
from headrace.serving.replicas.ports import next_free
from headrace.settings import Settings

CHECKOUT = Path(__file__).resolve().parent.parent
TOKEN = "BENCHMARK_OF_A_RELEASE"
"""A variable that every process of the clone inherits: by it they are counted, and ended at the end."""
COMMAND_SECONDS = 900.0
TINY = ("recipes/tiny.yaml", "tiny.csv")
"""What `--quick` releases; written by the benchmark, so git does not know it."""
KEPT = ("HEADRACE_BASE_IMAGE", "HEADRACE_DOCKER_HOST")
"""Settings that say which container engine there is; all others are the clone's own."""


@dataclass
class Ran:
    """A command that ended well."""

    seconds: float
    started_at: float
    """Seconds since the epoch, as is `ended_at`."""
    ended_at: float
    pid: int
    stdout: str


@dataclass
class Clone:
    """The clone, and how commands run in it."""

    root: Path
    token: str
    ports: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def project(self) -> Project:
        return Project(self.root)

    @property
    def settings(self) -> Settings:
        """As the commands in the clone see them."""
        numbers = {name.removeprefix("HEADRACE_").lower(): int(port) for name, port in self.ports.items() if "[" not in port}
        first, last = self.ports["HEADRACE_REPLICA_PORTS"].strip("[]").split(",")
        kept = {name.removeprefix("HEADRACE_").lower(): os.environ[name] for name in KEPT if name in os.environ}
        return Settings.model_validate({**numbers, **kept, "replica_ports": (int(first), int(last))})

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("HEADRACE_", "PREFECT_", "MLFLOW_", "BENTOML_", "PYTHON")
        clean = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(foreign)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # PYTHONPATH goes before an editable installation: the code that runs is the clone's.
        return {**clean, **self.ports, "PATH": path, "PYTHONPATH": str(self.root), TOKEN: self.token}

    def headrace(self, *arguments: str) -> Ran:
        """Runs `headrace ARGUMENTS`.

        Raises:
            HeadraceError: as `run`.
        """
        return self.run(str(Path(sys.executable).with_name("headrace")), *arguments)

    def run(self, *command: str) -> Ran:
        """Runs a command in the clone to its end, in a process group of its own.

        Raises:
            HeadraceError: it failed, or took longer than fifteen minutes; with its last words.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            started_at = time.time()
            start = time.perf_counter()
            process = self.start(*command, stdout=out, stderr=said)
            try:
                code = process.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                seconds, ended_at = time.perf_counter() - start, time.time()
                self.end(process)
            out.seek(0), said.seek(0)
            stdout, stderr = out.read().decode(errors="replace"), said.read().decode(errors="replace")
        if code != 0:
            raise HeadraceError(
                f"`{' '.join(command)}` ended with {code} after {seconds:.0f} s:\n{(stdout + stderr)[-3000:]}",
                where=str(self.root),
                hint="run it by hand in a clone to see why",
            )
        return Ran(seconds, started_at, ended_at, process.pid, stdout)

    def start(self, *command: str, environment: dict[str, str] | None = None, **options: object) -> subprocess.Popen[bytes]:
        """Starts a command in the clone; it is ended with the clone at the latest."""
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            cwd=self.root,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )  # type: ignore[call-overload]
        self.started.append(process)
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends a started command and its process group; the servers that it left to supervisord go on."""
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process in self.started:
            self.started.remove(process)

    def forget(self, keep_sources: bool) -> None:
        """Makes the clone as git made it, with every service down: no data, no cache, no models, no databases.

        Args:
            keep_sources: whether the archive that the source names stays downloaded.
        """
        self.headrace("down")
        cache, aside = self.project.state / "cache", self.root.with_name(f"{self.root.name}-cache")
        if keep_sources and cache.is_dir():
            cache.rename(aside)
        _git(self.root, "checkout", "--quiet", "--", ".")
        _git(self.root, "clean", "--quiet", "-xdff", "--exclude=/wheelhouse", *(f"--exclude=/{path}" for path in TINY))
        if aside.is_dir():
            self.project.state.mkdir()
            aside.rename(cache)

    def processes(self) -> list[psutil.Process]:
        """Everything that was started in the clone and still runs."""
        return [process for process in psutil.process_iter() if carries(process, self.token)]


def carries(process: psutil.Process, token: str) -> bool:
    """Whether the process inherited `token`."""
    try:
        return process.environ().get(TOKEN) == token
    except (psutil.Error, OSError):
        return False


@contextmanager
def clone() -> Iterator[Clone]:
    """A clone of this checkout's last commit, in a new temporary folder; at the end all of it is stopped and removed.

    Raises:
        UsageError: the checkout is no git repository.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-")).resolve()
    made = Clone(folder / "clone", secrets.token_hex(8), _free_ports())
    try:
        _git(folder, "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), str(made.root))
        yield made
    finally:
        with _uninterrupted():
            _clear(made)
            shutil.rmtree(folder, ignore_errors=True)


def commit() -> str:
    """The commit that is measured; `and uncommitted changes, not measured` when the checkout differs from it."""
    found = _git(CHECKOUT, "rev-parse", "--short=10", "HEAD")
    changed = _git(CHECKOUT, "status", "--porcelain", "--untracked-files=no")
    return found + (" (the checkout's uncommitted changes are not in it)" if changed else "")


def _clear(made: Clone) -> None:
    for started in list(made.started):
        made.end(started)
    if made.project.state.is_dir():
        with contextlib.suppress(HeadraceError):
            made.headrace("down")
    left = made.processes()
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    shutil.rmtree(made.project.runtime_dir, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not keep the end from coming."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports() -> dict[str, str]:
    start = random.randrange(24000, 29000, 100)
    ports = {}
    for name in ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "MLFLOW_PORT", "PREFECT_PORT", "API_PORT"):
        ports[f"HEADRACE_{name}"] = str(start := next_free(start + 1))
    return {**ports, "HEADRACE_REPLICA_PORTS": f"[{start + 10},{start + 80}]"}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(
            f"git {arguments[0]} failed: {done.stderr.strip()[-500:]}",
            where=str(folder),
            hint="run the benchmark in a git clone of the project",
        )
    return done.stdout.strip()
