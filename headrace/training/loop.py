"""The training loop, in the order it runs. B: rows in a batch. N: rows in a split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from headrace.config import TrainConfig
from headrace.errors import TrainingError
from headrace.models.served import ServedModel
from headrace.training import checkpoint
from headrace.training.checkpoint import Progress
from headrace.training.device import mixed_precision

EVALUATION_BATCH = 4096
OnEpoch = Callable[[Progress], None]
OnStep = Callable[[int, int], None]


@dataclass
class Split:
    """Inputs `(N, ...)` each and targets `(N,)`, held on the device: a batch is one indexing, without a DataLoader."""

    inputs: tuple[Tensor, ...]
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        return tuple(part[index] for part in self.inputs), self.target[index]


def fit(
    model: ServedModel,
    train: Split,
    validation: Split,
    config: TrainConfig,
    checkpoint_path: Path,
    fingerprint: str,
    on_epoch: OnEpoch,
    on_step: OnStep,
) -> Progress:
    """Trains `model` in place and leaves the best epoch's weights in it; goes on from a checkpoint of the same run.

    Args:
        fingerprint: names data and settings; a checkpoint of another run is not used.
        on_epoch: called after each epoch, before the checkpoint is written.
        on_step: called with the epoch and the steps done in it.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    optimizer = make_optimizer(model, config)
    steps = math.ceil(len(train) / config.batch_size)
    schedule = make_schedule(optimizer, config, steps)
    shuffle = torch.Generator().manual_seed(config.seed)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    progress = checkpoint.load(checkpoint_path, fingerprint, parts, shuffle) or Progress()

    while progress.epoch < config.epochs and not has_stalled(progress, config):
        train_loss = train_epoch(
            model, train, config.batch_size, optimizer, schedule, shuffle, lambda step: on_step(progress.epoch + 1, step)
        )
        val_loss, val_metric = evaluate(model, validation)
        record(progress, train_loss, val_loss, val_metric, float(schedule.get_last_lr()[0]), model)
        check_finite(progress, config)
        on_epoch(progress)
        checkpoint.save(checkpoint_path, fingerprint, progress, parts, shuffle)

    model.load_state_dict(progress.best_weights)
    return progress


def train_epoch(
    model: ServedModel,
    train: Split,
    batch_size: int,
    optimizer: Optimizer,
    schedule: LRScheduler,
    shuffle: torch.Generator,
    on_step: Callable[[int], None],
) -> float:
    """One pass over the rows in a fresh order; returns the mean loss."""
    model.train()
    total = torch.zeros((), device=train.target.device)
    for step, index in enumerate(batches(len(train), batch_size, shuffle, train.target.device)):
        inputs, target = train.rows(index)
        loss = train_step(model, inputs, target, optimizer, schedule)
        total += loss * len(target)  # stays on the device: reading it each step would make the GPU wait
        on_step(step + 1)
    return float(total) / len(train)


def train_step(
    model: ServedModel, inputs: tuple[Tensor, ...], target: Tensor, optimizer: Optimizer, schedule: LRScheduler
) -> Tensor:
    """Forward, backward, update. Returns the loss, detached."""
    with mixed_precision(target.device):
        loss = model.loss(model.raw(*inputs), target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    schedule.step()
    return loss.detach()


@torch.inference_mode()
def evaluate(model: ServedModel, split: Split) -> tuple[float, float]:
    """Mean loss, and mean of the model's metric."""
    model.eval()
    loss = torch.zeros((), device=split.target.device)
    metric = torch.zeros((), device=split.target.device)
    for index in torch.split(torch.arange(len(split), device=split.target.device), EVALUATION_BATCH):
        inputs, target = split.rows(index)
        with mixed_precision(target.device):
            raw = model.raw(*inputs)
        raw = raw.float()  # answers in bfloat16 would be rounded to three digits
        loss += model.loss(raw, target) * len(target)
        metric += model.metric(raw, target) * len(target)
    return float(loss) / len(split), float(metric) / len(split)


def batches(n: int, size: int, shuffle: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row indices `(B,)` of each batch; shuffled on the CPU, so that every device sees the same order."""
    return iter(torch.split(torch.randperm(n, generator=shuffle).to(device), size))


def record(progress: Progress, train_loss: float, val_loss: float, val_metric: float, rate: float, model: ServedModel) -> None:
    """Adds an epoch to the history, and keeps its weights if it is the best so far."""
    progress.epoch += 1
    metric = f"val_{model.metric_name}"
    progress.history.append(
        {"epoch": progress.epoch, "train_loss": train_loss, "val_loss": val_loss, metric: val_metric, "learning_rate": rate}
    )
    if val_loss < progress.best_val_loss:
        progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch
        progress.best_weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def has_stalled(progress: Progress, config: TrainConfig) -> bool:
    """Whether early stopping ends the run."""
    return config.early_stopping is not None and progress.epoch - progress.best_epoch >= config.early_stopping.patience


def check_finite(progress: Progress, config: TrainConfig) -> None:
    last = progress.history[-1]
    if not (math.isfinite(last["train_loss"]) and math.isfinite(last["val_loss"])):
        raise TrainingError(
            f"the loss became {last['train_loss']} (training) and {last['val_loss']} (validation) in epoch {progress.epoch}",
            mend=f"lower train.learning_rate (now {config.learning_rate:g}), or look for extreme values: headrace expectations",
        )


def make_optimizer(model: ServedModel, config: TrainConfig) -> Optimizer:
    """The optimizer the recipe names; fused into one kernel where the device has that."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay, fused=True)
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """How the learning rate moves over `steps` an epoch; `train.learning_rate` is its peak."""
    if config.schedule == "one_cycle":
        return OneCycleLR(optimizer, max_lr=config.learning_rate, total_steps=max(2, steps * config.epochs))
    return LambdaLR(optimizer, lambda _: 1.0)
