"""Parts of networks for padded token sequences: masks, dropout, and pooling of states into one vector.

B: rows. L: positions, padded with `headrace.runtime.tokenizer.PAD`. H: features of a state. Padding never changes an answer.
A row of only padding (a text without tokens) is processed as one token of padding, so that there is something to pool.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.runtime.tokenizer import PAD, UNKNOWN


def lengths_of(tokens: Tensor) -> Tensor:
    """Returns the number of tokens of each row `(B, L)` without padding, `(B,)` int64, at least 1."""
    return (tokens != PAD).sum(dim=1).clamp(min=1)


def valid_positions(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Returns which positions of `tokens` `(B, L)` are not padding, `(B, L)` bool, at least one per row."""
    return torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]


def reversing(valid: Tensor, lengths: Tensor) -> Tensor:
    """Returns an index `(B, L)` that reverses each text within its own length and leaves padding in place."""
    position = torch.arange(valid.shape[1], device=valid.device)
    return torch.where(valid, lengths[:, None] - 1 - position, position)


def take(states: Tensor, index: Tensor) -> Tensor:
    """Returns states `(B, L, H)` in the order of `index` `(B, M)`, `(B, M, H)`."""
    return states.gather(1, index[:, :, None].expand(-1, -1, states.shape[2]))


class Trim(nn.Module):
    """Truncates a batch `(B, L)` to its longest text: less to compute, the same answer.

    Does nothing on a GPU, which would have to wait for the length, and while a graph is traced.
    """

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        if tokens.is_cuda or torch.compiler.is_compiling():
            return (tokens,)
        return (tokens[:, : int(lengths_of(tokens).max())],)


class TokenDropout(nn.Module):
    """In training, replaces each token with the unknown one with probability `p`: word dropout, Iyyer et al. 2015 (ACL)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return tokens
        dropped = (torch.rand(tokens.shape, device=tokens.device) < self.p) & (tokens != PAD)
        return tokens.masked_fill(dropped, UNKNOWN)


class Pooling(nn.Module):
    """Pools states `(B, L, H)` in one or several ways, which are concatenated: `(B, len(ways) * H)`.

    `attention` weights the states by a learned score, as in Yang et al. 2016 (NAACL, section 2.2).
    """

    def __init__(self, ways: Sequence[str], features: int) -> None:
        super().__init__()
        self.ways = ways
        self.features = len(ways) * features
        if "attention" in ways:
            self.score = nn.Sequential(nn.Linear(features, features), nn.Tanh(), nn.Linear(features, 1, bias=False))

    def forward(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return torch.cat([getattr(self, way)(states, valid, lengths) for way in self.ways], dim=1)

    def max(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return states.masked_fill(~valid[:, :, None], float("-inf")).amax(dim=1)

    def mean(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return states.masked_fill(~valid[:, :, None], 0.0).sum(dim=1) / lengths[:, None]

    def attention(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        scores: Tensor = self.score(states)
        weights = scores.masked_fill(~valid[:, :, None], float("-inf")).softmax(dim=1)
        return (weights * states).sum(dim=1)

    def last(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return take(states, lengths[:, None] - 1)[:, 0]
