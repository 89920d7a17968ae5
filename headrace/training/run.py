"""From prepared splits to weights: what the `train` stage does."""

from __future__ import annotations

import csv
import hashlib
from contextlib import nullcontext
from pathlib import Path

import torch

from headrace import console
from headrace.files import whole, write_json, write_with
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.plugins import code_files, custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_of
from headrace.training import checkpoint
from headrace.training.calibration import calibrate
from headrace.training.checkpoint import Progress
from headrace.training.device import choose_device, choose_precision, seed_everything
from headrace.training.distributed.single import SingleProcess
from headrace.training.errors import memory_errors, nondeterminism
from headrace.training.loading import load_rows
from headrace.training.loop import fit
from headrace.training.loss_weights import emphasise
from headrace.training.preprocess_once import preprocessed
from headrace.training.reporting import Nobody, watch


def train_model(recipe: Recipe, project: Project) -> None:
    """Trains on `prepared/` and writes `train/model.pt`, `train/curves.csv` and `train/summary.json`; in processes of their
    own, where the recipe asks for several.

    Raises:
        TrainingError: no rows, a loss that is no number, a device that is not there, memory that does not suffice.
    """
    if recipe.train.processes == 1:
        train(recipe, project, SingleProcess())
    else:
        from headrace.training.distributed.launch import launch

        launch(recipe, project)


def train(recipe: Recipe, project: Project, processes: SingleProcess) -> None:
    """What each of `processes` does; the first of them writes.

    Raises:
        TrainingError: as `train_model`.
    """
    prepared, out = project.artifacts(recipe.name) / "prepared", project.artifacts(recipe.name) / "train"
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device)
    seed_everything(recipe.train.seed)
    kind, schema = task_type_of(recipe.task), Schema.read(prepared / "schema.json")
    rows, validation = (
        load_rows(prepared / f"{name}.parquet", kind, schema, recipe, device, project.state / "encoded")
        for name in ("train", "validation")
    )
    model = on_device(kind.module(recipe.model, schema), schema, device)
    emphasise(model, recipe.train, rows.target, schema.labels)

    checkpoint_path = project.state / "checkpoints" / f"{recipe.name}.pt"
    fingerprint = fingerprint_of(recipe, prepared, project.root)
    processes.begin(fingerprint, recipe.train.seed)
    watching = watch(recipe, project, device, len(rows), fingerprint) if processes.is_first else nullcontext(Nobody())
    with watching as watcher:
        with memory_errors(recipe.train), nondeterminism() as varying:
            watched = (watcher.on_epoch, watcher.on_step, watcher.say)
            with preprocessed(model, recipe.train, rows, validation) as (learned, held):
                progress = fit(model, learned, held, recipe.train, checkpoint_path, fingerprint, *watched, processes)
            if not processes.is_first:
                return
            if recipe.train.is_sharded:  # what trained is in parts
                model = on_device(kind.module(recipe.model, schema), schema, device)
                model.load_state_dict(progress.best_weights)
            calibration = calibrate(model, validation, recipe.train)
        if varying:
            names = ", ".join(sorted(varying))
            console.report(f"not deterministic on {device.type}, so the same run may give slightly other weights: {names}")
        write_weights(out, model, progress)
        summary = summary_of(model, progress, recipe, len(rows), len(validation))
        how = {"device": device.type, "precision": str(precision).removeprefix("torch."), "deterministic": not varying}
        scale = {"processes": processes.size, "strategy": recipe.train.strategy} if processes.size > 1 else {}
        write_json(out / "summary.json", summary | how | scale | calibration)
        watcher.finish(progress, out / "model.pt")
    checkpoint_path.unlink(missing_ok=True)


def on_device(model: ServedModel, schema: Schema, device: torch.device) -> ServedModel:
    """The model where it trains, laid out as its device reads it fastest."""
    model = model.to(device)
    if schema.shape.image:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def fingerprint_of(recipe: Recipe, prepared: Path, root: Path) -> str:
    """sha256 over what determines the weights: prepared data, model and training settings, their code, torch's version.

    Not how many processes train, and how: the steps are the same, and a run that lost a machine may go on without it.
    """
    settings = recipe.train.model_copy(update={"processes": 1, "strategy": "ddp"})
    digest = hashlib.sha256(f"{recipe.model!r}{settings!r}{torch.__version__}".encode())
    for name in ("schema.json", "train.parquet", "validation.parquet"):
        with (prepared / name).open("rb") as part:
            while block := part.read(2**20):  # the files may be larger than memory
                digest.update(block)
    for room in ("task_types", "models", "training"):
        for source in sorted((Path(__file__).parent.parent / room).rglob("*.py")):
            digest.update(source.read_bytes())
    for source in custom_sources(recipe.custom_classes, root):
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
