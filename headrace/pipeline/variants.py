"""Compressed variants of an exported model side by side: size, latency, memory, metric and what they lose. Changes nothing that
serves."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headrace.compression.compress import GRAPH, UNCOMPRESSED, compress
from headrace.compression.loss import compare_with_original, groups_of, metric_interval, sentence_of
from headrace.compression.measure import Measured, measure_in_turns
from headrace.console import Report
from headrace.errors import DataError, ExportError, RecipeError, TrainingError, UsageError
from headrace.files import write_json
from headrace.models.schema import Schema
from headrace.pipeline.evaluate import answers_for, evaluation_columns
from headrace.pipeline.export import trained_model
from headrace.pipeline.variants_picture import draw
from headrace.pipeline.variants_table import ORIGINAL, Variant, Variants
from headrace.project import Project
from headrace.recipe.compress import GENERATES, CompressConfig, check_compress, main_metric, reason_of
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_for

TABLE, PICTURE = "variants.json", "variants.png"


def compare_variants(
    recipe: Recipe, methods: Sequence[str], project: Project, report: Report, max_loss: float | None = None
) -> Variants:
    """Makes a variant of the exported model by each method, measures all, and compares them on the test rows.

    A method that cannot be used for this model is a row of the table that says why. The variants are in folders of their own
    in `.headrace/compressed/NAME`.

    Args:
        max_loss: replaces that of the recipe's section `compress`.

    Raises:
        UsageError: the model is not trained yet.
        RecipeError: the model has several graphs.
        DiskFull: no space is left.
    """
    artifacts, out = project.artifacts(recipe.name), project.state / "compressed" / recipe.name
    if recipe.task in GENERATES:
        raise RecipeError(
            reason_of(recipe.task), where=f"recipes/{recipe.name}.yaml: task", hint="use fewer or narrower layers under model"
        )
    if recipe.imported is not None:
        raise RecipeError(
            "an imported model has no test rows, on which a smaller one could be compared with it",
            where=f"recipes/{recipe.name}.yaml: model.source",
            hint="compress it before it is imported",
        )
    original = _original(recipe, project)
    task_type, schema = task_type_for(recipe), Schema.read(artifacts / "prepared" / "schema.json")
    test = artifacts / "prepared" / "test.parquet"
    y_true = task_type.truth(evaluation_columns(test, schema, recipe), schema, recipe)
    groups, answers = groups_of(recipe, project, len(y_true)), answers_for(test, original, recipe)
    configs = [_config(method, recipe, max_loss) for method in methods]
    metric = main_metric(recipe.compress, recipe.gate, recipe.task_type)
    interval = partial(metric_interval, metric, recipe, y_true, groups=groups)

    rows = [_row(ORIGINAL, original, *interval(answers))]
    for config in configs:
        report(f"{config.method}: making the variant")
        folder = out / config.method
        shutil.rmtree(folder, ignore_errors=True)
        try:
            made = compress(config, original, folder, recipe, project, partial(trained_model, recipe, project))
        except (RecipeError, DataError, ExportError, TrainingError) as error:
            rows.append(Variant(method=config.method, folder=str(folder), verdict="not made", sentences=[str(error.message)]))
            continue
        if not made.applied:
            row = _row(config.method, folder, *interval(answers))
            rows.append(row.model_copy(update={"verdict": "unchanged", "sentences": made.remarks}))
            continue
        found = answers_for(test, folder, recipe)
        compared = compare_with_original(config, recipe, y_true, found, answers, groups)
        row = _row(config.method, folder, *interval(found))
        sentences = [sentence_of(compared, config.method), *made.remarks]
        verdict = "passed" if compared.promoted else "failed"
        rows.append(row.model_copy(update={"comparison": compared, "verdict": verdict, "sentences": sentences}))
    report("measuring latency and memory")
    measured = [row for row in rows if row.bytes is not None and row.verdict != "unchanged"]
    found_costs = measure_in_turns([Path(row.folder) for row in measured], project.root)
    costs = {row.method: cost for row, cost in zip(measured, found_costs, strict=True)}
    rows = [_with_cost(row, costs.get(row.method, costs[ORIGINAL])) for row in rows]
    table = Variants(
        recipe=recipe.name,
        metric=metric,
        max_loss=configs[0].max_loss,
        confidence=configs[0].confidence,
        rows=len(y_true),
        threads=costs[ORIGINAL].threads,
        variants=rows,
        picture=str(out / PICTURE),
    )
    _write(table, out, recipe, project)
    return table


def _original(recipe: Recipe, project: Project) -> Path:
    """The folder of the uncompressed exported model.

    Raises:
        UsageError: there is none.
    """
    export = project.artifacts(recipe.name) / "export"
    folder = export / UNCOMPRESSED if (export / UNCOMPRESSED / GRAPH).is_file() else export
    needed = [folder / GRAPH, project.artifacts(recipe.name) / "prepared" / "test.parquet"]
    if missing := next((path for path in needed if not path.is_file()), None):
        raise UsageError(
            f"{recipe.name} has no trained model yet", where=str(missing), hint=f"train it first: headrace run {recipe.name}"
        )
    return folder


def _config(method: str, recipe: Recipe, max_loss: float | None) -> CompressConfig:
    """The settings of a method: those of the recipe's section, if it names this method; what all methods have in any case.

    Raises:
        UsageError: the method is unknown.
    """
    given = recipe.compress
    changes: dict[str, Any] = {} if max_loss is None else {"max_loss": max_loss}
    if given is not None and given.method == method:
        return given.model_copy(update=changes)
    shared = {} if given is None else {name: getattr(given, name) for name in ("max_loss", "metric", "confidence")}
    config = CompressConfig.model_validate({"method": method, **shared, **changes})
    check_compress(config, recipe.model, recipe.task, recipe.task_type)
    return config


def _row(method: str, folder: Path, metric: float, interval: tuple[float, float] | None) -> Variant:
    size = (folder / GRAPH).stat().st_size
    return Variant(method=method, folder=str(folder), bytes=size, metric=metric, interval=interval)


def _with_cost(row: Variant, cost: Measured) -> Variant:
    """The row with what it costs; one that changed nothing costs what the original does."""
    if row.bytes is None:
        return row
    return row.model_copy(update={"latency_ms": cost.latency_ms, "memory_mb": cost.memory_mb})


def _write(table: Variants, out: Path, recipe: Recipe, project: Project) -> None:
    """Writes the table and the picture, and logs both with the model's run in MLflow."""
    write_json(out / TABLE, table.to_dict())
    draw(table, out / PICTURE)
    from headrace.tracking import runs

    run = runs.run_of_training(recipe, project)
    with runs.registry_errors(project):
        for name in (TABLE, PICTURE):
            runs.client(project).log_artifact(run.id, str(out / name), "compression")
