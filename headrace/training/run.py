"""From prepared splits to weights: what the `train` stage does."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headrace import console
from headrace.config import Recipe
from headrace.extensions import code_files, own_sources
from headrace.files import whole, write_json, write_with
from headrace.kinds.base import Kind, Schema
from headrace.kinds.registry import kind_of
from headrace.models.served import ServedModel
from headrace.project import Project
from headrace.training import checkpoint
from headrace.training.ahead import preprocessed
from headrace.training.calibration import calibrate
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, choose_precision, seed_everything
from headrace.training.emphasis import emphasise
from headrace.training.faults import memory_errors, nondeterminism
from headrace.training.loop import fit
from headrace.training.rows import Split
from headrace.training.watch import watch

if TYPE_CHECKING:
    import pandas as pd


def train_model(recipe: Recipe, project: Project) -> None:
    """Trains on `prepared/` and writes `train/model.pt`, `train/curves.csv` and `train/summary.json`.

    Raises:
        TrainingError: no rows, a loss that is no number, a device that is not there, memory that does not suffice.
    """
    import pandas as pd

    prepared, out = project.artifacts(recipe.name) / "prepared", project.artifacts(recipe.name) / "train"
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device)
    seed_everything(recipe.train.seed)
    kind, schema = kind_of(recipe.task), Schema.read(prepared / "schema.json")
    train, validation = (
        to_device(pd.read_parquet(prepared / f"{name}.parquet"), kind, schema, recipe, device)
        for name in ("train", "validation")
    )
    model = kind.module(recipe.model, schema).to(device)
    if schema.shape.image:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    emphasise(model, recipe.train, train.target, schema.labels)

    checkpoint_path = project.state / "checkpoints" / f"{recipe.name}.pt"
    fingerprint = fingerprint_of(recipe, prepared, project.root)
    with watch(recipe, project, device, len(train), fingerprint) as watcher:
        with memory_errors(recipe.train), nondeterminism() as varying:
            with preprocessed(model, recipe.train, train, validation) as rows:
                progress = fit(model, *rows, recipe.train, checkpoint_path, fingerprint, watcher.on_epoch, watcher.on_step)
            calibration = calibrate(model, validation, recipe.train)
        if varying:
            names = ", ".join(sorted(varying))
            console.report(f"not deterministic on {device.type}, so the same run may give slightly other weights: {names}")
        write_weights(out, model, progress)
        summary = summary_of(model, progress, recipe, len(train), len(validation))
        how = {"device": device.type, "precision": str(precision).removeprefix("torch."), "deterministic": not varying}
        write_json(out / "summary.json", summary | how | calibration)
        watcher.finish(progress, out / "model.pt")
    checkpoint_path.unlink(missing_ok=True)


def to_device(frame: pd.DataFrame, kind: Kind, schema: Schema, recipe: Recipe, device: torch.device) -> Split:
    inputs = kind.encode(frame, schema, recipe)
    return Split(
        tuple(torch.from_numpy(array).to(device) for array in inputs.values()),
        torch.from_numpy(kind.targets(frame, schema, recipe)).to(device),
    )


def fingerprint_of(recipe: Recipe, prepared: Path, root: Path) -> str:
    """sha256 over what determines the weights: prepared data, model and training settings, their code, torch's version."""
    digest = hashlib.sha256(f"{recipe.model!r}{recipe.train!r}{torch.__version__}".encode())
    for name in ("schema.json", "train.parquet", "validation.parquet"):
        digest.update((prepared / name).read_bytes())
    for room in ("kinds", "models", "training"):
        for source in sorted((Path(__file__).parent.parent / room).glob("*.py")):
            digest.update(source.read_bytes())
    for source in own_sources(recipe.own_classes, root):
        for file in code_files(source):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def write_weights(out: Path, model: ServedModel, progress: Progress) -> None:
    """`model.pt` and `curves.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    write_with(out / "model.pt", lambda beside: checkpoint.write(weights, beside))
    with whole(out / "curves.csv") as beside, beside.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, progress.history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {name: int(v) if name == "epoch" else round(v, 8) for name, v in row.items()} for row in progress.history
        )


def summary_of(
    model: ServedModel, progress: Progress, recipe: Recipe, train_rows: int, validation_rows: int
) -> dict[str, object]:
    """What a reader of `summary.json` is told first."""
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
