"""The optimizers a recipe can name, and which of a model's parameters decay."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer, RMSprop

from headrace.recipe.training import MOMENTUM, TrainConfig
from headrace.training.fused import FusedAdam


@dataclass
class Parameters:
    """A model's parameters by how they are treated."""

    matrices: list[Tensor] = field(default_factory=list)
    """Hidden weight matrices `(out, in)`."""
    weights: list[Tensor] = field(default_factory=list)
    """All other weights that are multiplied with features: filters, the matrix of the output."""
    rest: list[Tensor] = field(default_factory=list)
    """Biases, norms, embeddings: pulling these towards zero regularises nothing (He et al. 2018, arXiv:1812.01187)."""

    @property
    def decayed(self) -> list[Tensor]:
        return self.matrices + self.weights


def parameters_of(model: nn.Module) -> Parameters:
    """The trainable parameters of `model`, each once."""
    found = Parameters()
    embeddings = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim >= 2 and id(parameter) not in embeddings
            (found.rest if not is_weight else found.matrices if parameter.ndim == 2 else found.weights).append(parameter)
    if found.matrices:
        found.weights.append(found.matrices.pop())  # the last one makes the outputs, and is no hidden one
    return found


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """What the recipe names; fused into one kernel where torch has that. Muon leaves to AdamW what is no hidden matrix."""
    parameters = parameters_of(model)
    decay = config.weight_decay
    momentum = MOMENTUM.get(config.optimizer, 0.0) if config.momentum is None else config.momentum
    device = next(model.parameters()).device
    if config.optimizer == "muon":
        groups = decaying(parameters.weights, parameters.rest, decay)
        adamw = AdamW(groups, lr=config.learning_rate, fused=True)
        if not parameters.matrices:
            return [adamw]
        # adjusted so that AdamW's learning rate and decay fit (Liu et al. 2025, arXiv:2502.16982)
        return [Muon(parameters.matrices, config.learning_rate, decay, momentum, adjust_lr_fn="match_rms_adamw"), adamw]
    groups = decaying(parameters.decayed, parameters.rest, decay)
    if config.optimizer == "sgd":
        named = {"foreach": True} if config.is_sharded else {"fused": True}  # the fused kernel takes whole tensors alone
        return [SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0, **named)]
    on_gpu = device.type == "cuda" and config.processes == 1  # where a CUDA graph reads the rate from the device
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    if config.optimizer == "rmsprop":
        return [RMSprop(groups, lr=rate, momentum=momentum, foreach=True, capturable=on_gpu)]
    is_adamw = config.optimizer == "adamw"
    return [FusedAdam(groups, lr=rate, fused=True, capturable=on_gpu, decoupled_weight_decay=is_adamw)]


def decaying(weights: list[Tensor], rest: list[Tensor], decay: float) -> list[dict[str, object]]:
    """Parameter groups, those that have parameters."""
    groups = [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
