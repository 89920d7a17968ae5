"""A transformer encoder over tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.ensemble import Heads
from headrace.models.rotary import angles, turn
from headrace.models.schema import Shape
from headrace.models.sequences import Pooling, TokenDropout, lengths_of, valid_positions
from headrace.recipe.models import AttentionConfig
from headrace.runtime.tokenizer import PAD


class Attention(nn.Module):
    """Embedding, pre-norm transformer blocks, pooling over their states, one linear layer.

    Vaswani et al. 2017 (arXiv:1706.03762) with the norm in front of each part (Xiong et al. 2020, arXiv:2002.04745). With
    `skip`, the embeddings are pooled as well and have an output layer of their own. Takes padded tokens `(batch, length)`
    int64, returns `(batch, outputs)`; in training with `skip`, the shape that `Heads` returns.
    """

    def __init__(self, config: AttentionConfig, shape: Shape) -> None:
        super().__init__()
        rotary = config.positions == "rotary"
        self.token_dropout = TokenDropout(config.token_dropout)
        self.embedding = nn.Embedding(shape.vocabulary, config.width, padding_idx=PAD)
        self.positions = None if rotary else nn.Embedding(shape.length, config.width)
        nn.init.normal_(
            self.embedding.weight, std=0.1 if config.skip else 0.02
        )  # small ones learn slowly when they are pooled directly
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.width * config.expansion, config.dropout, rotary)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.pooling = Pooling(config.pooling, config.width)
        self.words = Pooling(config.pooling, config.width) if config.skip else None
        features = [part.features for part in (self.pooling, self.words) if part is not None]
        self.heads = Heads(features, shape.outputs, shape.independent)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = lengths_of(tokens)
        valid = valid_positions(tokens, lengths)
        words = self.embedding(self.token_dropout(tokens))
        states = words
        if self.positions is not None:
            states = states + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        states = self.dropout(states)
        for block in self.blocks:
            states = block(states, valid[:, None, None, :])
        views = [self.pooling(self.norm(states), valid, lengths)]
        if self.words is not None:
            views.append(self.words(self.dropout(words), valid, lengths))
        logits: Tensor = self.heads(*(self.dropout(view) for view in views))
        return logits


class Block(nn.Module):
    """Self-attention, then a dense layer of `hidden` features with GELU, both residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout, rotary)
        self.dense_norm = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), seen))
        found: Tensor = states + self.dropout(self.dense(self.dense_norm(states)))
        return found


class SelfAttention(nn.Module):
    """Attention of each position to those in the mask `seen` `(B, 1, 1, L)`; `(B, L, width)` to the same shape."""

    def __init__(self, width: int, heads: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.p = dropout
        self.rotary = rotary
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        rows, length, width = states.shape
        joint = self.joint(states).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, width / heads)
        if self.rotary:
            turns = angles(length, width // self.heads, states.device)
            query, key = turn(query, turns), turn(key, turns)
        p = self.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=p)
        found: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return found
