"""A worker process: `python -m headrace.training.worker`, started by `launch.py`.

It joins the process group and trains. Its exit code tells the agent whether a restart would help.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import permissions, processes
from headrace.errors import HeadraceError
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.training.worker_exit import FAILED, INTERRUPTED, PEER_LOST, error_file, log_file

if TYPE_CHECKING:
    from headrace.training.parallel import ProcessGroup

CLOSE_SECONDS = 10.0
"""Time that a process with an error gives the main one, which may have the same error, to close its MLflow run."""
LOST = (
    *("gloo", "nccl", "broken pipe", "socket closed"),
    *("connection closed by peer", "connection reset by peer", "connection refused"),
)
"""In messages of gloo, NCCL and torch's stores when another process is gone. Those of gloo have its source file's path."""


def main(arguments: list[str]) -> int:
    """Trains a recipe.

    Args:
        arguments: the recipe's name, the project's root, the file for the rendezvous of the processes of one machine or `-`,
            and `main` if the main process is on this machine.
    """
    name, root, rendezvous, role = arguments
    processes.die_with_parent(os.getppid())
    processes.interrupt_on_signals()
    project = Project(Path(root))
    folder = project.state / "processes" / name
    try:
        work(load_recipe(name, project), project, None if rendezvous == "-" else Path(rendezvous), role == "main")
        return 0
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code == FAILED:
            with contextlib.suppress(KeyboardInterrupt):
                save_error(error, folder)
                if os.environ["RANK"] != "0":
                    time.sleep(CLOSE_SECONDS)
        return code


def work(recipe: Recipe, project: Project, rendezvous: Path | None, may_be_main: bool) -> None:
    """Joins the process group and trains."""
    import torch.distributed as dist

    from headrace.training.run import train

    group = join(recipe, rendezvous, may_be_main)
    try:
        train(recipe, project, group)
    finally:
        dist.destroy_process_group()


def join(recipe: Recipe, rendezvous: Path | None, may_be_main: bool) -> ProcessGroup:
    """Joins the process group: through a file on one machine, at torchrun's address on several.

    Raises:
        TrainingError: this machine lacks the device.
    """
    import torch
    import torch.distributed as dist

    from headrace.training.device import choose_device
    from headrace.training.parallel import ProcessGroup

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    device = choose_device(recipe.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if rendezvous is None:
        dist.init_process_group(backend, rank=rank, world_size=size)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
        path = f"{rendezvous}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
        store = dist.FileStore(path, size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return ProcessGroup(recipe.train.strategy, device, may_be_main)


def loopback() -> str:
    """Returns the name of the loopback network interface."""
    import psutil

    return next(name for name, held in psutil.net_if_addrs().items() if "127.0.0.1" in {one.address for one in held})


def exit_code(error: BaseException) -> int:
    """Returns what ended this process: SIGTERM, another process that was lost, or the training itself.

    What happened first counts: closing the MLflow run or the process group may fail as well, and that error would hide it.
    """
    chain = causes(error)
    if any(isinstance(one, KeyboardInterrupt) for one in chain):
        return INTERRUPTED
    return PEER_LOST if any(is_lost(one) for one in chain) else FAILED


def causes(error: BaseException) -> list[BaseException]:
    """Returns the error and all that were being handled when it was raised, also those hidden by `from None`."""
    found: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__context__, one.__cause__]
    return found


def is_lost(error: BaseException) -> bool:
    """Returns whether `error` means that another process was lost; gloo and NCCL have no exception classes for that."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, HeadraceError)
        and any(message in str(error).lower() for message in LOST)
    )


def save_error(error: BaseException, folder: Path) -> None:
    """Saves an error that the user can fix for the launching process, and any other with its traceback."""
    known = processes.as_headrace_error(error) if isinstance(error, Exception) else None
    if known is not None:
        write_json(error_file(folder), known.to_dict())
    else:
        folder.mkdir(parents=True, exist_ok=True)
        log_file(folder, int(os.environ["RANK"])).write_text("".join(traceback.format_exception(error)), encoding="utf-8")


if __name__ == "__main__":
    permissions.set_private_umask()
    processes.raise_gc_threshold()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the process group may still wait for lost processes
