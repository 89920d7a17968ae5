"""Networks that predict the next token, and the recurrent one of them.

B: rows. L: tokens of this step. V: vocabulary. D: features of an embedding. H: features of a state. N: layers.

A step takes tokens `(B, L)` and the state after the tokens before, rows first; it returns logits `(B, L, V)` and the new
state. Steps over the parts of a text give the same logits as the whole text at once.
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
    """The interface of such networks for training, export and decoding."""

    states: ClassVar[tuple[str, ...]]
    """Names of the states, in the order of `step`."""
    growing: ClassVar[dict[str, int]] = {}
    """States that grow by a step's tokens, and the axis along which; the others keep their shape."""

    @abstractmethod
    def start(self, rows: int) -> tuple[Tensor, ...]:
        """Returns the states before the first token; growing states are empty."""

    @abstractmethod
    def step(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Returns logits `(B, L, V)` and the states after `tokens` `(B, L)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.step(tokens, *self.start(len(tokens)))[0]


class MaskedNetwork(LanguageNetwork):
    """A network with growing states that can process texts of different lengths together, by masking what is not a row's own.

    Networks without growing states need no mask.
    """

    @property
    @abstractmethod
    def row_states(self) -> dict[str, tuple[int, ...]]:
        """Names of the states of `step_rows`, and their initial shapes for one row; each grows along its axis of size 0."""

    @abstractmethod
    def step_rows(self, tokens: Tensor, remembered: Tensor, read: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Returns logits `(B, L, V)`, and what the new tokens add to each state.

        Args:
            remembered: number of valid entries at the beginning of a row's states, `(B,)`.
            read: number of the row's tokens before these, `(B,)`.
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
        before = tuple(state.transpose(0, 1).contiguous() for state in states)  # in torch, layers come first
        read, after = self.layers(self.dropout(self.embedding(tokens)), before if len(before) > 1 else before[0])
        logits = self.out(self.project(self.dropout(read)))
        after = after if isinstance(after, tuple) else (after,)
        return logits, *(state.transpose(0, 1) for state in after)
