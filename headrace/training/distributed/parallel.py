"""Several processes, each with a copy of the model (DDP) or with a part of every tensor of it (FSDP).

DDP: Li et al. 2020 (arXiv:2006.15704). FSDP: Zhao et al. 2023 (arXiv:2304.11277), here torch's second one, `fully_shard`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from headrace.console import Report
from headrace.errors import TrainingError
from headrace.models.served import ServedModel
from headrace.training.compiling import as_it_was
from headrace.training.distributed.shards import is_sharded
from headrace.training.distributed.single import Count, SingleProcess, cuda_rng_state, rows_of
from headrace.training.rows import Batch, Rows
from headrace.training.seeding import generator
from headrace.training.step import Objective, Step
from headrace.training.update import Update

ASK_EVERY = 16
"""Questions that a clock decides are put to the first process every so many times: each answer costs a message."""


class Together(SingleProcess):
    """One of the processes of torch's default group, which is there already."""

    def __init__(self, strategy: Literal["ddp", "fsdp"], device: torch.device, may_be_first: bool = True) -> None:
        """`may_be_first`: the lowest rank of those that may is the first process."""
        self.strategy = strategy
        self.device = device
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.first = self.told(may_be_first).index(True)
        self.is_first = self.rank == self.first
        self.asked = 0

    def told(self, what: Any) -> list[Any]:
        """What every process says, by rank."""
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, what)
        return said

    def begin(self, fingerprint: str, seed: int) -> None:
        if len(set(self.told(fingerprint))) > 1:
            raise TrainingError(
                "the machines see other data, code or settings than each other",
                hint="let all of them use the same project folder, or copies of it with the same prepared data",
            )
        if self.rank:  # other random numbers in each process, or all would drop the same features of different rows
            torch.manual_seed(generator(seed, "process", self.rank).initial_seed())

    def rows(self, of: int) -> slice:
        mine = rows_of(self.rank, self.size, of)
        return mine if mine.start < mine.stop else slice(0, 1)  # counts for nothing, and keeps step with the others

    def share(self, target: Tensor, count: Count) -> float | Tensor:
        mine = rows_of(self.rank, self.size, len(target))
        return count(target[mine]) / count(target) if mine.start < mine.stop else 0.0

    def take(self, batch: Batch) -> Batch:
        inputs, target = batch
        mine = self.rows(len(target))
        return tuple(part[mine] for part in inputs), target[mine]

    def weighed(self, loss: Tensor, share: float | Tensor) -> Tensor:
        return loss * share

    def wrap(self, objective: Objective, rows: Rows, size: int) -> nn.Module:
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
        used, called = tried(objective, self.take(next(rows.batches(size))))
        if self.strategy == "ddp":
            return DistributedDataParallel(
                objective,
                device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
                forward_sync_buffers=False,  # they are averaged instead: see SharedStep
                find_unused_parameters=not used,
                gradient_as_bucket_view=True,
            )
        shard(objective.model, called, self.device)
        return objective

    def shared(self, step: Step, say: Report) -> Step:
        return SharedStep(step, self, say)

    def total(self, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    def agreed(self, flag: bool) -> bool:
        self.asked += 1
        if self.asked % ASK_EVERY:
            return False
        answer = torch.tensor(int(flag))  # on the CPU: no GPU waits for it
        dist.broadcast(answer, self.first)
        return bool(answer)

    def whole(self, state: Any) -> Any:
        """On the CPU, in the first process alone; None stands for a tensor in the others."""
        return gathered(state, self.is_first) if self.strategy == "fsdp" else state

    def restored(self, part: Any, state: Any) -> Any:
        if self.strategy == "ddp":
            return state
        if isinstance(part, Update):
            pairs = zip(part.optimizers, state["optimizers"], strict=True)
            return {**state, "optimizers": [scattered_optimizer(saved, optimizer) for optimizer, saved in pairs]}
        return scattered(state, part.state_dict())

    def fill(self, model: ServedModel, weights: dict[str, Tensor]) -> None:
        if self.strategy == "ddp":
            super().fill(model, weights)

    def random_states(self) -> dict[str, list[Any]]:
        said = self.told((torch.get_rng_state(), cuda_rng_state()))
        return {"cpu": [cpu for cpu, _ in said], "cuda": [cuda for _, cuda in said]}


class SharedStep(Step):
    """A step of which each process does its rows; the mean over processes that torch takes becomes the sum of their shares."""

    def __init__(self, step: Step, processes: Together, say: Report) -> None:
        super().__init__(step.objective, step.update, step.precision)
        self.processes = processes
        on_gpu = processes.device.type == "cuda"  # where SyncBatchNorm sees all rows
        norms = [part for part in self.objective.modules() if isinstance(part, _BatchNorm)]
        self.statistics = [] if on_gpu else [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
        if self.statistics:
            say("batch norm: on the CPU each process norms its rows of a batch by themselves, unlike one process")

    def __call__(self, batch: Batch, share: float | Tensor = 1.0, ends: bool = True) -> Tensor:
        if isinstance(self.objective, DistributedDataParallel):
            self.objective.require_backward_grad_sync = ends  # what its no_sync() sets
        else:
            sharded_model(self.objective).set_requires_gradient_sync(ends)
        loss = self.backward(batch, share * self.processes.size)
        if self.statistics:
            self._average_statistics()
        if ends:
            self.update()
        return loss

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """The running means become those of all rows; the running variances lack what differs between processes."""
        mean = self.processes.total(torch.cat([s.flatten() for s in self.statistics])) / self.processes.size
        for statistic, part in zip(self.statistics, torch.split(mean, [s.numel() for s in self.statistics]), strict=True):
            statistic.copy_(part.view_as(statistic))


def tried(objective: nn.Module, batch: Batch) -> tuple[bool, list[nn.Module]]:
    """Whether every parameter gets a gradient, and the repeated blocks that are called as modules are, outermost first.

    Only such blocks can be put together when they are called, and taken apart after.
    """
    blocks = [block for part in objective.modules() if isinstance(part, nn.ModuleList) for block in part]
    called: dict[nn.Module, None] = {}
    hooks = [block.register_forward_hook(lambda module, *_: called.setdefault(module)) for block in blocks]
    with as_it_was(objective, batch[1].device):
        objective(*batch).backward()
        used = all(p.grad is not None for p in objective.parameters() if p.requires_grad)
    for hook in hooks:
        hook.remove()
    return used, [block for block in blocks if block in called and any(True for _ in block.parameters())]


def shard(model: ServedModel, blocks: list[nn.Module], device: torch.device) -> None:
    """Leaves a part of every parameter in each process; a block is whole only while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in reversed(blocks):  # inner ones first
        fully_shard(part, mesh=mesh)
    # reshard: an average put in place between two evaluations has to be seen by the second
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "raw")


def sharded_model(objective: nn.Module) -> Any:
    """The model within, with the methods that `fully_shard` gave it."""
    assert isinstance(objective, Objective)
    return objective.model


def each_tensor(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same dicts and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: each_tensor(value, change) for name, value in tree.items()}
    return [each_tensor(value, change) for value in tree] if isinstance(tree, list) else tree


def gathered(tree: Any, keeps: bool) -> Any:
    """Whole tensors, on the CPU, for a process that `keeps` them; the others only help to gather them."""

    def whole(tensor: Any) -> Any:
        full = tensor.full_tensor() if is_sharded(tensor) else tensor
        return full.detach().cpu() if keeps else None

    return each_tensor(tree, whole)


def scattered(tree: Any, like: Any) -> Any:
    """This process's parts of whole tensors, where `like` has parts."""
    if is_sharded(like):
        return part_of(tree, like)
    if isinstance(tree, dict):
        return {name: scattered(value, like.get(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [scattered(value, other) for value, other in zip(tree, like, strict=True)]
    return tree


def scattered_optimizer(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimizer keeps for a parameter is divided as the parameter is; torch numbers them in the groups' order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            name: part_of(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in kept.items()
        }
        for index, kept in saved["state"].items()
    }
    return {**saved, "state": state}


def part_of(whole: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
