"""A causal transformer: every token attends to those before it.

B: rows. L: tokens of this step. P: tokens in the state. V: vocabulary. D: width. H: heads. N: blocks.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.language import MaskedNetwork, TiedOutput
from headrace.models.rotary import angles, angles_at, turn
from headrace.models.schema import Shape
from headrace.recipe.models import GPTConfig


class GPT(MaskedNetwork):
    """Embedding, pre-norm blocks of causal attention and a dense part, and the embedding again as output.

    As GPT-2 (Radford et al. 2019), with rotary positions (Su et al. 2021, arXiv:2104.09864) and squared ReLU (So et al. 2021,
    arXiv:2109.08668). The state is keys and values `(B, N, 2, H, P, D / H)` before their rotation: positions count from the
    oldest token in the state, so that the oldest can be dropped and nothing else changes.
    """

    states = ("past",)
    growing: ClassVar[dict[str, int]] = {"past": 4}

    def __init__(self, config: GPTConfig, shape: Shape) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.embedding = nn.Embedding(shape.vocabulary, width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, width * config.expansion, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width, bias=False)
        self.out = TiedOutput(self.embedding)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def start(self, rows: int) -> tuple[Tensor, ...]:
        width = self.embedding.embedding_dim
        return (self.embedding.weight.new_zeros(rows, len(self.blocks), 2, self.heads, 0, width // self.heads),)

    def forward(self, tokens: Tensor) -> Tensor:
        states, turns = self.dropout(self.embedding(tokens)), angles(tokens.shape[1], self._features, tokens.device)
        for block in self.blocks:
            states = block(states, turns)
        return self._logits(states)

    def step(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        (past,) = states
        read, length = past.shape[4], tokens.shape[1]
        turns = angles(read + length, self._features, tokens.device)
        places = torch.arange(read + length, device=tokens.device)
        seen = places[None, :] <= places[read:, None]  # (L, P + L): earlier tokens, and the token itself
        features, kept = self.embedding(tokens), []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            features, present = block.step(features, past[:, i], turns, seen)
            kept.append(present)
        return self._logits(features), torch.stack(kept, dim=1)

    @property
    def row_states(self) -> dict[str, tuple[int, ...]]:
        shape = (self.heads, 0, self._features)
        return {f"{what}_{i}": shape for i in range(len(self.blocks)) for what in ("keys", "values")}

    def step_rows(self, tokens: Tensor, remembered: Tensor, read: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Keys are rotated once, by their position in the whole text, so the state may be in any order."""
        length = tokens.shape[1]
        turns = angles_at(read[:, None] + torch.arange(length, device=tokens.device), self._features)[:, :, None]
        held = torch.arange(states[0].shape[2], device=tokens.device) < remembered[:, None]  # (B, P)
        features, added = self.embedding(tokens), []
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            features, *new = block.step_rows(features, states[2 * i], states[2 * i + 1], turns, held[:, None, None])
            added += new
        return self._logits(features), *added

    def _logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.out(self.norm(states))
        return logits

    @property
    def _features(self) -> int:
        return self.embedding.embedding_dim // self.heads


class Block(nn.Module):
    """Attention to earlier tokens, then a dense part of `hidden` features, both residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.attention = CausalAttention(width, heads, dropout)
        self.dense_norm = nn.LayerNorm(width, bias=False)
        self.dense = Dense(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, turns: Tensor) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), turns))
        added: Tensor = self.dropout(self.dense(self.dense_norm(states)))
        return states + added

    def step(self, states: Tensor, past: Tensor, turns: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Processes `states` `(B, L, D)` after `past` `(B, 2, H, P, D / H)`; returns both, the second with L more."""
        read, present = self.attention.step(self.attention_norm(states), past, turns, seen)
        states = states + read
        added: Tensor = self.dense(self.dense_norm(states))
        return states + added, present

    def step_rows(self, states: Tensor, keys: Tensor, values: Tensor, turns: Tensor, held: Tensor) -> tuple[Tensor, ...]:
        """Like `step`, after `keys` and `values` `(B, H, P, D / H)`; returns the states, and new keys and values."""
        read, key, value = self.attention.step_rows(self.attention_norm(states), keys, values, turns, held)
        states = states + read
        added: Tensor = self.dense(self.dense_norm(states))
        return states + added, key, value


class Dense(nn.Module):
    """Two linear layers with squared ReLU between, `(..., D)` to the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden, bias=False)
        self.outer = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.outer.weight)  # initially, a block adds nothing

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = self.outer(self.inner(states).relu().square())
        return out


class CausalAttention(nn.Module):
    """Attention to the token itself and earlier ones; queries and keys are rotated by `angles` of their positions."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.p = dropout
        self.joint = nn.Linear(width, 3 * width, bias=False)
        self.outer = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, states: Tensor, turns: Tensor) -> Tensor:
        query, key, value = self._split(states)
        p = self.p if self.training else 0.0
        return self._join(
            F.scaled_dot_product_attention(turn(query, turns), turn(key, turns), value, dropout_p=p, is_causal=True)
        )

    def step(self, states: Tensor, past: Tensor, turns: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = self._split(states)
        present = torch.cat([past, torch.stack([key, value], dim=1)], dim=3)
        keys, values = present.unbind(1)
        read = F.scaled_dot_product_attention(
            turn(query, turns[:, -states.shape[1] :]), turn(keys, turns), values, attn_mask=seen
        )
        return self._join(read), present

    def step_rows(self, states: Tensor, keys: Tensor, values: Tensor, turns: Tensor, held: Tensor) -> tuple[Tensor, ...]:
        """Attends without copying the state: scores of state and new tokens are concatenated instead of keys."""
        query, key, value = self._split(states)
        query, key = turn(query, turns) * key.shape[-1] ** -0.5, turn(key, turns)
        length, past = states.shape[1], keys.shape[2]
        causal = torch.ones(length, length, dtype=torch.bool, device=states.device).tril()
        before = (query @ keys.transpose(2, 3)).masked_fill(~held, -torch.inf)
        own = (query @ key.transpose(2, 3)).masked_fill(~causal, -torch.inf)
        weights = torch.cat([before, own], dim=3).softmax(dim=3)
        return self._join(weights[..., :past] @ values + weights[..., past:] @ value), key, value

    def _split(self, states: Tensor) -> tuple[Tensor, ...]:
        """Returns query, key and value, each `(B, H, L, D / H)`."""
        rows, length, width = states.shape
        joint: Tensor = self.joint(states).view(rows, length, 3, self.heads, width // self.heads)
        return joint.permute(2, 0, 3, 1, 4).unbind(0)

    def _join(self, read: Tensor) -> Tensor:
        joined: Tensor = self.outer(read.transpose(1, 2).flatten(2))
        return joined
