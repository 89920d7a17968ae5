"""What is asked for when a model is imported, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.importing.outputs import Labels
from headrace.recipe.models import ImportedConfig
from headrace.runtime.contract import Contract


@dataclass(frozen=True)
class Wanted:
    """What the recipe, or the command, says about an imported model."""

    name: str
    task: str | None
    """None: it is found in the model."""
    config: ImportedConfig
    labels: Labels | None = None
    """Labels that the source says beside the model; those in the model come first."""
    threads: int = 1
    context: int | None = None
    """For language models: `serve.context` of the recipe."""
    parallel: int | None = None
    """For language models: `serve.parallel` of the recipe."""


@dataclass(frozen=True)
class Built:
    """The result: the contract, and facts for people, for the journal and for MLflow."""

    contract: Contract
    facts: dict[str, Any]
