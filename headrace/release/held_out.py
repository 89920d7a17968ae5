"""The test rows on which a candidate and the champion can be compared honestly, and how often such rows were used before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.data import split_record
from headrace.data.split_record import SplitRecord
from headrace.errors import DataError, HeadraceError
from headrace.evaluation.error_budget import PastComparison, next_number
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import journal
from headrace.tracking import registry
from headrace.tracking.registry import Version
from headrace.tracking.version_identity import SPLIT


@dataclass(frozen=True)
class TestRows:
    """The test rows of a candidate."""

    __test__ = False
    unseen: NDArray[np.bool_]
    """Which of them the champion was certainly not trained on, `(rows,)`."""
    groups: NDArray[Any] | None
    """The group of each unseen row, where the recipe splits by group."""
    test_set: str | None
    """Identifies the division of rows; None where an earlier version of Headrace prepared them."""


def test_rows(recipe: Recipe, candidate: Version, champion: Version, rows: int, project: Project) -> TestRows:
    """Finds which of the candidate's `rows` test rows the champion was not trained on.

    A champion of an earlier version of Headrace, which kept no record of its split, counts as split in the same way.

    Raises:
        HeadraceError: there is none, or it cannot be known.
    """
    folder = project.artifacts(recipe.name) / "split"
    ours, keys = split_record.read_record(folder), split_record.read_keys(folder)
    if ours is None or keys is None:
        return TestRows(np.ones(rows, dtype=bool), None, None)
    theirs = champion.tags.get(registry.PREFIX + SPLIT)
    unseen = np.ones(len(keys), dtype=bool)
    if theirs is not None:
        same_data = champion.identity.get("data_md5") == candidate.identity.get("data_md5")
        try:
            unseen = split_record.unseen_rows(SplitRecord.model_validate_json(theirs), ours, keys, same_data)
        except DataError as error:
            raise _incomparable(recipe, champion, error.message) from error
        except ValueError as error:
            why = f"its tag {registry.PREFIX}{SPLIT} in MLflow is damaged"
            raise _incomparable(recipe, champion, why) from error
    if not unseen.any():
        raise _incomparable(recipe, champion, f"it may have been trained on all {rows:,} test rows")
    if len(keys) != rows:  # a task type whose answers are not those of the rows
        if not unseen.all():
            raise _incomparable(recipe, champion, "its rows were divided in another way")
        return TestRows(np.ones(rows, dtype=bool), None, ours.sha256)
    grouped = keys[unseen] if recipe.data.split.group is not None else None
    return TestRows(unseen, grouped, ours.sha256)


def _incomparable(recipe: Recipe, champion: Version, why: str) -> HeadraceError:
    return HeadraceError(
        f"the champion {champion.name} cannot be compared on rows that it was not trained on: {why}",
        where=f"recipes/{recipe.name}.yaml: data.split",
        hint="undo the change of data.split; or remove gate.beat_champion for this one release, so that the thresholds "
        "(gate.require) alone decide, and add it again for the next",
    )


def comparison_number(
    recipe: Recipe, test_set: str | None, candidate: Version, champion: Version, rows: int, project: Project
) -> int:
    """Returns which comparison on these test rows this is, counted from 1, by the journal."""
    past = []
    for entry in journal.entries(project, recipe.name):
        found = (entry.facts.get("verdict") or entry.facts).get("comparison") or {}
        if found and found.get("test_set") == test_set:
            past.append(PastComparison(entry.version, found.get("against"), found.get("number", 1), found["rows"]))
    return next_number(past, candidate.version, champion.version, rows)
