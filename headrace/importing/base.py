"""Brings the pretrained encoder that a recipe adapts."""

from __future__ import annotations

from headrace.console import Report
from headrace.importing.store import bring_model
from headrace.models.pretrained_base import require_packages
from headrace.project import Project
from headrace.recipe.recipe import Recipe


def bring_base(recipe: Recipe, project: Project, report: Report) -> None:
    """Brings the encoder of a recipe with `model: {name: pretrained}` into `data/<recipe>/model/`, unless it is there. Does
    nothing for other recipes.

    Raises:
        UnusableBase: packages are missing, or the encoder cannot be used.
        SourceError, ImportRefused, DiskFull, Busy: as for `bring_model`.
    """
    if recipe.base is not None:
        require_packages()
        bring_model(recipe.name, recipe.base, project, report)
