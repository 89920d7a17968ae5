"""What the training loss minds beside the labels as they are: smoothing, and what a row of each class counts for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.errors import RecipeError, near_miss
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig


def emphasise(model: ServedModel, config: TrainConfig, target: Tensor, labels: Sequence[str | int] | None) -> None:
    """Tells the model's loss of label smoothing and class weights; the validation loss stays the plain one.

    Args:
        target: class indices of the training rows `(N,)`.
        labels: of the classes, in the order of their indices.

    Raises:
        RecipeError: the model's loss knows no such thing, or a weight is given for a label that no row has.
    """
    for name, wanted in (("label_smoothing", config.label_smoothing > 0), ("class_weights", config.class_weights != "none")):
        if wanted and name not in model.loss_options:
            raise RecipeError(
                f"train.{name}: the loss of a {type(model).__name__} knows no {name.replace('_', ' ')}",
                hint=f"leave train.{name} out of the recipe",
            )
    model.label_smoothing = config.label_smoothing
    if config.class_weights != "none":
        device = next(model.parameters()).device  # the targets may lie in a file
        model.class_weights = class_weights(config.class_weights, target, labels or []).to(device)


def class_weights(wanted: str | dict[str | int, float], target: Tensor, labels: Sequence[str | int]) -> Tensor:
    """One weight a class, scaled so that their mean over the training rows is 1 and the learning rate means what it meant.

    Balanced weights are rows / (classes · rows of the class), as scikit-learn has them (King & Zeng 2001).

    Raises:
        RecipeError: a label that no row has.
    """
    counts = torch.bincount(target.cpu(), minlength=len(labels)).double()
    if isinstance(wanted, dict):
        weights = torch.ones(len(counts), dtype=torch.float64)
        names = [str(label) for label in labels]
        for label, weight in wanted.items():
            if str(label) not in names:
                raise RecipeError(
                    f"train.class_weights: no row has the label {label!r}; {near_miss(str(label), names)}",
                    hint="name labels as they stand in the target column; those left out count 1",
                )
            weights[names.index(str(label))] = weight
    else:
        weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return (weights * counts.sum() / (weights * counts).sum()).float()
