"""Samples processes from outside: their memory, start and end times, and commands."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.release_clone import has_token

INTERVAL_SECONDS = 0.05
SETTLED_SECONDS = 1.0
"""Until its exec, a new process has no environment or that of its parent."""
EVERY_NTH_WITH_PSS = 10
"""Reading PSS makes the kernel walk a process's pages; every half second it costs hardly anything."""
MB = 1e6

Command = tuple[str, ...]
NAMES = {
    "headrace.pipeline.stages": "shell of a stage",
    "-m flows": "flow",
    "headrace.services.authentication prefect": "prefect-server",
    "prefect worker": "prefect-worker",
    "deploy --all": "prefect deploy",
    "headrace.services.authentication mlflow": "mlflow",
    "bentos.serve": "replica",
    "supervisord": "supervisord",
    "bin/headrace": "headrace",
    "/envoy": "envoy",
    "headrace.services.api": "api-server",
    "headrace.services.watchdog": "watchdog",
    "headrace.services.up": "start in the background",
}
"""Part of a command, and the name of its process."""


@dataclass
class Memory:
    """Memory in bytes. `rss` counts a shared page in each process, `pss` divides it among them; 0 if not available."""

    rss: int = 0
    pss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss)

    def to_dict(self) -> dict[str, float]:
        return {"rss_mb": round(self.rss / MB, 1), "pss_mb": round(self.pss / MB, 1)}


@dataclass
class ObservedProcess:
    """One process: when it was first and last seen (seconds since the epoch), and its commands with their times."""

    pid: int
    began_at: float
    last_at: float
    commands: list[tuple[float, Command]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Lifetime in seconds; on average half an interval is missed at either end."""
        return self.last_at - self.began_at + INTERVAL_SECONDS

    @property
    def name(self) -> str:
        return name_of(self.commands[-1][1])


class ProcessMonitor(threading.Thread):
    """Samples every process that has a token, 20 times a second, until the block ends."""

    def __init__(self, token: str) -> None:
        super().__init__(daemon=True)
        self.seen: dict[int, ObservedProcess] = {}
        self.peak = Memory()
        """The highest sum over all processes at one moment; the peaks of `rss` and `pss` may be at different moments."""
        self.at_peak: dict[str, float] = {}
        """MB of PSS (or RSS, if PSS is not available) of each process at the peak."""
        self._token = token
        self._members: dict[int, psutil.Process] = {}
        self._other_pids: set[int] = set()
        self._stopped = threading.Event()
        self._cpu: dict[int, tuple[float, float]] = {}
        """CPU seconds of each process when it was first and last seen."""
        self.others = 0.0
        """Share of this machine's CPU time that all other processes took, 0 to 1."""

    def __enter__(self) -> ProcessMonitor:
        self._begun = time.monotonic(), _busy_seconds()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()
        wall, busy = time.monotonic() - self._begun[0], _busy_seconds() - self._begun[1]
        own = sum(last - first for first, last in self._cpu.values())
        self.others = max(0.0, busy - own) / (wall * (psutil.cpu_count() or 1))

    def run(self) -> None:
        turn = 0
        while not self._stopped.wait(INTERVAL_SECONDS):
            self._find_new()
            self._sample(with_pss=turn % EVERY_NTH_WITH_PSS == 0)
            turn += 1

    def _find_new(self) -> None:
        """Finds new processes. An environment is read once: children inherit the token, and exec keeps it."""
        alive = set(psutil.pids())
        self._other_pids &= alive
        for pid in alive - self._members.keys() - self._other_pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if has_token(process, self._token):
                    self._members[pid] = process
                elif time.time() - process.create_time() > SETTLED_SECONDS:
                    self._other_pids.add(pid)

    def _sample(self, with_pss: bool) -> None:
        now, found = time.time(), {}
        for pid, process in list(self._members.items()):
            try:
                command = tuple(process.cmdline())
                if not command or not process.is_running():  # a zombie has none
                    raise psutil.NoSuchProcess(pid)
                found[pid] = memory_of([process], with_pss)
                used = process.cpu_times()
                cpu = used.user + used.system
            except psutil.Error:
                del self._members[pid]
                continue
            # A process older than the monitor has used CPU time before; a new one has used all of its time since.
            began = cpu if pid not in self._cpu and process.create_time() < now - 1.0 else 0.0
            self._cpu[pid] = (self._cpu.get(pid, (began, began))[0], cpu)
            seen = self.seen.setdefault(pid, ObservedProcess(pid, now, now))
            seen.last_at = now
            if not seen.commands or seen.commands[-1][1] != command:
                seen.commands.append((now, command))
        total = sum(found.values(), Memory())
        if total.pss > self.peak.pss or (not self.peak.pss and total.rss > self.peak.rss):
            self.at_peak = {}
            for pid, memory in found.items():
                name = self.seen[pid].name
                self.at_peak[name] = round(self.at_peak.get(name, 0.0) + (memory.pss or memory.rss) / MB, 1)
        self.peak = Memory(max(self.peak.rss, total.rss), max(self.peak.pss, total.pss))


def _busy_seconds() -> float:
    """Returns the busy seconds of all CPUs since the machine started; the time of guests is part of `user`."""
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in ("idle", "iowait", "guest", "guest_nice")))


def memory_of(processes: Sequence[psutil.Process], with_pss: bool = True) -> Memory:
    """Returns the sum over `processes`; a process that has ended counts as 0."""
    total = Memory()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            pss = getattr(process.memory_full_info(), "pss", 0) if with_pss else 0
            total += Memory(process.memory_info().rss, pss)
    return total


def process_tree(pid: int) -> list[psutil.Process]:
    """Returns a process and its descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def name_of(command: Command) -> str:
    """Returns a readable name for a process."""
    text = " ".join(command)
    if "headrace.pipeline.stages" in command[:-1]:
        return f"stage {command[command.index('headrace.pipeline.stages') + 1]}"
    return next((name for part, name in NAMES.items() if part in text), Path(command[0]).name)
