"""Four loops that train the same model on the same rows; each returns a function that trains a round and returns seconds."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.training_models import Workload, synchronise
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training.cuda_graphs import CudaGraphStep, can_record
from headrace.training.device import autocast, choose_precision, seed_everything
from headrace.training.loading import preprocessed
from headrace.training.loop import Trainer, TrainingRun
from headrace.training.rows import Split

RATE = 1e-3
Round = Callable[[], float]
Loop = Callable[[Workload, ServedModel, torch.device], Round]
"""Takes a model on the device; each round trains it further."""


def timed(device: torch.device, work: Callable[[], object]) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def engine(workload: Workload, model: ServedModel, device: torch.device) -> Round:
    """Trains with the loop of `headrace run`, in its deterministic mode, with its record of losses."""
    config = TrainConfig(batch_size=workload.batch_size, epochs=10**6, learning_rate=RATE)
    rows = Split(tuple(part.to(device) for part in workload.inputs), workload.target.to(device))
    trainer = Trainer(model, rows, rows, config, TrainingRun(Path("unused.pt"), "benchmark"))
    if can_record(trainer.optimizer, device, 1):
        trainer.step = CudaGraphStep(trainer.training_step, trainer.loss_module, workload.batch_size, print)

    def work() -> None:
        progress = trainer.progress
        for _ in range(workload.epochs):
            progress.step, progress.loss_sum, progress.loss_rows = 0, 0.0, 0
            trainer.train_epoch()
            progress.epoch += 1

    def round_() -> float:
        seed_everything(0)  # sets the deterministic mode; the other loops use the default of torch
        try:
            with preprocessed(model, config, rows) as (trainer.train,):  # once per run, so it is not part of an epoch
                return timed(device, work)
        finally:
            torch.set_deterministic_debug_mode("default")

    return round_


def loader_of(workload: Workload) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*workload.inputs, workload.target), workload.batch_size, shuffle=True)


def data_loader(workload: Workload, model: ServedModel, device: torch.device) -> Round:
    """Trains with the loop of PyTorch's tutorials: a DataLoader, default AdamW, the loss read in each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    loader, precision = loader_of(workload), choose_precision("auto", device)

    def work() -> float:
        total = 0.0
        for _ in range(workload.epochs):
            for batch in loader:
                *inputs, target = (part.to(device) for part in batch)
                optimizer.zero_grad()
                with autocast(device, precision):
                    loss = model.loss(model.raw(*inputs), target)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.item()
        return total

    return lambda: timed(device, work)


def lightning(workload: Workload, model: ServedModel, device: torch.device) -> Round:
    """Trains with Lightning's Trainer, all extras turned off; timed from the second epoch on, without its start."""
    import pytorch_lightning as pl  # type: ignore[import-not-found]

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model.loss(self.model.raw(*batch[:-1]), batch[-1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE)

    class Clock(pl.Callback):  # type: ignore[misc]
        started = 0.0

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                synchronise(device)
                self.started = time.perf_counter()

    module, loader = Module(), loader_of(workload)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = off | {
        "accelerator": "gpu" if device.type == "cuda" else "cpu",
        "devices": 1,
        "precision": "bf16-mixed" if choose_precision("auto", device) == torch.bfloat16 else "32-true",
        "max_epochs": 1 + workload.epochs,
    }

    def round_() -> float:
        clock = Clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pl.Trainer(callbacks=[clock], **options).fit(module, loader)
        synchronise(device)
        ended = time.perf_counter()
        module.to(device)  # Lightning moves the model back to the CPU
        return ended - clock.started

    return round_


def tuned(workload: Workload, model: ServedModel, device: torch.device) -> Round:
    """Trains with a loop written for speed: preprocessed rows on the device, one gather per batch, fused AdamW, no
    synchronisation."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    inputs, target = tuple(part.to(device) for part in workload.inputs), workload.target.to(device)
    network: Callable[..., Tensor] = model.raw
    if type(model).raw is ServedModel.raw:
        network, inputs = model.network, model.preprocess(*inputs)
    precision = choose_precision("auto", device)

    def work() -> float:
        total = torch.zeros((), device=device)
        for _ in range(workload.epochs):
            for index in torch.split(torch.randperm(len(target), device=device), workload.batch_size):
                with autocast(device, precision):
                    raw = network(*(part.index_select(0, index) for part in inputs))
                    loss = model.loss(raw, target.index_select(0, index))
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                total += loss.detach()
        return total.item()

    return lambda: timed(device, work)


LOOPS: dict[str, Loop] = {"Headrace": engine, "DataLoader loop": data_loader, "Lightning": lightning, "tuned by hand": tuned}
