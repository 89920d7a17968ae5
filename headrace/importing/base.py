"""Brings the pretrained encoder that a recipe adapts."""

from __future__ import annotations

from headrace.console import Report
from headrace.importing.store import bring_model
from headrace.project import Project
from headrace.recipe.recipe import Recipe


def bring_base(recipe: Recipe, project: Project, report: Report) -> None:
    """Brings the encoder of a recipe with `model: {name: pretrained}` into `data/<recipe>/model/`, unless it is there. Does
    nothing for other recipes.

    Raises:
        SourceError, ImportRefused, UnusableBase, DiskFull, Busy: as for `bring_model` and `fetch_base`.
    """
    if recipe.base is not None:
        bring_model(recipe.name, recipe.base, project, report)
