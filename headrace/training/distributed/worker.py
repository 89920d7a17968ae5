"""One of several processes of a training: `python -m headrace.training.distributed.worker`, as `launch.py` starts it.

It meets the others, trains its share, and says by its exit code whether a new start would help.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from headrace import processes
from headrace.errors import HeadraceError
from headrace.files import write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from headrace.training.distributed.parallel import Together

ROLE = "training"
STOP, LOST = 1, 75
"""Exit codes: a new start would end the same way; another process was lost."""
PATIENCE_SECONDS = 10.0
"""How long a process with an error waits for the first one to close what it has open, if it has the same error."""


def main(arguments: list[str]) -> int:
    """Trains its share of the recipe, in the project, as told by the file in which the processes meet and whether they may
    write what is written once."""
    name, root, meeting, may_write = arguments
    processes.die_with_parent(os.getppid())
    project = Project(Path(root))
    folder = project.state / "processes" / name
    try:
        work(load_recipe(name, project), project, None if meeting == "-" else Path(meeting), may_write == "head")
        return 0
    except KeyboardInterrupt:
        return STOP
    except Exception as error:
        if is_lost(error):
            return LOST
        leave_word(error, folder)
        if os.environ["RANK"] != "0":
            time.sleep(PATIENCE_SECONDS)
        return STOP


def work(recipe: Recipe, project: Project, meeting: Path | None, may_write: bool) -> None:
    """Meets the others and trains with them."""
    import torch.distributed as dist

    from headrace.training.run import train

    group = meet(recipe, meeting, may_write)
    try:
        train(recipe, project, group)
    finally:
        dist.destroy_process_group()


def meet(recipe: Recipe, meeting: Path | None, may_write: bool) -> Together:
    """Joins the others: through a file on one machine, at torchrun's address on several.

    Raises:
        TrainingError: no such device here.
    """
    import torch
    import torch.distributed as dist

    from headrace.training.device import choose_device
    from headrace.training.distributed.parallel import Together

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
    device = choose_device(recipe.train.device)
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if meeting is None:
        dist.init_process_group(backend, rank=rank, world_size=size)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
        place = f"{meeting}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
        store = dist.FileStore(place, size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    return Together(recipe.train.strategy, device, may_write)


def loopback() -> str:
    """The interface that leaves no packet out of this machine, as this system calls it."""
    import psutil

    return next(name for name, held in psutil.net_if_addrs().items() if "127.0.0.1" in {one.address for one in held})


def is_lost(error: Exception) -> bool:
    """Whether `error` says that another process does not answer; gloo and NCCL have no classes of their own for it."""
    import torch.distributed as dist

    names = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, HeadraceError)
        and any(name in str(error).lower() for name in names)
    )


def leave_word(error: Exception, folder: Path) -> None:
    """Leaves what a user can hint as the error it is, and anything else with its traceback."""
    known = processes.as_headrace_error(error)
    if known is not None:
        write_json(error_file(folder), known.to_dict())
    else:
        folder.mkdir(parents=True, exist_ok=True)
        log_file(folder, int(os.environ["RANK"])).write_text("".join(traceback.format_exception(error)), encoding="utf-8")


def error_file(folder: Path) -> Path:
    return folder / "error.json"


def log_file(folder: Path, rank: int) -> Path:
    return folder / f"process-{rank + 1}.log"


if __name__ == "__main__":
    processes.raise_gc_threshold()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of the processes' meeting may still wait for those that are gone
