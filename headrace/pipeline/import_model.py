"""The stage `import_model`: turns the model that others trained into the served graph and its contract."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import DataError
from headrace.files import write_json
from headrace.importing.addresses import shown_source
from headrace.importing.build import build
from headrace.importing.kept import Kept, kept_model
from headrace.importing.wanted import Built, Wanted
from headrace.project import Project
from headrace.recipe.models import ImportedConfig
from headrace.recipe.monitor import personal_fields
from headrace.recipe.recipe import Recipe
from headrace.tracking.artifact import CONTRACT, IMPORT_FACTS


def import_model(recipe: Recipe, project: Project) -> None:
    """Writes `export/` (graph, contract and what was found out about the model) and `evaluation/`, which has no metrics: there
    are no test rows.

    Raises:
        DataError: the model is not in `data/`.
        ImportRefused, ImportIncomplete, ExportError: as `headrace.importing.build.build`.
    """
    kept = kept_model(recipe.name, project)
    if kept is None:
        raise DataError(
            f"data/{recipe.name} has no imported model",
            where=str(project.imported_model(recipe.name)),
            hint=f"headrace run {recipe.name} fetches it",
        )
    artifacts = project.artifacts(recipe.name)
    built = build_export(recipe, kept, artifacts / "export")
    evaluation = artifacts / "evaluation"
    shutil.rmtree(evaluation, ignore_errors=True)  # of a model that was trained here
    write_json(evaluation / "metrics.json", {})
    write_json(evaluation / "profile.json", {})  # there are no training rows to compare requests with
    write_json(artifacts / "export" / IMPORT_FACTS, built.facts)


def build_export(recipe: Recipe, kept: Kept, out: Path) -> Built:
    """Writes the graph and the contract of a recipe's imported model to the folder `out`.

    Raises:
        ImportRefused, ImportIncomplete, ExportError: as `headrace.importing.build.build`.
    """
    config, record = recipe.imported, kept.record
    assert config is not None
    serve = recipe.serve
    wanted = Wanted(recipe.name, recipe.task, config, record.get("labels"), serve.threads, serve.context, serve.parallel)
    built = build(kept.file, config.source, wanted, out)
    personal = personal_fields(recipe.monitor, recipe.data, built.contract)
    contract = built.contract.model_copy(update={"personal": personal, "unknown": recipe.serve.unknown})
    contract.write(out / CONTRACT)
    return with_origin(Built(contract, built.facts), config, record)


def with_origin(built: Built, config: ImportedConfig, record: Mapping[str, Any]) -> Built:
    """Adds to the facts about a model where it comes from.

    Args:
        record: what is known of its source: sha256, revision, licence.
    """
    facts = {
        **built.facts,
        "source": shown_source(config.source),
        "sha256": record["sha256"],
        "revision": record.get("revision"),
        "licence": config.licence or record.get("licence") or built.facts["licence"],
    }
    return Built(built.contract, facts)
