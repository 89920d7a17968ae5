"""Pruning by magnitude: the smallest weights of all layers together become zero, and the others are trained further (Han et al.
2015, arXiv:1506.02626), with the whole learning-rate schedule again (Renda et al. 2020, arXiv:2003.02389)."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune

from headrace.errors import RecipeError
from headrace.models.served import ServedModel

PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers whose weights are pruned. Those of recurrent layers, embeddings and norms stay."""


def start_pruning(model: ServedModel, share: float) -> list[tuple[nn.Module, str]]:
    """Sets `share` of the weights to zero, and keeps them there in training, until `finish_pruning`.

    Returns:
        The layers and the names of their weights.

    Raises:
        RecipeError: the network has no such layers.
    """
    layers: list[tuple[nn.Module, str]] = [(part, "weight") for part in model.network.modules() if isinstance(part, PRUNED)]
    if not layers:
        raise RecipeError(
            "prune takes weights of linear and convolutional layers, and this network has none",
            where="compress.method",
            hint="use int8-dynamic or distil",
        )
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=share)
    return layers


def finish_pruning(layers: list[tuple[nn.Module, str]]) -> None:
    """Makes the zeros permanent: the weights are plain parameters again."""
    for layer, name in layers:
        prune.remove(layer, name)  # type: ignore[no-untyped-call]


def share_of_zeros(layers: list[tuple[nn.Module, str]]) -> float:
    """Returns the share of the weights of these layers that are zero."""
    found = [getattr(layer, name) for layer, name in layers]
    return float(sum(int((weight == 0).sum()) for weight in found) / sum(weight.numel() for weight in found))
