"""What one step does with the gradients: L1, clipping, the learning rate, the optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from headrace.recipe.training import TrainConfig
from headrace.training.distributed.shards import local
from headrace.training.fused import move
from headrace.training.optimizers import make_optimizers, parameters_of
from headrace.training.schedules import make_schedule


class Update:
    """From gradients to weights. Called once for each step of the run, of which there are `steps`."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps: int) -> None:
        self.config = config
        self.done = 0
        self.schedule = make_schedule(config, steps)
        self.optimizers = make_optimizers(model, config)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.weights = parameters_of(model).decayed

    @property
    def rate(self) -> float:
        """The learning rate of the step to come."""
        return self.config.learning_rate * self.schedule(self.done)

    def __call__(self) -> None:
        self.advance()
        self.apply()

    def advance(self) -> None:
        """Moves on to the next step's learning rate; in place where a CUDA graph reads it from a tensor."""
        rate = self.rate
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        self.done += 1

    def apply(self) -> None:
        """Changes the weights by the gradients, and drops these."""
        if self.config.l1:
            self._add_l1()
        if self.config.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)
        for optimizer in self.optimizers:
            move(optimizer)

    @torch.no_grad()
    def _add_l1(self) -> None:
        """The gradient of l1 · Σ|w| is l1 · sign(w)."""
        touched = [weight for weight in self.weights if weight.grad is not None]
        signs = torch._foreach_sign(local(touched))
        gradients = local(weight.grad for weight in touched if weight.grad is not None)
        torch._foreach_add_(gradients, signs, alpha=self.config.l1)

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # a tensor on the device stays the one that a graph reads
