"""Writes the recipe of a model that others trained, once the model is fetched and has passed its checks."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from headrace.console import Report
from headrace.errors import UsageError, near_miss
from headrace.files import write_text
from headrace.importing import store
from headrace.importing.build import build
from headrace.importing.source import Fetched
from headrace.importing.wanted import Built, Wanted
from headrace.permissions import tracked_mode
from headrace.pipeline.import_model import with_origin
from headrace.project import Project
from headrace.recipe.models import ImportedConfig
from headrace.recipe.recipe import NAME_PATTERN, is_import, parse_recipe
from headrace.recipe.serve import ServeConfig

Parsed = TypeVar("Parsed", bound=BaseModel)
WRITTEN_BY = "# Written by headrace import. docs/models.md explains the fields of an imported model.\n"


def import_recipe(
    name: str,
    source: str,
    fields: dict[str, Any],
    task: str | None,
    replicas: int | None,
    project: Project,
    report: Report,
) -> tuple[Path, Built]:
    """Fetches and checks the model at `source`, keeps it in `data/`, and writes `recipes/<name>.yaml`.

    Args:
        fields: further fields of the section `model`.
        task: None: that of the recipe which exists, else what the model says.

    Raises:
        UsageError: the name is invalid, the recipe exists and is of no import, or the model cannot be served.
        SourceError: the model cannot be fetched, or has another sha256.
        ExportError: the converted model answers differently than the original.
        DiskFull, Busy: nothing has changed.
    """
    path = project.recipes / f"{name}.yaml"
    recipe = _existing(name, path)
    if recipe is None:
        recipe = {"name": name, "task": task, "model": {}, "serve": {"replicas": 1}}
    serve = _parsed(ServeConfig, recipe.get("serve") or {}, "serve")
    if replicas is not None:
        recipe["serve"] = recipe.get("serve") or {}
        recipe["serve"]["replicas"] = replicas
    before = {key: value for key, value in recipe["model"].items() if key != "sha256"}
    model = {**before, "source": source, **fields}
    config = _parsed(ImportedConfig, {"name": "imported", **model}, "model")
    with store.fetched_model(name, config, project, report) as found:
        built = _checked(name, config, task or recipe.get("task"), serve, found, project)
        recipe["task"] = built.contract.task
        for key, value in {**fields, "source": source, "sha256": found.sha256}.items():
            recipe["model"][key] = value
        text = _text(recipe, path)
        parse_recipe(text, str(path.relative_to(project.root)))
        store.keep_model(name, config, found, project)
    write_text(path, text, tracked_mode(path))
    return path, built


def _existing(name: str, path: Path) -> Any:
    """The recipe with its comments; None if there is none.

    Raises:
        UsageError: the name is invalid, or the recipe is of a model that is trained.
    """
    import re

    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"invalid recipe name {name!r}: use up to 40 lower-case letters, digits and dashes, with a letter first",
            where="NAME",
            hint="choose another name, for example 'iris'",
        )
    if not path.exists():
        return None
    try:
        found = YAML().load(path)
    except YAMLError as error:
        raise UsageError(f"invalid YAML: {error}", where=str(path), hint=f"headrace check {name}") from None
    if not isinstance(found, dict) or not is_import(found.get("model")):
        raise UsageError(
            f"recipe {name!r} already exists, and its model is trained here", where=str(path), hint="choose another name"
        )
    return found


def _parsed(section: type[Parsed], fields: Any, where: str) -> Parsed:
    try:
        return section.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = f"unknown field; {near_miss(field, section.model_fields)}"
        raise UsageError(f"{field}: {reason}", where=where, hint="correct the option, or the field in the recipe") from None


def _checked(
    name: str, config: ImportedConfig, task: str | None, serve: ServeConfig, found: Fetched, project: Project
) -> Built:
    """Builds graph and contract in a separate folder, as the release will."""
    parent = project.state / "incoming"
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-export-", dir=parent))
    try:
        wanted = Wanted(name, task, config, found.labels, serve.threads, serve.context, serve.parallel)
        built = build(found.file, config.source, wanted, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record = {"sha256": found.sha256, "revision": found.revision, "licence": found.licence}
    return with_origin(built, config, record)


def _text(recipe: Any, path: Path) -> str:
    import io

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    return stream.getvalue() if path.exists() else WRITTEN_BY + stream.getvalue()
