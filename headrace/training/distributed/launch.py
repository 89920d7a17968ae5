"""Starts a training's processes on this machine by torchrun's agent, which starts all of them anew when one dies."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from headrace import console
from headrace.console import Report
from headrace.errors import HeadraceError, RecipeError, ServiceError, SettingsError, TrainingError
from headrace.files import read_cached_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.settings import Settings, load_settings
from headrace.training.device import choose_device
from headrace.training.distributed.worker import LOST, ROLE, error_file, log_file

MAX_RESTARTS = 3
JOIN_SECONDS = 1800
"""How long this machine waits for the others: the first of them may have to prepare the data."""
LOOPBACK = "127.0.0.1"


def launch(recipe: Recipe, project: Project, say: Report = console.report) -> None:
    """Trains by `train.processes`, as many on each machine as on the others; returns when all are done.

    Raises:
        RecipeError, SettingsError: the processes cannot be divided among the machines, or the GPUs do not suffice.
        ServiceError: the other machines did not come.
        HeadraceError: what the training itself says, as with one process.
    """
    settings = load_settings(project)
    here = processes_here(recipe, settings)
    folder = project.state / "processes" / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with quiet_torch(), usual_signals():
        handler, meeting, is_head = rendezvous(recipe, settings, folder)
        agent = Agent(worker_spec(recipe, project, here, handler, meeting, is_head), logs(here, folder), folder, say)
        try:
            result: RunResult | None = agent.run()
        except RendezvousError as error:
            raise not_all_came(settings, error) from None
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stopped.sigval) from None
        finally:
            handler.shutdown()
    if result is None or result.is_failed():
        raise why(result, folder, recipe, settings)
    shutil.rmtree(folder, ignore_errors=True)


def processes_here(recipe: Recipe, settings: Settings) -> int:
    """How many processes this machine starts.

    Raises:
        RecipeError, SettingsError: they cannot be divided among the machines, or there are too few GPUs.
    """
    here, rest = divmod(recipe.train.processes, settings.train_nodes)
    if rest:
        raise RecipeError(
            f"train.processes: {recipe.train.processes} cannot be divided among {settings.train_nodes} machines (train_nodes)",
            hint="set train.processes to a multiple of HEADRACE_TRAIN_NODES",
        )
    if settings.train_nodes > 1 and not settings.train_rendezvous:
        raise SettingsError(
            f"train_rendezvous: {settings.train_nodes} machines (train_nodes) have to know where they meet",
            hint="set it to an address of the machine that runs headrace, such as 10.0.0.1:29400, on all of them",
        )
    gpus = torch.cuda.device_count()
    if choose_device(recipe.train.device).type == "cuda" and here > gpus:
        raise RecipeError(
            f"train.processes: {here} would train on this machine, which has {gpus} GPUs; each process takes one",
            hint=f"set train.processes: {gpus * settings.train_nodes}, or train.device: cpu",
        )
    return here


class Agent(LocalElasticAgent):
    """Starts all processes again when one is lost; what a new start would not hint ends the training at once."""

    def __init__(self, spec: WorkerSpec, logs_specs: DefaultLogsSpecs, folder: Path, say: Report) -> None:
        super().__init__(spec, logs_specs, shutdown_timeout=10)
        self.folder = folder
        self.say = say

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            is_lost = all(failure.exitcode < 0 or failure.exitcode == LOST for failure in result.failures.values())
            if error_file(self.folder).exists() or not is_lost:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                self.say(f"{deaths(result, self._worker_group.workers[0].world_size)}: all go on from the last checkpoint")
        return result


def deaths(result: RunResult, size: int) -> str:
    """Which processes died, and how."""
    killed = {rank: failure for rank, failure in result.failures.items() if failure.exitcode < 0}
    if not killed:
        return "a process on another machine was lost"
    return ", ".join(f"process {rank + 1} of {size} was ended by {killed[rank].signal_name()}" for rank in sorted(killed))


def why(result: RunResult | None, folder: Path, recipe: Recipe, settings: Settings) -> HeadraceError:
    """What the training said, or what a process left when it failed; no result is what torch gives where another machine
    ended the training."""
    if left := read_cached_json(error_file(folder)):
        return HeadraceError.from_dict(left)
    if result is None:
        return not_all_came(settings, RuntimeError("another one ended the training"))
    for rank in sorted(result.failures):
        if (log := log_file(folder, rank)).exists():
            return TrainingError(
                f"process {rank + 1} of {recipe.train.processes} failed: {log.read_text().strip().splitlines()[-1]}",
                where=str(log),
                hint="read there where it happened; with train.processes: 1 the same is easier to follow",
            )
    return TrainingError(
        f"{deaths(result, recipe.train.processes)}, after {MAX_RESTARTS} new starts",
        hint="see whether its memory sufficed (dmesg), lower train.batch_size or train.processes; "
        "the same command goes on from the last checkpoint",
    )


def worker_spec(
    recipe: Recipe, project: Project, here: int, handler: RendezvousHandler, meeting: Path | None, is_head: bool
) -> WorkerSpec:
    arguments = (recipe.name, str(project.root), str(meeting or "-"), "head" if is_head else "-")
    return WorkerSpec(
        role=ROLE,
        local_world_size=here,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "headrace.training.distributed.worker", *arguments),
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.1,
    )


def logs(here: int, folder: Path) -> DefaultLogsSpecs:
    """The first process of this machine has the terminal; the others write to files."""
    return DefaultLogsSpecs(str(folder / "logs"), redirects=dict.fromkeys(range(1, here), Std.ALL))


class OneMachine(RendezvousHandler):
    """The meeting of one agent with itself: nothing listens on the network, as torch's own store would."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def get_backend(self) -> str:
        return "headrace"

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(LOOPBACK, 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nobody else waits."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        return True


def rendezvous(recipe: Recipe, settings: Settings, folder: Path) -> tuple[RendezvousHandler, Path | None, bool]:
    """Where agents meet, the file in which the processes of one machine meet, and whether this machine is the one that writes.

    Raises:
        SettingsError: the address is none.
        ServiceError: nothing answers there.
    """
    if settings.train_nodes == 1:
        return OneMachine(recipe.name), folder / "meeting", True
    host, _, port = str(settings.train_rendezvous).rpartition(":")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
        mine = address_towards(host, int(port))
    except (ValueError, OSError) as error:
        raise SettingsError(
            f"train_rendezvous: {settings.train_rendezvous!r} is no address that this machine can reach: {error}",
            hint="write host and port of the machine that runs headrace, such as 10.0.0.1:29400",
        ) from None
    is_head = mine in addresses
    use_interface_of(mine)
    # Torch would let the processes meet in one store after every new start, where those that died have left their addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=str(settings.train_rendezvous),
        run_id=recipe.name,
        min_nodes=settings.train_nodes,
        max_nodes=settings.train_nodes,
        local_addr=mine,
        join_timeout=JOIN_SECONDS,
        read_timeout=JOIN_SECONDS if not is_head else 60,
    )
    try:
        return get_rendezvous_handler(parameters), None, is_head
    except RendezvousError as error:
        raise not_all_came(settings, error) from None


def address_towards(host: str, port: int) -> str:
    """This machine's own address on the way to `host`; nothing is sent."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def use_interface_of(address: str) -> None:
    """Lets gloo and NCCL talk over the interface that has `address`, unless they were told of another."""
    import psutil

    for name, held in psutil.net_if_addrs().items():
        if address in {one.address.partition("%")[0] for one in held}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def not_all_came(settings: Settings, error: Exception) -> ServiceError:
    return ServiceError(
        f"{settings.train_nodes} machines were to meet, and did not: {str(error).splitlines()[0] or type(error).__name__}",
        where=f"train_rendezvous {settings.train_rendezvous}",
        hint="start the same training on all machines within half an hour of each other (docs/scaling.md)",
    )


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Torch's agent tells of every step and every death; ours are told in a line."""
    logger = logging.getLogger("torch.distributed.elastic")
    others = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(logger.name + ".")]
    before = [(one, one.level) for one in (logger, *others)]
    for one, _ in before:
        one.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in before:
            one.setLevel(level)


@contextmanager
def usual_signals() -> Iterator[None]:
    """Puts back the handlers that torch's agent replaces."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
