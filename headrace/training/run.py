"""The `train` stage: turns prepared splits into weights."""

from __future__ import annotations

import csv
import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch

from headrace import console
from headrace.errors import TrainingError
from headrace.files import atomic_write, write_json, write_with
from headrace.models.multilabel import MultilabelClassifier
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.plugins import code_files, custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_for
from headrace.training import checkpoint
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, choose_precision, seed_everything
from headrace.training.errors import memory_errors, nondeterminism
from headrace.training.loading import load_rows, preprocessed
from headrace.training.loop import TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from headrace.training.reporting import NullReporter, report_run
from headrace.training.rows import Rows
from headrace.training.single_process import SingleProcess
from headrace.training.start import start_digest, start_from_champion

CALIBRATION_BATCH = 512


def train_model(recipe: Recipe, project: Project) -> None:
    """Trains on `prepared/` and writes `train/model.pt`, `train/curves.csv` and `train/summary.json`; starts several processes
    if `train.processes` asks for them.

    Raises:
        TrainingError: there are no rows, the loss is NaN or infinite, the device is missing, or memory ran out.
    """
    if recipe.train.processes == 1:
        train(recipe, project, SingleProcess())
    else:
        from headrace.training.launch import launch

        launch(recipe, project)


def train(recipe: Recipe, project: Project, process_group: SingleProcess) -> None:
    """Trains in one of the processes; the main one writes the results.

    Raises:
        TrainingError: as `train_model`.
    """
    prepared, out = project.artifacts(recipe.name) / "prepared", project.artifacts(recipe.name) / "train"
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device)
    seed_everything(recipe.train.seed)
    task_type, schema = task_type_for(recipe), Schema.read(prepared / "schema.json")
    rows, validation = (
        load_rows(prepared / f"{name}.parquet", task_type, schema, recipe, device, project.state / "encoded")
        for name in ("train", "validation")
    )
    model = task_type.module(recipe.model, schema)
    start = start_from_champion(model, schema, project, recipe.name) if recipe.train.start == "champion" else {}
    model = on_device(model, schema, device)
    set_loss_weights(model, recipe.train, rows.target, schema.labels)

    checkpoint_path = project.state / "checkpoints" / f"{recipe.name}.pt"
    fingerprint = fingerprint_of(recipe, prepared, project.root, start_digest(project, recipe.name) if start else b"")
    process_group.setup(fingerprint, recipe.train.seed)
    is_main = process_group.is_main
    reporting = report_run(recipe, project, device, len(rows), fingerprint) if is_main else nullcontext(NullReporter())
    with reporting as reporter:
        if start:
            reporter.say(f"starts with the weights of {start['start']}" if start["start"] != "random" else _random(start))
        with memory_errors(recipe.train), nondeterminism() as varying:
            run = TrainingRun(checkpoint_path, fingerprint, reporter, process_group)
            with preprocessed(model, recipe.train, rows, validation) as (train_rows, validation_rows):
                progress = fit(model, train_rows, validation_rows, recipe.train, run)
            if not is_main:
                return
            if recipe.train.is_sharded:  # this process has only a shard of the model that was trained
                model = on_device(task_type.module(recipe.model, schema), schema, device)
                model.load_state_dict(progress.best_weights)
            calibration = calibrate(model, validation, recipe.train)
        if varying:
            names = ", ".join(sorted(varying))
            console.report(f"not deterministic on {device.type}, so the same run may give slightly different weights: {names}")
        write_weights(out, model, progress)
        summary = summary_of(model, progress, recipe, len(rows), len(validation))
        how = {"device": device.type, "precision": str(precision).removeprefix("torch."), "deterministic": not varying}
        scale = (
            {"processes": process_group.world_size, "strategy": recipe.train.strategy} if process_group.world_size > 1 else {}
        )
        write_json(out / "summary.json", summary | how | scale | calibration | start)
        reporter.finish(progress, out / "model.pt")
    checkpoint_path.unlink(missing_ok=True)


def _random(start: dict[str, str]) -> str:
    return f"starts with random weights, not with those of the version in production: {start['start_reason']}"


@torch.no_grad()
def calibrate(model: ServedModel, validation: Rows, config: TrainConfig) -> dict[str, float]:
    """Fits the model's temperature or interval margin on the validation rows, in full precision; returns the values for the
    summary.

    Raises:
        TrainingError: the model does not support `train.calibrate`.
    """
    if config.calibrate is not None and config.calibrate not in model.calibrations:
        raise TrainingError(
            f"{config.calibrate} needs probabilities, which this model does not predict",
            where="train.calibrate",
            hint="remove train.calibrate; for a regression, set model.interval",
        )
    if isinstance(model, MultilabelClassifier):
        model.label_threshold = config.label_threshold
    if not model.is_calibrated(config.calibrate):
        return {}
    model.eval()
    found = [(model.raw(*inputs).float(), target) for inputs, target in validation.batches(CALIBRATION_BATCH)]
    raw, target = (torch.cat(parts) for parts in zip(*found, strict=True))
    calibrated = model.calibrate(raw, target, config.calibrate)
    if (reached := calibrated.get("interval_level_reached")) is not None:
        console.report(
            f"{len(target):,} validation rows are too few for model.interval: only {reached:.4g} of similar rows are sure to "
            "be inside the intervals; add data, or raise data.split.validation"
        )
    return {name: round(value, 8) for name, value in calibrated.items()}


def on_device(model: ServedModel, schema: Schema, device: torch.device) -> ServedModel:
    """Moves the model to the device, in the memory format that is fastest there."""
    model = model.to(device)
    if schema.shape.image:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def fingerprint_of(recipe: Recipe, prepared: Path, root: Path, start: bytes = b"") -> str:
    """Returns a sha256 of what determines the weights: prepared data, model and training settings, code, torch's version, and
    `start`, which identifies the weights that training starts with.

    The number of processes and their strategy are not included: the steps are the same, and a run that lost a machine may
    continue without it.
    """
    settings = recipe.train.model_copy(update={"processes": 1, "strategy": "ddp"})
    digest = hashlib.sha256(f"{recipe.model!r}{settings!r}{torch.__version__}".encode() + start)
    for name in ("schema.json", "train.parquet", "validation.parquet"):
        with (prepared / name).open("rb") as part:
            while block := part.read(2**20):  # the files may be larger than memory
                digest.update(block)
    for package in ("task_types", "models", "training"):
        for source in sorted((Path(__file__).parent.parent / package).rglob("*.py")):
            digest.update(source.read_bytes())
    for source in custom_sources(recipe.custom_classes, root):
        for file in code_files(source):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def write_weights(out: Path, model: ServedModel, progress: Progress) -> None:
    """Writes `model.pt` and `curves.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_with(out / "model.pt", lambda beside: checkpoint.write(weights, beside))
    with atomic_write(out / "curves.csv") as beside, beside.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, progress.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: int(v) if name == "epoch" else round(v, 8) for name, v in row.items()} for row in progress.history
        )


def summary_of(
    model: ServedModel, progress: Progress, recipe: Recipe, train_rows: int, validation_rows: int
) -> dict[str, object]:
    """Returns the contents of `summary.json` that describe the run."""
    return {
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "val_loss": round(progress.best_val_loss, 8),
        "train_rows": train_rows,
        "validation_rows": validation_rows,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stopped_early": progress.epoch < recipe.train.epochs,
        "compiled": progress.is_compiled,
    }
