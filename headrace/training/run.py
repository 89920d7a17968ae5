"""The `train` stage: turns prepared splits into weights."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from headrace import console
from headrace.files import write_json
from headrace.models.pretrained import load_pretrained
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.project import Project
from headrace.recipe.models import BoostedTreesConfig
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_for
from headrace.training.device import choose_device, choose_precision, seed_everything
from headrace.training.errors import memory_errors, nondeterminism
from headrace.training.loading import load_rows, preprocessed
from headrace.training.loop import TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from headrace.training.reporting import NullReporter, report_run
from headrace.training.results import calibrate, fingerprint_of, summary_of, write_weights
from headrace.training.single_process import SingleProcess
from headrace.training.start import start_digest, start_from_champion


def train_model(recipe: Recipe, project: Project) -> None:
    """Trains on `prepared/` and writes `train/model.pt`, `train/curves.csv` and `train/summary.json`; starts several processes
    if `train.processes` asks for them.

    Raises:
        TrainingError: there are no rows, the loss is NaN or infinite, the device is missing, or memory ran out.
    """
    if isinstance(recipe.model, BoostedTreesConfig):
        from headrace.training.boosting import train_trees

        train_trees(recipe, project)
    elif recipe.train.processes == 1:
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
    load_pretrained(model, project.imported_model(recipe.name))
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


def on_device(model: ServedModel, schema: Schema, device: torch.device) -> ServedModel:
    """Moves the model to the device, in the memory format that is fastest there."""
    model = model.to(device)
    if schema.shape.image:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
