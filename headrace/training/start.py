"""Weights of the version in production, with which training starts if `train.start` is `champion`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.data.split_record import SplitRecord, has_seen_test_rows, read_record
from headrace.errors import HeadraceError
from headrace.files import read_cached_json
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.project import Project
from headrace.runtime.contract import Contract

RECORD, WEIGHTS, TOKENIZER = "start.json", "model.pt", "tokenizer.json"
EMBEDDING = re.compile(r".*\bembeddings\.(\d+)\.weight")
"""Weights with a row for each level of a categorical column, by the place of the column."""


class CannotStart(Exception):
    """The weights do not fit; the message is the reason."""


def start_folder(project: Project, recipe: str) -> Path:
    """The folder with weights, contract and record of the version to start from; `headrace.pipeline.start` writes it."""
    return project.artifacts(recipe) / "custom_code" / "start"


def start_from_champion(model: ServedModel, schema: Schema, project: Project, recipe: str) -> dict[str, str]:
    """Loads the weights of the network in place, where they fit; otherwise the model stays as it is, with random weights.

    Scales of columns and of the target, and a calibration, are those of the present training rows: only the network is taken
    over. If a categorical column has new levels, each starts with the weights of the unknown level.

    Returns:
        For `summary.json`: `start`, the version or `random`, and then `start_reason`.
    """
    folder = start_folder(project, recipe)
    record: dict[str, Any] = read_cached_json(folder / RECORD) or {}
    name = record.get("version")
    try:
        if name is None:
            raise CannotStart(record.get("reason") or "no version is in production")
        _check_split(record.get("split"), project, recipe, name)
        contract = _read_contract(folder, name)
        _check_meaning(contract, schema, folder, name)
        _load(model, folder / WEIGHTS, contract, schema, name)
    except CannotStart as error:
        return {"start": "random", "start_reason": str(error)}
    return {"start": str(name)}


def start_digest(project: Project, recipe: str) -> bytes:
    """What identifies the weights in the folder, for the fingerprint of a run."""
    path = start_folder(project, recipe) / RECORD
    return path.read_bytes() if path.is_file() else b""


def _check_split(split: str | None, project: Project, recipe: str, name: str) -> None:
    """
    Raises:
        CannotStart: the version may have been trained on rows that are test rows now.
    """
    theirs = None if split is None else SplitRecord.model_validate_json(split)
    ours = read_record(project.artifacts(recipe) / "split")
    if theirs is not None and ours is not None and has_seen_test_rows(theirs, ours):
        raise CannotStart(f"data.split changed: {name} may have been trained on rows that are test rows now")


def _read_contract(folder: Path, name: str) -> Contract:
    try:
        return Contract.read(folder / "contract.json")
    except (OSError, ValueError, HeadraceError):
        raise CannotStart(f"the contract of {name} cannot be read") from None


def _check_meaning(contract: Contract, schema: Schema, folder: Path, name: str) -> None:
    """
    Raises:
        CannotStart: the same place in the inputs or outputs has another meaning.
    """
    known = [*(c.name for c in schema.numeric), *(c.name for c in schema.times), *(c.name for c in schema.categorical)]
    if known and [field.name for field in contract.inputs][: len(known)] != known:
        raise CannotStart(f"{name} has other columns")
    if contract.labels != schema.labels:
        raise CannotStart(f"{name} has other labels")
    tokenizer = folder / TOKENIZER
    if (tokenizer.read_text(encoding="utf-8") if tokenizer.is_file() else None) != schema.tokenizer:
        raise CannotStart(f"{name} has another vocabulary of tokens")


def _load(model: ServedModel, path: Path, contract: Contract, schema: Schema, name: str) -> None:
    """
    Raises:
        CannotStart: the network has other weights, or theirs cannot be read.
    """
    try:
        theirs = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # torch has no class of its own for a damaged file
        raise CannotStart(f"the weights of {name} cannot be read") from None
    ours = model.network.state_dict()
    theirs = {key.removeprefix("network."): value for key, value in theirs.items() if key.startswith("network.")}
    levels = {field.name: field.levels for field in contract.inputs}
    taken = {}
    for key, weight in ours.items():
        if key not in theirs:
            raise CannotStart(f"its network has no {key}, so {name} has another architecture")
        embedding = EMBEDDING.fullmatch(key)
        found: Tensor = theirs[key]
        if embedding is not None and schema.categorical:
            column = schema.categorical[int(embedding[1])]
            found = _by_level(found, levels.get(column.name) or [], column.levels)
        if found.shape != weight.shape:
            shapes = f"{tuple(found.shape)}, not {tuple(weight.shape)}"
            raise CannotStart(f"{key} of {name} has the shape {shapes}: another architecture, or other columns")
        taken[key] = found
    if not any(EMBEDDING.fullmatch(key) for key in ours):
        for column in schema.categorical:
            if levels.get(column.name) != column.levels:
                raise CannotStart(f"{name} has other levels of {column.name}")
    if extra := sorted(theirs.keys() - ours.keys()):
        raise CannotStart(f"{name} has {extra[0]}, so it has another architecture")
    model.network.load_state_dict(taken)


def _by_level(weights: Tensor, theirs: list[str], ours: list[str]) -> Tensor:
    """The rows of an embedding `(1 + levels, width)` in the order of our levels; row 0, for unknown ones, if they lack one."""
    if len(weights) != len(theirs) + 1:
        return weights
    row = {level: index + 1 for index, level in enumerate(theirs)}
    return weights[torch.tensor([0, *(row.get(level, 0) for level in ours)])]
