"""The optimizers a recipe can name, their learning rates, and which parameters decay."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer, RMSprop

from headrace.recipe.training import MOMENTUM, TrainConfig
from headrace.training.fused_adam import FusedAdam
from headrace.training.schedules import make_schedule
from headrace.training.single_process import local_tensors


class ScheduledOptimizer:
    """The optimizer of a run of `steps` steps, with its learning-rate schedule. Muon needs a second optimizer."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps: int) -> None:
        self.peak = config.learning_rate
        self.steps_done = 0
        self.schedule = make_schedule(config, steps)
        self.optimizers = make_optimizers(model, config)
        self.steps = [step_of(optimizer) for optimizer in self.optimizers]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.decayed = parameters_of(model).decayed

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self.peak * self.schedule(self.steps_done)

    def set_learning_rate(self) -> None:
        """Sets the learning rate of the next step; in place if it is a tensor, from which a CUDA graph reads it."""
        rate = self.learning_rate
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        self.steps_done += 1

    @torch.no_grad()
    def step(self) -> None:
        """Moves the weights along the gradients."""
        for step in self.steps:
            step()

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def add_l1_gradients(self, l1: float) -> None:
        """Adds the gradient of l1 · Σ|w|, which is l1 · sign(w)."""
        used = [weight for weight in self.decayed if weight.grad is not None]
        signs = torch._foreach_sign(local_tensors(used))
        gradients = local_tensors(weight.grad for weight in used if weight.grad is not None)
        torch._foreach_add_(gradients, signs, alpha=l1)

    def state_dict(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps_done = state["steps_done"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # a CUDA graph keeps reading the same tensor


@dataclass
class Parameters:
    """A model's parameters, grouped by how optimizers treat them."""

    matrices: list[Tensor] = field(default_factory=list)
    """Hidden weight matrices `(out, in)`."""
    weights: list[Tensor] = field(default_factory=list)
    """All other weights that are multiplied with features: filters, the matrix of the output layer."""
    rest: list[Tensor] = field(default_factory=list)
    """Biases, norms, embeddings: decaying these does not regularise (He et al. 2018, arXiv:1812.01187)."""

    @property
    def decayed(self) -> list[Tensor]:
        return self.matrices + self.weights


def parameters_of(model: nn.Module) -> Parameters:
    """Groups the trainable parameters of `model`, each once."""
    found = Parameters()
    embeddings = {id(p) for part in model.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim >= 2 and id(parameter) not in embeddings
            (found.rest if not is_weight else found.matrices if parameter.ndim == 2 else found.weights).append(parameter)
    if found.matrices:
        found.weights.append(found.matrices.pop())  # the last one is the output layer's, so it is not a hidden one
    return found


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Returns the optimizers that the recipe names, fused into one kernel if torch supports that. With Muon, AdamW optimizes
    all parameters that are not hidden matrices."""
    _skip_import_of_dynamo()
    parameters = parameters_of(model)
    decay = config.weight_decay
    momentum = MOMENTUM.get(config.optimizer, 0.0) if config.momentum is None else config.momentum
    device = next(model.parameters()).device
    if config.optimizer == "muon":
        groups = parameter_groups(parameters.weights, parameters.rest, decay)
        adamw = AdamW(groups, lr=config.learning_rate, fused=True)
        if not parameters.matrices:
            return [adamw]
        # scaled so that AdamW's learning rate and decay suit it (Liu et al. 2025, arXiv:2502.16982)
        return [Muon(parameters.matrices, config.learning_rate, decay, momentum, adjust_lr_fn="match_rms_adamw"), adamw]
    groups = parameter_groups(parameters.decayed, parameters.rest, decay)
    if config.optimizer == "sgd":
        options = {"foreach": True} if config.is_sharded else {"fused": True}  # the fused kernel cannot process shards
        return [SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0, **options)]
    on_gpu = device.type == "cuda" and config.processes == 1  # a CUDA graph reads the learning rate from the device
    rate = torch.tensor(config.learning_rate, device=device) if on_gpu else config.learning_rate
    if config.optimizer == "rmsprop":
        return [RMSprop(groups, lr=rate, momentum=momentum, foreach=True, capturable=on_gpu)]
    is_adamw = config.optimizer == "adamw"
    return [FusedAdam(groups, lr=rate, fused=True, capturable=on_gpu, decoupled_weight_decay=is_adamw)]


def step_of(optimizer: Optimizer) -> Callable[[], object]:
    """Returns the step of `optimizer`, to be called without gradients.

    torch's wrapper around it does no more than that, and imports the tracer of torch.compile, which takes a second at the start
    of each training. Optimizers are not part of what Headrace compiles.
    """
    return partial(inspect.unwrap(type(optimizer).step), optimizer)


def _skip_import_of_dynamo() -> None:
    """Keeps methods of optimizers from importing the tracer of torch.compile only to tell it not to trace them."""
    if "torch._dynamo" in sys.modules:
        return
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        plain = inspect.unwrap(method)
        plain.__dynamo_disable = plain  # where torch._compile._disable_dynamo looks


def parameter_groups(weights: list[Tensor], rest: list[Tensor], decay: float) -> list[dict[str, object]]:
    """Returns the parameter groups that are not empty."""
    groups = [{"params": weights, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
