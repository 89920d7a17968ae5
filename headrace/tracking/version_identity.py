"""The identity of a version in the registry: what it was made from, as tags."""

from __future__ import annotations

import hashlib

from headrace import __version__
from headrace.data.sources.addresses import redacted
from headrace.data.split_record import read_record
from headrace.data.versions import DataVersion
from headrace.files import read_json
from headrace.project import MODEL_RECORD, Project
from headrace.recipe.recipe import Recipe
from headrace.tracking import provenance, sources
from headrace.tracking.artifact import IMPORT_FACTS
from headrace.tracking.sources import Sources

SPLIT = "split"
"""Tag with the `SplitRecord` of the rows that a version was trained on."""
START = "start"
"""Tag with the version that training started from, for `train.start: champion`."""
IDENTITY = (
    "data_md5", "data_rows", "git_commit", "uncommitted", "source", "lock_sha256", "recipe_sha256", "validation",
    "content_sha256", "run_id", "headrace", "imported_from", "imported_sha256", "imported_revision", "imported_licence",
    "base_from", "base_sha256", "base_revision", "base_licence", "compression",
)  # fmt: skip
"""Tags with the identity of a version; they never change. Those of the gate and of a person's approval do."""


def identity_of(recipe: Recipe, version: DataVersion, source: Sources, project: Project) -> dict[str, str]:
    """The identity of the model that was trained or imported last, as tags for its version in the registry, without prefix."""
    if recipe.imported is not None:
        return _identity_of_import(recipe, version, source, project)
    validation = read_json(project.artifacts(recipe.name) / "validation.json") or {}
    split = read_record(project.artifacts(recipe.name) / "split")
    start = (read_json(project.artifacts(recipe.name) / "train" / "summary.json") or {}).get("start")
    return {
        **({START: start} if start is not None else {}),
        **({SPLIT: split.model_dump_json(), "split_sha256": split.sha256} if split else {}),
        **_made_from(version, source, project),
        **_base(recipe, project),
        **({"compression": compressed} if (compressed := _compression(recipe, project)) else {}),
        "validation": f"{validation.get('passed')} of {validation.get('total')} expectations",
    }


def _identity_of_import(recipe: Recipe, version: DataVersion, source: Sources, project: Project) -> dict[str, str]:
    """The identity of a model that others trained: its source, the sha256 of its bytes, and its licence."""
    facts = read_json(project.artifacts(recipe.name) / "export" / IMPORT_FACTS) or {}
    known = {f"imported_{name}": str(facts[name]) for name in ("sha256", "revision", "licence") if facts.get(name)}
    origin = redacted(str(facts.get("source", "")))
    return {**_made_from(version, source, project), "imported_from": origin, **known, "validation": "0 of 0 expectations"}


def _made_from(version: DataVersion, source: Sources, project: Project) -> dict[str, str]:
    return {
        "data_md5": version.md5,
        "data_rows": str(version.rows),
        "git_commit": source.changes.git_commit,
        **({"uncommitted": sources.named(uncommitted)} if (uncommitted := source.changes.uncommitted) else {}),
        "lock_sha256": provenance.lock_hash(project),
        **({} if project.is_clone else {"headrace": __version__}),
        "recipe_sha256": hashlib.sha256(source.recipe).hexdigest(),
    }


def _base(recipe: Recipe, project: Project) -> dict[str, str]:
    """The pretrained encoder that was adapted: its source, the sha256 of its bytes, and its licence."""
    if recipe.base is None:
        return {}
    record = read_json(project.imported_model(recipe.name) / MODEL_RECORD) or {}
    facts = {**record, "licence": recipe.base.licence or record.get("licence")}
    known = {f"base_{name}": str(facts[name]) for name in ("sha256", "revision", "licence") if facts.get(name)}
    return {"base_from": redacted(recipe.base.source), **known}


def _compression(recipe: Recipe, project: Project) -> str | None:
    """How the exported graph was compressed, with its size before and after; None if it was not."""
    found = read_json(project.artifacts(recipe.name) / "export" / "compression.json")
    if not found or not found["applied"]:
        return None
    return f"{found['settings']}, {found['original_bytes']:,} to {found['bytes']:,} bytes"
