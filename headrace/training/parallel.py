"""Several processes: each has a copy of the model (DDP), or a shard of each of its tensors (FSDP).

DDP: Li et al. 2020 (arXiv:2006.15704). FSDP: Zhao et al. 2023 (arXiv:2304.11277), in torch's second version, `fully_shard`.
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
from headrace.models.served import LossModule, ServedModel
from headrace.training.compiling import unchanged
from headrace.training.device import generator
from headrace.training.optimizers import ScheduledOptimizer
from headrace.training.rows import Batch, Rows, StepFunction
from headrace.training.single_process import Count, SingleProcess, cuda_rng_state, is_sharded, local_rows

BROADCAST_EVERY = 16
"""Only every 16th call of `broadcast` sends a message: it costs time, and no decision that depends on a clock is urgent."""


class ProcessGroup(SingleProcess):
    """One of the processes of torch's default process group, which has to be initialised."""

    def __init__(self, strategy: Literal["ddp", "fsdp"], device: torch.device, may_be_main: bool = True) -> None:
        """`may_be_main`: the main process is the one with the lowest rank among those that may be."""
        self.strategy = strategy
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.main_rank = self.all_gather(may_be_main).index(True)
        self.is_main = self.rank == self.main_rank
        self.broadcasts = 0

    def all_gather(self, value: Any) -> list[Any]:
        """Returns the values of all processes, by rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def setup(self, fingerprint: str, seed: int) -> None:
        if len(set(self.all_gather(fingerprint))) > 1:
            raise TrainingError(
                "data, code or settings differ between the machines",
                hint="use the same project folder on all machines, or copies of it with the same prepared data",
            )
        if self.rank:  # with the same random numbers, all would drop the same features of different rows
            torch.manual_seed(generator(seed, "process", self.rank).initial_seed())

    def local_rows(self, rows: int) -> slice:
        mine = local_rows(self.rank, self.world_size, rows)
        return mine if mine.start < mine.stop else slice(0, 1)  # has weight 0, and keeps this process in step with the others

    def local_batch(self, batch: Batch) -> Batch:
        inputs, target = batch
        mine = self.local_rows(len(target))
        return tuple(part[mine] for part in inputs), target[mine]

    def local_weight(self, target: Tensor, count: Count) -> float | Tensor:
        mine = local_rows(self.rank, self.world_size, len(target))
        return count(target[mine]) / count(target) if mine.start < mine.stop else 0.0

    def scale_loss(self, loss: Tensor, weight: float | Tensor) -> Tensor:
        return loss * weight

    def wrap(self, loss_module: nn.Module, rows: Rows, batch_size: int) -> nn.Module:
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(loss_module)  # type: ignore[no-untyped-call]
        all_used, blocks = dry_run(loss_module, self.local_batch(next(rows.batches(batch_size))))
        if self.strategy == "ddp":
            return DistributedDataParallel(
                loss_module,
                device_ids=[torch.cuda.current_device()] if self.device.type == "cuda" else None,
                forward_sync_buffers=False,  # DistributedStep averages them instead
                find_unused_parameters=not all_used,
                gradient_as_bucket_view=True,
            )
        shard(model_in(loss_module), blocks, self.device)
        return loss_module

    def wrap_step(self, step: StepFunction, loss_module: nn.Module, report: Report) -> StepFunction:
        return DistributedStep(step, loss_module, self, report)

    def all_reduce(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, flag: bool) -> bool:
        self.broadcasts += 1
        if self.broadcasts % BROADCAST_EVERY:
            return False
        answer = torch.tensor(int(flag))  # on the CPU: no GPU waits for it
        dist.broadcast(answer, self.main_rank)
        return bool(answer)

    def full_state(self, state: Any) -> Any:
        """Returns full tensors, on the CPU, in the main process; in the others, None instead of each tensor."""
        return full_tensors(state, self.is_main) if self.strategy == "fsdp" else state

    def local_state(self, part: Any, state: Any) -> Any:
        if self.strategy == "ddp":
            return state
        if isinstance(part, ScheduledOptimizer):
            pairs = zip(part.optimizers, state["optimizers"], strict=True)
            return {**state, "optimizers": [shard_optimizer_state(saved, optimizer) for optimizer, saved in pairs]}
        return shard_state(state, part.state_dict())

    def load_full_weights(self, model: ServedModel, weights: dict[str, Tensor]) -> None:
        if self.strategy == "ddp":
            super().load_full_weights(model, weights)

    def rng_states(self) -> dict[str, list[Any]]:
        states = self.all_gather((torch.get_rng_state(), cuda_rng_state()))
        return {"cpu": [cpu for cpu, _ in states], "cuda": [cuda for _, cuda in states]}


class DistributedStep:
    """A training step that all processes run together, each on its rows.

    torch averages gradients over the processes; multiplied by their number, the average becomes the weighted sum.
    """

    def __init__(self, step: StepFunction, loss_module: nn.Module, process_group: ProcessGroup, report: Report) -> None:
        self.step = step
        self.loss_module = loss_module
        self.process_group = process_group
        on_gpu = process_group.device.type == "cuda"  # there, SyncBatchNorm normalises over all rows
        norms = [part for part in loss_module.modules() if isinstance(part, _BatchNorm)]
        self.statistics = [] if on_gpu else [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
        if self.statistics:
            report("batch norm: on the CPU each process normalises over its own rows, which differs from one process")

    def __call__(self, batch: Batch, weight: float | Tensor, is_last: bool) -> Tensor:
        if isinstance(self.loss_module, DistributedDataParallel):
            self.loss_module.require_backward_grad_sync = is_last  # the attribute that no_sync() sets
        else:
            model_in(self.loss_module).set_requires_gradient_sync(is_last)
        loss = self.step(batch, weight * self.process_group.world_size, is_last)
        if self.statistics:
            self._average_statistics()
        return loss

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Averages batch norm's statistics. Running means become those of all rows; running variances lack the part that
        comes from different means of the processes."""
        total = self.process_group.all_reduce(torch.cat([s.flatten() for s in self.statistics]))
        mean = total / self.process_group.world_size
        for statistic, part in zip(self.statistics, torch.split(mean, [s.numel() for s in self.statistics]), strict=True):
            statistic.copy_(part.view_as(statistic))


def dry_run(loss_module: nn.Module, batch: Batch) -> tuple[bool, list[nn.Module]]:
    """Runs forward and backward pass once. Returns whether every parameter gets a gradient, and the repeated blocks that are
    called as modules, outermost first: only such blocks can be gathered when they are called and sharded again afterwards."""
    blocks = [block for part in loss_module.modules() if isinstance(part, nn.ModuleList) for block in part]
    called: dict[nn.Module, None] = {}
    hooks = [block.register_forward_hook(lambda module, *_: called.setdefault(module)) for block in blocks]
    with unchanged(loss_module, batch[1].device):
        loss_module(*batch).backward()
        all_used = all(p.grad is not None for p in loss_module.parameters() if p.requires_grad)
    for hook in hooks:
        hook.remove()
    return all_used, [block for block in blocks if block in called and any(True for _ in block.parameters())]


def shard(model: ServedModel, blocks: list[nn.Module], device: torch.device) -> None:
    """Leaves a shard of every parameter in each process; a block is gathered only while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in reversed(blocks):  # inner ones first
        fully_shard(part, mesh=mesh)
    # reshard: if the average replaces the weights between two evaluations, the second has to gather it
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(model, "raw")


def model_in(loss_module: nn.Module) -> Any:
    """Returns the model, which has further methods if `fully_shard` was called on it."""
    assert isinstance(loss_module, LossModule)
    return loss_module.model


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """Returns the same dicts and lists with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {name: map_tensors(value, change) for name, value in tree.items()}
    return [map_tensors(value, change) for value in tree] if isinstance(tree, list) else tree


def full_tensors(tree: Any, keep: bool) -> Any:
    """Gathers full tensors, on the CPU, in processes that `keep` them; the others only take part."""

    def full(tensor: Any) -> Any:
        gathered = tensor.full_tensor() if is_sharded(tensor) else tensor
        return gathered.detach().cpu() if keep else None

    return map_tensors(tree, full)


def shard_state(tree: Any, like: Any) -> Any:
    """Returns this process's shards of full tensors, where `like` has shards."""
    if is_sharded(like):
        return shard_tensor(tree, like)
    if isinstance(tree, dict):
        return {name: shard_state(value, like.get(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [shard_state(value, other) for value, other in zip(tree, like, strict=True)]
    return tree


def shard_optimizer_state(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Shards an optimizer's state for each parameter as the parameter is; torch numbers parameters in the groups' order."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            name: shard_tensor(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in kept.items()
        }
        for index, kept in saved["state"].items()
    }
    return {**saved, "state": state}


def shard_tensor(full: Tensor, like: Any) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
