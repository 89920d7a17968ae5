"""Ensembles: the mean of several predictions' probabilities. B: rows.

In training, the logits of all members are stacked and each has its own loss, so that none relies on another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Heads(nn.Module):
    """Logits `(B, outputs)` from several views of a row, each `(B, features)`, with one linear layer per view.

    In training, `(B, views, outputs)`: deep supervision (Lee et al. 2015, arXiv:1409.5185).
    """

    def __init__(self, features: Sequence[int], outputs: int, independent: bool = False) -> None:
        super().__init__()
        self.independent = independent
        self.each = nn.ModuleList(nn.Linear(count, outputs) for count in features)

    def forward(self, *views: Tensor) -> Tensor:
        logits = [head(view) for head, view in zip(self.each, views, strict=True)]
        if len(logits) == 1:
            return logits[0]  # type: ignore[no-any-return]
        side_by_side = torch.stack(logits, dim=1)
        return side_by_side if self.training else mean_of_members(side_by_side, self.independent)


class Ensemble(nn.Module):
    """Copies of a network with different initial weights: a deep ensemble (Lakshminarayanan et al. 2017, arXiv:1612.01474).
    In training, returns `(B, members, outputs)`."""

    def __init__(self, make: Callable[[], nn.Module], members: int, independent: bool = False) -> None:
        super().__init__()
        self.independent = independent
        self.members = nn.ModuleList(make() for _ in range(members))

    def forward(self, *inputs: Tensor) -> Tensor:
        logits = [member(*inputs) for member in self.members]
        side_by_side = torch.cat([each if each.dim() == 3 else each[:, None] for each in logits], dim=1)
        return side_by_side if self.training else mean_of_members(side_by_side, self.independent)


def mean_of_members(logits: Tensor, independent: bool = False) -> Tensor:
    """Returns the logits of the members' mean probabilities: `(B, members, outputs)` to `(B, outputs)`.

    Args:
        independent: whether each output has a probability of its own; otherwise they share one.
    """
    if independent:
        return F.logsigmoid(logits).logsumexp(dim=1) - F.logsigmoid(-logits).logsumexp(dim=1)
    return logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(logits.shape[1])
