"""The trees of a model of scikit-learn, and the check of their indices, which code that predicts trusts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from headrace.importing.errors import ImportRefused
from headrace.importing.formats import SKOPS

TREES = {
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
}
"""Classes of scikit-learn that hold arrays alone; skops does not trust them, because code that walks through a tree trusts its
indices. `check_trees` compares those."""


def check_trees(model: Any, shown: str) -> None:
    """Checks that each tree leads to nodes and columns that exist, and to its end: code that predicts does not.

    Raises:
        ImportRefused: one does not.
    """
    width = int(getattr(model, "n_features_in_", 0) or 0)
    for step in steps_of(model):
        columns = int(getattr(step, "n_features_in_", width) or width)
        for tree in trees_of(step):
            if not _is_sound(tree, columns):
                raise ImportRefused(
                    f"a tree of the model in {shown} has nodes that do not exist, or that compare categories; it is not used",
                    where="model.source",
                    hint=f"save the model again: {SKOPS}; numbers in place of categories where it has any",
                )


def steps_of(model: Any) -> Iterator[Any]:
    """The parts of a pipeline, those of its ColumnTransformers too."""
    yield model
    for _, step in getattr(model, "steps", []):
        yield from steps_of(step)
    for found in getattr(model, "transformers_", []):
        if not isinstance(found[1], str):
            yield from steps_of(found[1])


def trees_of(step: Any) -> Iterator[Any]:
    """The trees of an estimator or of its parts."""
    if hasattr(step, "tree_"):
        yield step.tree_
    for one in np.ravel(np.asarray(getattr(step, "estimators_", []), dtype=object)):
        yield from trees_of(one)
    for stage in getattr(step, "_predictors", []):
        yield from stage


def _is_sound(tree: Any, columns: int) -> bool:
    if hasattr(tree, "children_left"):
        left, right, compared = tree.children_left, tree.children_right, tree.feature
    else:  # of a HistGradientBoosting model
        nodes = tree.nodes
        if nodes["is_categorical"].any():
            return False
        left, right = (np.where(nodes["is_leaf"], -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
        compared = nodes["feature_idx"].astype(np.int64)
    inner, own, count = left >= 0, np.arange(len(left)), len(left)
    sides = all(bool(((side[inner] > own[inner]) & (side[inner] < count)).all()) for side in (left, right))
    return sides and bool(((compared[inner] >= 0) & (compared[inner] < columns)).all())
