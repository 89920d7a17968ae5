"""Creates a temporary clone of the project with free ports and this interpreter's packages, and removes it at the end."""

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
"""Environment variable that every process of the clone inherits, so that its processes can be found and stopped."""
COMMAND_SECONDS = 900.0
TINY = ("recipes/tiny.yaml", "tiny.csv")
"""The recipe and data of `--quick`. The benchmark writes them, so they are not in git."""
PASSED_THROUGH = ("HEADRACE_BASE_IMAGE", "HEADRACE_DOCKER_HOST")
"""Settings of the container engine; the clone takes them from this environment, and no others."""


@dataclass
class CompletedCommand:
    """A command that succeeded."""

    seconds: float
    started_at: float
    """Seconds since the epoch, like `ended_at`."""
    ended_at: float
    pid: int
    stdout: str
    stderr: str


@dataclass
class Clone:
    """The clone; runs commands in it."""

    root: Path
    token: str
    ports: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def project(self) -> Project:
        return Project(self.root)

    @property
    def settings(self) -> Settings:
        """Settings of the commands in the clone."""
        numbers = {name.removeprefix("HEADRACE_").lower(): int(port) for name, port in self.ports.items()}
        kept = {name.removeprefix("HEADRACE_").lower(): os.environ[name] for name in PASSED_THROUGH if name in os.environ}
        return Settings.model_validate({**numbers, **kept})

    @property
    def environment(self) -> dict[str, str]:
        foreign = ("HEADRACE_", "PREFECT_", "MLFLOW_", "BENTOML_", "PYTHON")
        clean = {name: value for name, value in os.environ.items() if name in PASSED_THROUGH or not name.startswith(foreign)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        # PYTHONPATH comes before an editable installation, so that the clone's code runs.
        return {**clean, **self.ports, "PATH": path, "PYTHONPATH": str(self.root), TOKEN: self.token}

    def headrace(self, *arguments: str) -> CompletedCommand:
        """Runs `headrace ARGUMENTS`.

        Raises:
            HeadraceError: the command failed or took longer than fifteen minutes.
        """
        return self.run(str(Path(sys.executable).with_name("headrace")), *arguments)

    def run(self, *command: str) -> CompletedCommand:
        """Runs a command in the clone, in a new process group, and waits for it.

        Raises:
            HeadraceError: the command failed or took longer than fifteen minutes; the message has its last output.
        """
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            started_at = time.time()
            start = time.perf_counter()
            process = self.start(*command, stdout=out, stderr=err)
            try:
                code = process.wait(COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                code = -1
            finally:
                seconds, ended_at = time.perf_counter() - start, time.time()
                self.end(process)
            out.seek(0), err.seek(0)
            stdout, stderr = out.read().decode(errors="replace"), err.read().decode(errors="replace")
        if code != 0:
            raise HeadraceError(
                f"`{' '.join(command)}` ended with exit code {code} after {seconds:.0f} s:\n{(stdout + stderr)[-3000:]}",
                where=str(self.root),
                hint="run it manually in a clone to see why",
            )
        return CompletedCommand(seconds, started_at, ended_at, process.pid, stdout, stderr)

    def start(self, *command: str, environment: dict[str, str] | None = None, **options: object) -> subprocess.Popen[bytes]:
        """Starts a command in the clone; it is stopped with the clone at the latest."""
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
        """Stops a started command and its process group; servers that supervisord runs keep running."""
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

    def reset(self, keep_sources: bool) -> None:
        """Stops all services and removes all files that git did not create: data, caches, models and databases.

        Args:
            keep_sources: whether to keep the downloaded source archive.
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
        """Returns all running processes that were started in the clone."""
        return [process for process in psutil.process_iter() if has_token(process, self.token)]


def has_token(process: psutil.Process, token: str) -> bool:
    """Returns whether the process inherited `token`."""
    try:
        return process.environ().get(TOKEN) == token
    except (psutil.Error, OSError):
        return False


@contextmanager
def temporary_clone() -> Iterator[Clone]:
    """Clones this checkout's last commit into a temporary folder; at the end stops its processes and removes it.

    Raises:
        UsageError: the checkout is not a git repository.
    """
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-")).resolve()
    clone = Clone(folder / "clone", secrets.token_hex(8), _free_ports())
    try:
        _git(folder, "clone", "--quiet", "--no-hardlinks", str(CHECKOUT), str(clone.root))
        yield clone
    finally:
        with _uninterrupted():
            _clean_up(clone)
            shutil.rmtree(folder, ignore_errors=True)


def commit() -> str:
    """Returns the commit that is measured, with a note if the checkout has uncommitted changes."""
    found = _git(CHECKOUT, "rev-parse", "--short=10", "HEAD")
    changed = _git(CHECKOUT, "status", "--porcelain", "--untracked-files=no")
    return found + (" (the checkout's uncommitted changes are not in it)" if changed else "")


def _clean_up(clone: Clone) -> None:
    for started in list(clone.started):
        clone.end(started)
    if clone.project.state.is_dir():
        with contextlib.suppress(HeadraceError):
            clone.headrace("down")
    left = clone.processes()
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    shutil.rmtree(clone.project.runtime_dir, ignore_errors=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignores a second Ctrl-C during the cleanup."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports() -> dict[str, str]:
    start = random.randrange(24000, 29000, 100)
    ports = {}
    for name in ("GATEWAY_PORT", "GATEWAY_ADMIN_PORT", "MLFLOW_PORT", "PREFECT_PORT"):
        ports[f"HEADRACE_{name}"] = str(start := next_free(start + 1))
    return ports


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(
            f"git {arguments[0]} failed: {done.stderr.strip()[-500:]}",
            where=str(folder),
            hint="run the benchmark in a git clone of the project",
        )
    return done.stdout.strip()
