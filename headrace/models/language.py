"""Networks that say which token comes next, and the recurrent one of them.

B: rows. L: tokens of this step. V: vocabulary. D: features of an embedding. H: features of a state. N: layers.

A step takes tokens `(B, L)` and what the network remembers of the tokens before, rows first; it gives logits `(B, L, V)` and
what it remembers then. Steps over the parts of a text give the logits of the whole text at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.schema import Shape
from headrace.models.served import AsIs, ServedModel
from headrace.recipe.models import RecurrentLanguageConfig
from headrace.runtime.tokenizer import PAD

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class LanguageNetwork(nn.Module, ABC):
    """What training, export and decoding know of such a network."""

    states: ClassVar[tuple[str, ...]]
    """Names of what is remembered, in the order of `step`."""
    growing: ClassVar[dict[str, int]] = {}
    """States that grow by a step's tokens: the axis along which; the others keep their shape."""

    @abstractmethod
    def start(self, rows: int) -> tuple[Tensor, ...]:
        """What is remembered before the first token; a growing state has no entry yet."""

    @abstractmethod
    def step(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Logits `(B, L, V)` and the states after `tokens` `(B, L)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.step(tokens, *self.start(len(tokens)))[0]


class MaskedNetwork(LanguageNetwork):
    """One whose states grow, and that reads texts of different lengths together all the same: it masks what is not a row's own.

    Without states that grow no mask is needed for that.
    """

    @property
    @abstractmethod
    def row_states(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes, of one row before the first token, of what `step_rows` remembers; each grows at its axis of 0."""

    @abstractmethod
    def step_rows(self, tokens: Tensor, remembered: Tensor, read: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Logits `(B, L, V)`, and of each state what the new tokens add to it.

        Args:
            remembered: `(B,)`: so many of a row's first entries in the states are its own.
            read: `(B,)`: tokens of the row's text before these.
        """


class LanguageModel(ServedModel):
    """Logits `(B, L, V)` of the next token; targets are those tokens `(B, L)`, with `PAD` where none follows."""

    metric_name = "bits_per_token"
    max_evaluation_batch = 16

    def __init__(self, network: LanguageNetwork) -> None:
        super().__init__(AsIs(), network)

    def answer(self, raw: Tensor) -> Tensor:
        return raw

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(raw.flatten(0, 1), target.flatten(), ignore_index=PAD)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        return self.loss(raw, target) / math.log(2)

    def count_items(self, target: Tensor) -> Tensor:
        return (target != PAD).sum()


class TiedOutput(nn.Module):
    """Features `(..., D)` to logits `(..., V)` by the embedding's own weights (Press & Wolf 2017, arXiv:1608.05859)."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight, self.bias)


class RecurrentLanguage(LanguageNetwork):
    """Embedding, layers of LSTM or GRU, a projection, and the embedding again as output. Takes tokens `(B, L)` int64."""

    def __init__(self, config: RecurrentLanguageConfig, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, config.embedding)
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)
        between = config.dropout if config.layers > 1 else 0.0
        self.layers = CELLS[config.cell](config.embedding, config.hidden, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Linear(config.hidden, config.embedding)
        self.out = TiedOutput(self.embedding)
        self.states = ("hidden", "cell")[: 2 if config.cell == "lstm" else 1]  # type: ignore[misc]

    def start(self, rows: int) -> tuple[Tensor, ...]:
        """`(B, N, H)` each."""
        weight = self.embedding.weight
        return tuple(weight.new_zeros(rows, self.layers.num_layers, self.layers.hidden_size) for _ in self.states)

    def step(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        before = tuple(state.transpose(0, 1).contiguous() for state in states)  # torch has the layers first
        read, after = self.layers(self.dropout(self.embedding(tokens)), before if len(before) > 1 else before[0])
        logits = self.out(self.project(self.dropout(read)))
        after = after if isinstance(after, tuple) else (after,)
        return logits, *(state.transpose(0, 1) for state in after)
