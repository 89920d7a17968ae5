"""The weights that training starts with if `train.start` is `champion`: copied beside the recipe's other files, for DVC."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from headrace.data.versions import data_version
from headrace.errors import DataError, RegistryError, UsageError
from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking import registry
from headrace.tracking.artifact import CONTRACT
from headrace.tracking.registry import Version
from headrace.tracking.version_identity import SPLIT, START
from headrace.tracking.weights import copy_weights
from headrace.training.start import RECORD, TOKENIZER, WEIGHTS, start_folder


def write_start(recipe: Recipe, project: Project) -> str:
    """Copies weights, contract and split of the version that training starts from, and returns what identifies it.

    A version never starts from one that was trained from the same data: where the version in production was, it is the one that
    this in turn started from. Otherwise a release would change what the next one starts from, and train again without new data.

    Raises:
        RegistryError: MLflow's database cannot be read.
    """
    folder = start_folder(project, recipe.name)
    kept: dict[str, Any] = read_cached_json(folder / RECORD) or {}
    wanted, reason = _wanted(recipe, project)
    if wanted is not None and kept.get("version") == f"{recipe.name}@{wanted}":
        return str(kept["identity"])
    if wanted is not None:
        identity = _copy_start(recipe.name, wanted, folder, project)
        if identity is not None:
            return identity
        reason = f"the weights of {recipe.name}@{wanted} are gone"
    if kept.get("reason") != reason:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / RECORD, {"version": None, "reason": reason})
    return "random"


def restore_start(version: Version, project: Project, folder: Path) -> None:
    """Copies what the training of a version started from into another project in `folder`, so that it can be trained again.

    Raises:
        UsageError: the weights are gone.
    """
    model, _, number = version.tags.get(registry.PREFIX + START, "").partition("@")
    if number and _copy_start(model, number, start_folder(Project(folder), model), project) is None:
        raise UsageError(
            f"{version.name} was trained from the weights of {model}@{number}, which are gone",
            where=str(project.mlruns),
            hint="restore mlruns/ from a backup, or run `dvc fetch --all-commits` where DVC has a remote",
        )


def _wanted(recipe: Recipe, project: Project) -> tuple[str | None, str]:
    """The number of the version to start from; None and the reason if there is none."""
    champion = registry.aliased(recipe.name, registry.CHAMPION, project)
    if champion is None:
        return None, "no version is in production"
    found = next((one for one in registry.versions(recipe.name, project) if one.version == champion), None)
    try:
        data_md5 = data_version(project, recipe.name).md5
    except DataError:  # no data at the moment
        data_md5 = ""
    if found is None or found.identity.get("data_md5") != data_md5:
        return champion, ""
    before = found.tags.get(registry.PREFIX + START, "").partition("@")[2]
    return before or None, f"{found.name} was trained from the same data, with random weights at its start"


def _copy_start(model: str, number: str, folder: Path, project: Project) -> str | None:
    """Copies what training starts from, and returns what identifies it; None where it is gone."""
    try:
        found = registry.find_version(model, number, project)
    except RegistryError:  # its files are gone
        return None
    shutil.rmtree(folder, ignore_errors=True)
    if found is None or not copy_weights(found, folder / WEIGHTS, project):
        return None
    shutil.copyfile(found.folder / CONTRACT, folder / CONTRACT)
    if (found.folder / TOKENIZER).is_file():
        shutil.copyfile(found.folder / TOKENIZER, folder / TOKENIZER)
    identity = f"{found.name} {found.identity.get('content_sha256', '')}"
    split = found.tags.get(registry.PREFIX + SPLIT)
    write_json(folder / RECORD, {"version": found.name, "identity": identity, "split": split})  # last: it names the others
    return identity
