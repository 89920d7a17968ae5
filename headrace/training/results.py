"""What a training leaves, of networks and of trees: calibration, weights, curves and summary; and what identifies it."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import torch

from headrace import console
from headrace.errors import TrainingError
from headrace.files import atomic_write, write_with
from headrace.models.multilabel import MultilabelClassifier
from headrace.models.served import ServedModel
from headrace.plugins import code_files, custom_sources
from headrace.recipe.recipe import Recipe
from headrace.recipe.training import TrainConfig
from headrace.training import checkpoint
from headrace.training.checkpoint import Progress
from headrace.training.rows import Rows

CALIBRATION_BATCH = 512


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
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "stopped_early": progress.epoch < recipe.train.epochs,
        "compiled": progress.is_compiled,
    }
