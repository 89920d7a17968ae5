"""The training loop, in the order it runs. B: rows in a batch. N: rows in a split."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.models.served import LossModule, ScaleColour, ServedModel
from headrace.processes import raise_if_interrupted
from headrace.recipe.training import TrainConfig
from headrace.training.augment import Augment
from headrace.training.averaging import make_average
from headrace.training.checkpoint import Checkpoints, Progress
from headrace.training.compiling import compiled, should_compile
from headrace.training.cuda_graphs import CudaGraphStep, can_record
from headrace.training.device import autocast, choose_precision, generator
from headrace.training.errors import not_finite
from headrace.training.losses import EpochLosses
from headrace.training.optimizers import ScheduledOptimizer
from headrace.training.reporting import NullReporter
from headrace.training.rows import Batch, Rows, StepFunction
from headrace.training.single_process import SingleProcess

EVALUATION_BATCH = 512
SINGLE = SingleProcess()


@dataclass(frozen=True)
class TrainingRun:
    """What a run needs besides model, rows and settings."""

    checkpoint: Path | None
    """The file from which the run resumes, and which it replaces as it progresses; None for a run too short to resume."""
    fingerprint: str
    """Identifies data and settings; a checkpoint with another fingerprint is not used."""
    reporter: NullReporter = field(default_factory=NullReporter)
    process_group: SingleProcess = SINGLE
    """The processes that train together, of which this is one. They have the same rows and the same model."""


def fit(model: ServedModel, train: Rows, validation: Rows, config: TrainConfig, run: TrainingRun) -> Progress:
    """Trains `model` in place, resuming from a checkpoint of the same run, and leaves the best epoch's weights in it.

    Raises:
        TrainingError: the loss is NaN or infinite.
    """
    return Trainer(model, train, validation, config, run).fit()


class Trainer:
    """Trains a model: epochs of training steps, each epoch followed by an evaluation and a checkpoint."""

    def __init__(self, model: ServedModel, train: Rows, validation: Rows, config: TrainConfig, run: TrainingRun) -> None:
        self.model, self.train, self.validation, self.config = model, train, validation, config
        self.reporter, self.process_group = run.reporter, run.process_group
        self.precision = choose_precision(config.precision, train.device)
        self.batches = math.ceil(len(train) / config.batch_size)
        steps = math.ceil(self.batches / config.gradient_accumulation_steps) * config.epochs
        self.loss_module = self.process_group.wrap(LossModule(model), train, config.batch_size)
        self.compiled: nn.Module | None = None
        """For full batches only: torch would compile again for another size, which takes longer than it saves."""
        self.optimizer = ScheduledOptimizer(model, config, steps)
        self.augment = Augment(config.augment, config.seed, is_channels_last(model)) if config.augment else None
        self.average = make_average(model, config)
        parts = {"model": model, "optimizer": self.optimizer, "average": self.average}
        self.checkpoints = Checkpoints(run.checkpoint, run.fingerprint, parts, self.process_group)
        self.progress = Progress()
        self.step: StepFunction = self.training_step

    def fit(self) -> Progress:
        """Runs all epochs that are left.

        Raises:
            TrainingError: the loss is NaN or infinite.
        """
        config = self.config
        self.progress = progress = self.checkpoints.load() or Progress()
        self.step = self.fastest_step()
        while progress.epoch < config.epochs and not has_stalled(progress, config):
            train_loss = self.train_epoch()
            is_first_average = self.average.after_epoch(progress.epoch + 1)
            with self.average.in_place(self.train, config.batch_size):
                val_loss, val_metric = evaluate(self.model, self.validation, self.precision, self.process_group)
                self.record_epoch(train_loss, val_loss, val_metric, is_first_average)
            if not math.isfinite(val_loss):
                raise not_finite(val_loss, progress.epoch, "on the validation rows", config)
            self.reporter.on_epoch(progress)
            self.checkpoints.save(progress)
        self.process_group.load_full_weights(self.model, progress.best_weights)
        return progress

    def train_epoch(self) -> float:
        """Trains on all rows once, in a new order, starting with batch `progress.step`; returns the mean loss."""
        self.model.train()
        config, progress, process_group = self.config, self.progress, self.process_group
        losses = EpochLosses(progress, config, process_group)
        group_rows = config.batch_size * config.gradient_accumulation_steps
        order = generator(config.seed, "order", progress.epoch)
        for batch in self.train.batches(config.batch_size, order, progress.step):
            raise_if_interrupted()
            rows, local_weight = len(batch[1]), process_group.local_weight(batch[1], self.model.count_items)
            inputs, target = process_group.local_batch(batch)
            if self.augment:
                inputs = self.augment(inputs, progress.epoch, progress.step, process_group.local_rows(rows), rows)
            seen = progress.step * config.batch_size
            weight = rows / min(group_rows, len(self.train) - seen // group_rows * group_rows)  # the last group may be smaller
            is_last = (progress.step + 1) % config.gradient_accumulation_steps == 0 or seen + rows == len(self.train)
            if is_last:
                self.optimizer.set_learning_rate()  # not in the step: a CUDA graph would replay the same rate
            loss = self.step((inputs, target), weight * local_weight, is_last)
            progress.step += 1
            losses.add(process_group.scale_loss(loss, local_weight), rows)
            self.reporter.on_step(progress.epoch + 1, progress.step)
            if is_last:
                self.average.after_step()
                if process_group.broadcast(self.checkpoints.is_due()):
                    losses.read()
                    self.checkpoints.save(progress)
        return losses.mean()

    def training_step(self, batch: Batch, weight: float | Tensor = 1.0, is_last: bool = True) -> Tensor:
        """Trains on one batch and returns its loss, on the device: reading it would make a GPU wait.

        Args:
            weight: the batch's share of the rows whose gradients are accumulated.
            is_last: whether it is the last batch before the optimizer's step.
        """
        inputs, target = batch
        config, optimizer = self.config, self.optimizer
        is_full = len(target) == config.batch_size
        loss_module = self.compiled if self.compiled is not None and is_full else self.loss_module
        # --------------------------------------------------------------------------------------------------------------
        # Single training step
        with autocast(target.device, self.precision):
            loss: Tensor = loss_module(inputs, target)
        is_whole = isinstance(weight, float) and weight == 1.0  # comparing a tensor would make a GPU wait
        (loss if is_whole else loss * weight).backward()  # type: ignore[no-untyped-call]  # adds to the gradients so far
        if is_last:
            if config.l1:
                optimizer.add_l1_gradients(config.l1)
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(optimizer.parameters, config.max_grad_norm, foreach=True)
            optimizer.step()
            optimizer.zero_grad()
        # --------------------------------------------------------------------------------------------------------------
        return loss.detach()

    def fastest_step(self) -> StepFunction:
        """Returns the training step that `fit` runs: compiled if that is faster, as a CUDA graph if it can be recorded."""
        config, progress = self.config, self.progress
        if self.process_group.world_size > 1:
            progress.is_compiled = False  # compiled code may wait for gradients in another order in each process
            return self.process_group.wrap_step(self.training_step, self.loss_module, self.reporter.say)
        if progress.is_compiled is None:
            batches = self.batches * (config.epochs - progress.epoch) - progress.step
            progress.is_compiled = should_compile(
                config.compile,
                self.loss_module,
                self.precision,
                next(self.train.batches(config.batch_size)),
                batches,
                self.checkpoints,
                self.reporter.say,
            )
        if progress.is_compiled:
            self.compiled = compiled(self.loss_module)
        if config.compile != "off" and can_record(self.optimizer, self.train.device, config.gradient_accumulation_steps):
            return CudaGraphStep(self.training_step, self.loss_module, config.batch_size, self.reporter.say)
        return self.training_step

    def record_epoch(self, train_loss: float, val_loss: float, val_metric: float, is_first_average: bool = False) -> None:
        """Adds an epoch to the history, and keeps its weights if they are the best so far, or the first average."""
        progress = self.progress
        progress.epoch += 1
        progress.step, progress.loss_sum, progress.loss_rows = 0, 0.0, 0
        progress.history.append(
            {
                "epoch": progress.epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                f"val_{self.model.metric_name}": val_metric,
                "learning_rate": self.optimizer.learning_rate,
            }
        )
        if val_loss < progress.best_val_loss or is_first_average:
            progress.best_val_loss, progress.best_epoch = val_loss, progress.epoch
            state = self.process_group.full_state(self.model.state_dict())
            progress.best_weights = {name: value.detach().cpu().clone() for name, value in state.items() if value is not None}


@torch.inference_mode()
def evaluate(
    model: ServedModel, rows: Rows, precision: torch.dtype = torch.float32, process_group: SingleProcess = SINGLE
) -> tuple[float, float]:
    """Returns the mean loss and the mean of the model's metric, the same in each process."""
    model.eval()
    loss = torch.zeros((), device=rows.device)
    metric = torch.zeros((), device=rows.device)
    for batch in rows.batches(min(EVALUATION_BATCH, model.max_evaluation_batch, rows.max_batch)):
        weight = len(batch[1]) * process_group.local_weight(batch[1], model.count_items)
        inputs, target = process_group.local_batch(batch)
        with autocast(target.device, precision):
            raw = model.raw(*inputs)
        raw = raw.float()  # answers in bfloat16 would be rounded to three digits
        loss += model.loss(raw, target) * weight
        metric += model.metric(raw, target) * weight
    loss, metric = process_group.all_reduce(torch.stack([loss, metric])).unbind()
    return float(loss) / len(rows), float(metric) / len(rows)


def is_channels_last(model: ServedModel) -> bool:
    """Returns whether rows are pictures in colour, with the channels last."""
    return isinstance(model.preprocess, ScaleColour)


def has_stalled(progress: Progress, config: TrainConfig) -> bool:
    """Returns whether early stopping ends the run."""
    return config.early_stopping is not None and progress.epoch - progress.best_epoch >= config.early_stopping.patience
