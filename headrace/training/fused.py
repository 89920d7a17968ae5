"""Adam and AdamW on the CPU without torch's bookkeeping around each step, which takes longer than the step of a small model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer


class FusedAdam(Adam):
    """torch's Adam, or AdamW with `decoupled_weight_decay`: its state, its kernel, its bits.

    `move` hands the kernel lists that are put together once. It is torch's own `step` where a parameter has no gradient, and
    in the first step, in which torch makes the state.
    """

    _lists: list[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] | None = None
    """Of each group: parameters, both moments, and their counts of steps."""

    @torch.no_grad()
    def move(self) -> None:
        """Moves the weights by the gradients, and drops these."""
        lists = self._lists = self._lists or self._collect()
        gradients: list[list[Any]] = [[parameter.grad for parameter in group["params"]] for group in self.param_groups]
        if lists is None or any(gradient is None for group in gradients for gradient in group):
            self.step()
        else:
            for group, found, (parameters, first, second, steps) in zip(self.param_groups, gradients, lists, strict=True):
                torch._foreach_add_(steps, 1)
                kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
                kernel(
                    parameters,
                    found,
                    first,
                    second,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _collect(self) -> list[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] | None:
        """None until every parameter has a state, and where one kernel cannot take a whole group."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        kinds = {(parameter.device.type, parameter.dtype, type(parameter.data)) for parameter in parameters}
        if kinds != {("cpu", torch.float32, Tensor)} or not all(self.state.get(parameter) for parameter in parameters):
            return None
        names = ("exp_avg", "exp_avg_sq", "step")
        return [
            (group["params"], *([self.state[p][name] for p in group["params"]] for name in names))
            for group in self.param_groups
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lists = None  # torch has made other tensors


def move(optimizer: Optimizer) -> None:
    """Moves the weights by the gradients, and drops these."""
    if isinstance(optimizer, FusedAdam):
        optimizer.move()
    else:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
