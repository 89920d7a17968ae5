"""Label smoothing and class weights of the training loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrace.errors import RecipeError, near_miss
from headrace.models.served import ServedModel
from headrace.recipe.training import TrainConfig


def set_loss_weights(model: ServedModel, config: TrainConfig, target: Tensor, labels: Sequence[str | int] | None) -> None:
    """Sets label smoothing and class weights of the model's training loss; the validation loss does not use them.

    Args:
        target: class indices of the training rows `(N,)`.
        labels: labels of the classes, in the order of their indices.

    Raises:
        RecipeError: the model's loss does not support it, or a weight is given for a label that no row has.
    """
    for name, wanted in (("label_smoothing", config.label_smoothing > 0), ("class_weights", config.class_weights != "none")):
        if wanted and name not in model.loss_options:
            raise RecipeError(
                f"train.{name}: the loss of {type(model).__name__} does not support {name.replace('_', ' ')}",
                hint=f"remove train.{name} from the recipe",
            )
    model.label_smoothing = config.label_smoothing
    if config.class_weights != "none":
        device = next(model.parameters()).device  # the targets may be in a file
        model.class_weights = class_weights(config.class_weights, target, labels or []).to(device)


def class_weights(wanted: str | dict[str | int, float], target: Tensor, labels: Sequence[str | int]) -> Tensor:
    """Returns one weight per class, scaled to a mean of 1 over the training rows, so that the learning rate keeps its meaning.

    Balanced weights are rows / (classes · rows of the class), as in scikit-learn (King & Zeng 2001).

    Raises:
        RecipeError: no row has a label.
    """
    counts = torch.bincount(target.cpu(), minlength=len(labels)).double()
    if isinstance(wanted, dict):
        weights = torch.ones(len(counts), dtype=torch.float64)
        names = [str(label) for label in labels]
        for label, weight in wanted.items():
            if str(label) not in names:
                raise RecipeError(
                    f"train.class_weights: no row has the label {label!r}; {near_miss(str(label), names)}",
                    hint="write labels as in the target column; those not listed have weight 1",
                )
            weights[names.index(str(label))] = weight
    else:
        weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return (weights * counts.sum() / (weights * counts).sum()).float()
