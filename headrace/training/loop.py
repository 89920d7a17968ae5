"""The training loop, in the order it runs. B: rows in a batch. N: rows in a split."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from headrace import console
from headrace.console import Report
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training import compiling, cuda_graphs
from headrace.training.augment import Augment
from headrace.training.averaging import make_average
from headrace.training.checkpoint import Checkpoints, Progress
from headrace.training.device import choose_precision
from headrace.training.distributed.single import SingleProcess
from headrace.training.losses import Losses, not_finite
from headrace.training.rows import Rows
from headrace.training.seeding import generator
from headrace.training.step import Objective, Step, autocast
from headrace.training.update import Update

EVALUATION_BATCH = 512
OnEpoch = Callable[[Progress], None]
OnStep = Callable[[int, int], None]
ALONE = SingleProcess()


def fit(
    model: ServedModel,
    train: Rows,
    validation: Rows,
    config: TrainConfig,
    checkpoint_path: Path,
    fingerprint: str,
    on_epoch: OnEpoch,
    on_step: OnStep,
    say: Report = console.report,
    processes: SingleProcess = ALONE,
) -> Progress:
    """Trains `model` in place and leaves the best epoch's weights in it; goes on from a checkpoint of the same run.

    Args:
        fingerprint: names data and settings; a checkpoint of another run is not used.
        on_epoch: called after each epoch, before the checkpoint is written.
        on_step: called with the epoch and the batches done in it.
        say: takes a line on what the engine chose.
        processes: those that train together, of which this is one; they have the same rows and the same `model`.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    precision = choose_precision(config.precision, train.device)
    batches = math.ceil(len(train) / config.batch_size)
    objective = Objective(model)
    wrapped = processes.wrap(objective, train, config.batch_size)
    update = Update(model, config, steps=math.ceil(batches / config.accumulate) * config.epochs)
    average = make_average(model, config)
    parts = {"model": model, "update": update, "average": average}
    checkpoints = Checkpoints(checkpoint_path, fingerprint, parts, processes)
    progress = checkpoints.load() or Progress()
    step = Step(wrapped, update, precision, config.batch_size)
    if processes.size > 1:
        progress.is_compiled = False  # compiled code may wait for gradients in another order in each process
        step = processes.shared(step, say)
    else:
        step = make_step(step, train, config, progress, checkpoints, say)

    def after_batch(losses: Losses, has_moved: bool) -> None:
        on_step(progress.epoch + 1, progress.step)
        if has_moved:
            average.after_step()
            if processes.agreed(checkpoints.is_due()):
                losses.read()
                checkpoints.save(progress)

    while progress.epoch < config.epochs and not has_stalled(progress, config):
        train_loss = train_epoch(model, train, step, config, progress, after_batch, processes)
        is_first_average = average.after_epoch(progress.epoch + 1)
        with average.in_place(train, config.batch_size):
            val_loss, val_metric = evaluate(model, validation, precision, processes)
            record(progress, train_loss, val_loss, val_metric, update.rate, model, is_first_average, processes)
        if not math.isfinite(val_loss):
            raise not_finite(val_loss, progress.epoch, "on the validation rows", config)
        on_epoch(progress)
        checkpoints.save(progress)

    processes.fill(model, progress.best_weights)
    return progress


def train_epoch(
    model: ServedModel,
    train: Rows,
    step: Step,
    config: TrainConfig,
    progress: Progress,
    after_batch: Callable[[Losses, bool], None],
    processes: SingleProcess = ALONE,
) -> float:
    """One pass over the rows in a fresh order, from batch `progress.step` on; returns the mean loss."""
    model.train()
    losses = Losses(progress, config, processes)
    augment = Augment(config.augment, config.seed) if config.augment else None
    group_rows = config.batch_size * config.accumulate
    shuffle = generator(config.seed, "order", progress.epoch)
    for batch in train.batches(config.batch_size, shuffle, progress.step):
        rows, mine = len(batch[1]), processes.share(batch[1], model.counted)
        inputs, target = processes.take(batch)
        if augment:
            inputs = augment(inputs, progress.epoch, progress.step, processes.rows(rows), rows)
        seen = progress.step * config.batch_size
        share = rows / min(group_rows, len(train) - seen // group_rows * group_rows)
        ends = (progress.step + 1) % config.accumulate == 0 or seen + rows == len(train)
        loss = step((inputs, target), share * mine, ends)
        progress.step += 1
        losses.add(processes.weighed(loss, mine), rows)
        after_batch(losses, ends)
    return losses.mean()


@torch.inference_mode()
def evaluate(
    model: ServedModel, rows: Rows, precision: torch.dtype = torch.float32, processes: SingleProcess = ALONE
) -> tuple[float, float]:
    """Mean loss, and mean of the model's metric; the same in each process."""
    model.eval()
    loss = torch.zeros((), device=rows.device)
    metric = torch.zeros((), device=rows.device)
    for batch in rows.batches(min(EVALUATION_BATCH, model.rows_at_once)):
        weight = len(batch[1]) * processes.share(batch[1], model.counted)
        inputs, target = processes.take(batch)
        with autocast(target.device, precision):
            raw = model.raw(*inputs)
        raw = raw.float()  # answers in bfloat16 would be rounded to three digits
        loss += model.loss(raw, target) * weight
        metric += model.metric(raw, target) * weight
    loss, metric = processes.total(torch.stack([loss, metric])).unbind()
    return float(loss) / len(rows), float(metric) / len(rows)


def record(
    progress: Progress,
    train_loss: float,
    val_loss: float,
    val_metric: float,
    rate: float,
    model: ServedModel,
    starts_anew: bool = False,
    processes: SingleProcess = ALONE,
) -> None:
    """Adds an epoch to the history, and keeps its weights if it is the best so far, or the first that counts."""
    progress.epoch += 1
    progress.step, progress.loss_sum, progress.loss_rows = 0, 0.0, 0
    metric = f"val_{model.metric_name}"
    progress.history.append(
        {"epoch": progress.epoch, "train_loss": train_loss, "val_loss": val_loss, metric: val_metric, "learning_rate": rate}
    )
    if val_loss < progress.best_val_loss or starts_anew:
        progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch
        state = processes.whole(model.state_dict())
        progress.best_weights = {name: value.detach().cpu().clone() for name, value in state.items() if value is not None}


def has_stalled(progress: Progress, config: TrainConfig) -> bool:
    """Whether early stopping ends the run."""
    return config.early_stopping is not None and progress.epoch - progress.best_epoch >= config.early_stopping.patience


def make_step(step: Step, train: Rows, config: TrainConfig, progress: Progress, checkpoints: Checkpoints, say: Report) -> Step:
    """The fastest way to run `step`: compiled where that is chosen, as a CUDA graph where it can be recorded."""
    batches = math.ceil(len(train) / config.batch_size) * (config.epochs - progress.epoch) - progress.step
    if progress.is_compiled is None:
        batch = next(train.batches(config.batch_size))
        memory = checkpoints.path.with_suffix(".compiled.json")
        progress.is_compiled = compiling.should_compile(
            config.compile, step, batch, batches, memory, checkpoints.fingerprint, say
        )
    if progress.is_compiled:
        step.compiled = compiling.compiled(step.objective)
    is_graph = config.compile != "off" and cuda_graphs.fits(step.update, train.device, config.accumulate)
    return cuda_graphs.GraphStep(step, say) if is_graph else step
