"""Finds the implementation of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.plugins import load_class
from headrace.recipe.task_types import task_type_entry
from headrace.task_types.base import TaskType

if TYPE_CHECKING:
    from headrace.recipe.recipe import Recipe


def task_type_of(task: str) -> TaskType:
    """Returns the task type that implements `task`, a built-in name or the path `module:Class` of a custom one.

    Raises:
        ValueError: the task or class does not exist.
    """
    task_type: TaskType = load_class(task_type_entry(task).implements)()
    return task_type


def task_type_for(recipe: Recipe) -> TaskType:
    """Returns the task type of a recipe, which also depends on the form of its data (`headrace.recipe.task_variants`)."""
    task_type: TaskType = load_class(recipe.task_type.implements)()
    return task_type
