"""Adam and AdamW on the CPU without torch's bookkeeping around each step, which takes longer than the step of a small model.

Calls private functions of torch: `torch._fused_adam_`, `torch._fused_adamw_` and `torch._foreach_add_`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

Lists = list[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]
"""For each group: parameters, first and second moments, and step counts."""


_torch_step = inspect.unwrap(Adam.step)
"""Without torch's wrapper around it, for the reason in `optimizers.step_of`."""


class FusedAdam(Adam):
    """torch's Adam, or AdamW with `decoupled_weight_decay`: the same state, the same kernel, bit for bit the same results.

    `step` passes lists that are built once to the kernel. It falls back to torch's own step if a parameter has no gradient,
    and in the first step, in which torch creates the state.
    """

    _lists: Lists | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves the weights along the gradients. `closure` is not supported, and hooks on steps are not called."""
        assert closure is None
        lists = self._lists = self._lists or self._collect()
        gradients: list[list[Any]] = [[parameter.grad for parameter in group["params"]] for group in self.param_groups]
        if lists is None or any(gradient is None for group in gradients for gradient in group):
            _torch_step(self)
            return
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

    step.hooked = True  # type: ignore[attr-defined]  # torch would wrap the step in its profiler, which costs more than the step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _collect(self) -> Lists | None:
        """Returns None until every parameter has a state, and if one kernel cannot process a whole group."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        types = {(parameter.device.type, parameter.dtype, type(parameter.data)) for parameter in parameters}
        if types != {("cpu", torch.float32, Tensor)} or not all(self.state.get(parameter) for parameter in parameters):
            return None
        names = ("exp_avg", "exp_avg_sq", "step")
        return [
            (group["params"], *([self.state[p][name] for p in group["params"]] for name in names))
            for group in self.param_groups
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._lists = None  # torch has created other tensors
