"""Starts the processes of a training on this machine with torchrun's agent, which restarts all of them when one dies."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Collection, Iterator
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
from headrace.settings import Settings
from headrace.training.device import choose_device
from headrace.training.worker_exit import INTERRUPTED, PEER_LOST, ROLE, error_file, log_file

MAX_RESTARTS = 3
JOIN_SECONDS = 1800
"""How long this machine waits for the others; the first one may have to prepare the data."""
LOOPBACK = "127.0.0.1"
BY_SIGTERM = (-signal.SIGTERM, INTERRUPTED)


def launch(recipe: Recipe, project: Project, say: Report = console.report) -> None:
    """Trains with `train.processes` processes, the same number on each machine; returns when all are done.

    Raises:
        RecipeError, SettingsError: the processes cannot be divided among the machines, or there are too few GPUs.
        ServiceError: the other machines did not join.
        HeadraceError: the training failed, as with one process.
    """
    settings = project.settings
    here = processes_here(recipe, settings)
    folder = project.state / "processes" / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with quiet_torch(), signal_handlers_kept():
        handler, store, is_main = rendezvous(recipe, settings, folder)
        agent = Agent(worker_spec(recipe, project, here, handler, store, is_main), logs(here, folder), folder, say)
        try:
            result: RunResult | None = agent.run()
        except RendezvousError as error:
            raise not_all_joined(settings, error) from None
        except SignalException as stopped:
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + stopped.sigval) from None
        finally:
            handler.shutdown()
    if result is None or result.is_failed():
        raise failure_of(result, folder, recipe, settings)
    shutil.rmtree(folder, ignore_errors=True)


def processes_here(recipe: Recipe, settings: Settings) -> int:
    """Returns how many processes this machine starts.

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
            f"train_rendezvous: {settings.train_nodes} machines (train_nodes) need an address to meet at",
            hint="set it to an address of the machine that runs headrace, for example 10.0.0.1:29400, on all of them",
        )
    gpus = torch.cuda.device_count()
    if choose_device(recipe.train.device).type == "cuda" and here > gpus:
        raise RecipeError(
            f"train.processes: {here} processes would train on this machine, but it has {gpus} GPUs and each needs one",
            hint=f"set train.processes: {gpus * settings.train_nodes}, or train.device: cpu",
        )
    return here


class Agent(LocalElasticAgent):
    """Restarts all processes when one is lost; any other failure ends the training immediately.

    Overrides a private method of torch and sets a private attribute: `_monitor_workers` and `_remaining_restarts`.
    """

    def __init__(self, spec: WorkerSpec, logs_specs: DefaultLogsSpecs, folder: Path, say: Report) -> None:
        super().__init__(spec, logs_specs, shutdown_timeout=10)
        self.folder = folder
        self.say = say

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        dead = {worker.global_rank for worker in worker_group.workers if has_ended(worker.id)}
        result: RunResult = super()._monitor_workers(worker_group)  # when one is dead, this ends the others with SIGTERM
        if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
            if error_file(self.folder).exists() or not is_loss(result, dead):
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                for rank in result.failures:  # what they say follows from the loss
                    log_file(self.folder, rank).unlink(missing_ok=True)
                self.say(
                    f"{deaths(result, self._worker_group.workers[0].world_size)}: all processes resume from the last checkpoint"
                )
        return result


def has_ended(pid: int) -> bool:
    """Returns whether a child process has ended; torch has not read its exit code yet."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_loss(result: RunResult, dead: Collection[int]) -> bool:
    """Returns whether a process was lost, so that a restart helps, rather than the training having failed.

    A lost process makes the others fail with any error. One that fails makes the others see a loss, or be ended by the agent.

    Args:
        dead: ranks of the processes that had ended before the agent ended the others.
    """
    codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
    if any(codes.get(rank, 0) < 0 for rank in dead):
        return True
    return all(code < 0 or code in (PEER_LOST, INTERRUPTED) for code in codes.values())


def deaths(result: RunResult, size: int) -> str:
    """Describes which processes died, and how. SIGTERM comes from the agent if another signal killed one."""
    ended = {rank: failure.exitcode for rank, failure in result.failures.items() if failure.exitcode in BY_SIGTERM}
    killed = {
        rank: failure.signal_name() for rank, failure in result.failures.items() if failure.exitcode < 0 and rank not in ended
    }
    if not killed:
        killed = dict.fromkeys(ended, signal.SIGTERM.name)
    if not killed:
        return "a process on another machine was lost"
    return ", ".join(f"process {rank + 1} of {size} was killed by {name}" for rank, name in sorted(killed.items()))


def failure_of(result: RunResult | None, folder: Path, recipe: Recipe, settings: Settings) -> HeadraceError:
    """Returns the error that a process saved, or one that describes how processes ended. Torch returns no result if another
    machine ended the training."""
    if left := read_cached_json(error_file(folder)):
        return HeadraceError.from_dict(left)
    if result is None:
        return not_all_joined(settings, RuntimeError("another machine ended the training"))
    for rank in sorted(result.failures):
        if (log := log_file(folder, rank)).exists():
            return TrainingError(
                f"process {rank + 1} of {recipe.train.processes} failed: {log.read_text().strip().splitlines()[-1]}",
                where=str(log),
                hint="see the traceback there; train.processes: 1 makes the error easier to find",
            )
    return TrainingError(
        f"{deaths(result, recipe.train.processes)}, after {MAX_RESTARTS} restarts",
        hint="check whether memory ran out (dmesg), lower train.batch_size or train.processes; "
        "the same command resumes from the last checkpoint",
    )


def worker_spec(
    recipe: Recipe, project: Project, here: int, handler: RendezvousHandler, store: Path | None, is_main: bool
) -> WorkerSpec:
    arguments = (recipe.name, str(project.root), str(store or "-"), "main" if is_main else "-")
    return WorkerSpec(
        role=ROLE,
        local_world_size=here,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-m", "headrace.training.worker", *arguments),
        max_restarts=MAX_RESTARTS,
        monitor_interval=0.1,
    )


def logs(here: int, folder: Path) -> DefaultLogsSpecs:
    """Leaves the terminal to the first process of this machine; the others write to files."""
    return DefaultLogsSpecs(str(folder / "logs"), redirects=dict.fromkeys(range(1, here), Std.ALL))


class OneMachine(RendezvousHandler):
    """A rendezvous of a single agent, without the network port that torch's own store would open."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def get_backend(self) -> str:
        return "headrace"

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(LOOPBACK, 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Does nothing: there are no other agents."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        return True


def rendezvous(recipe: Recipe, settings: Settings, folder: Path) -> tuple[RendezvousHandler, Path | None, bool]:
    """Returns the rendezvous of agents, the file for that of the processes of one machine, and whether it is the main machine.

    Raises:
        SettingsError: the address cannot be reached.
        ServiceError: nothing answers there.
    """
    if settings.train_nodes == 1:
        return OneMachine(recipe.name), folder / "rendezvous", True
    host, _, port = str(settings.train_rendezvous).rpartition(":")
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
        mine = address_towards(host, int(port))
    except (ValueError, OSError) as error:
        raise SettingsError(
            f"train_rendezvous: {settings.train_rendezvous!r} is not an address that this machine can reach: {error}",
            hint="set it to host and port of the machine that runs headrace, for example 10.0.0.1:29400",
        ) from None
    is_main = mine in addresses
    use_interface_of(mine)
    # Torch would reuse one store after a restart, in which the processes that died have left their addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=str(settings.train_rendezvous),
        run_id=recipe.name,
        min_nodes=settings.train_nodes,
        max_nodes=settings.train_nodes,
        local_addr=mine,
        join_timeout=JOIN_SECONDS,
        read_timeout=JOIN_SECONDS if not is_main else 60,
    )
    try:
        return get_rendezvous_handler(parameters), None, is_main
    except RendezvousError as error:
        raise not_all_joined(settings, error) from None


def address_towards(host: str, port: int) -> str:
    """Returns this machine's address on the route to `host`, without sending anything."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))
        return str(probe.getsockname()[0])


def use_interface_of(address: str) -> None:
    """Makes gloo and NCCL use the network interface that has `address`, unless another one is configured."""
    import psutil

    for name, held in psutil.net_if_addrs().items():
        if address in {one.address.partition("%")[0] for one in held}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def not_all_joined(settings: Settings, error: Exception) -> ServiceError:
    return ServiceError(
        f"not all {settings.train_nodes} machines joined the training: {str(error).splitlines()[0] or type(error).__name__}",
        where=f"train_rendezvous {settings.train_rendezvous}",
        hint="start the same training on all machines within half an hour of each other (docs/scaling.md)",
    )


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silences torch's agent, which logs every step and every death; Headrace reports them in one line."""
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
def signal_handlers_kept() -> Iterator[None]:
    """Restores the signal handlers that torch's agent replaces."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
