"""A recurrent network over tokens: LSTM or GRU, in one direction or both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headrace.models.ensemble import Heads
from headrace.models.schema import Shape
from headrace.models.sequences import Pooling, TokenDropout, lengths_of, reversing, take, valid_positions
from headrace.recipe.models import RecurrentConfig
from headrace.runtime.tokenizer import PAD

CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
EMBEDDING_STD = 0.1
"""Standard deviation of new embeddings. With torch's 1.0 the cells saturate, and rare words never move."""


class Recurrent(nn.Module):
    """Embedding, layers of LSTM or GRU, pooling over their states, one linear layer.

    With `skip`, the embeddings are pooled as well and have an output layer of their own. Takes padded tokens
    `(batch, length)` int64, returns `(batch, outputs)`; in training with `skip`, the shape that `Heads` returns.
    """

    def __init__(self, config: RecurrentConfig, shape: Shape) -> None:
        super().__init__()
        width = config.hidden * (2 if config.bidirectional else 1)
        self.token_dropout = TokenDropout(config.token_dropout)
        self.embedding = nn.Embedding(shape.vocabulary, config.embedding, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.layers = nn.ModuleList(
            Layer(config.cell, width if i else config.embedding, config.hidden, config.bidirectional)
            for i in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.states = StatePooling(config.pooling, width, config.bidirectional)
        self.words = Pooling(config.pooling, config.embedding) if config.skip else None
        features = [part.features for part in (self.states, self.words) if part is not None]
        self.heads = Heads(features, shape.outputs, shape.independent)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = lengths_of(tokens)
        valid = valid_positions(tokens, lengths)
        words = self.dropout(self.embedding(self.token_dropout(tokens)))
        states = words
        for i, layer in enumerate(self.layers):
            states = layer(self.dropout(states) if i else states, valid, lengths)
        views = [self.states(states, valid, lengths)]
        if self.words is not None:
            views.append(self.words(words, valid, lengths))
        logits: Tensor = self.heads(*(self.dropout(view) for view in views))
        return logits


class Layer(nn.Module):
    """One layer, `(B, L, features)` to `(B, L, hidden)`, or twice as wide if bidirectional.

    The second direction reads each text reversed within its own length, so that padding comes last in both directions and
    never affects a text's states. The result is that of a packed sequence, whose kernels take three times as long on a CPU.
    """

    def __init__(self, cell: str, features: int, hidden: int, bidirectional: bool) -> None:
        super().__init__()
        self.cell = cell
        self.hidden = hidden
        self.forwards = CELLS[cell](features, hidden, batch_first=True)
        self.backwards = CELLS[cell](features, hidden, batch_first=True) if bidirectional else None

    def forward(self, inputs: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._as_operator(inputs, lengths)
        states: Tensor = self.forwards(inputs)[0]
        if self.backwards is None:
            return states
        turned = reversing(valid, lengths)
        return torch.cat([states, take(self.backwards(take(inputs, turned))[0], turned)], dim=2)

    def _as_operator(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Exports ONNX's own operator, which supports lengths; tracing torch's layers would give a loop, or unroll it."""
        directions = [self.forwards] if self.backwards is None else [self.forwards, self.backwards]
        parts = [[_gates_in_onnx_order(part, self.cell) for part in direction.parameters()] for direction in directions]
        weights = [torch.stack([w for w, _, _, _ in parts]), torch.stack([r for _, r, _, _ in parts])]
        biases = torch.stack([torch.cat([b, c]) for _, _, b, c in parts])
        rows, length = inputs.shape[:2]
        attributes: dict[str, Any] = {
            "hidden_size": self.hidden,
            "direction": "forward" if self.backwards is None else "bidirectional",
        }
        if self.cell == "gru":
            attributes["linear_before_reset"] = 1  # torch's variant
        states = torch.onnx.ops.symbolic(
            self.cell.upper(),
            [inputs.transpose(0, 1), *weights, biases, lengths.int()],
            attributes,
            dtype=inputs.dtype,
            shape=(length, len(directions), rows, self.hidden),
        )
        return states.permute(2, 0, 1, 3).flatten(2)


def _gates_in_onnx_order(part: Tensor, cell: str) -> Tensor:
    """Reorders the rows of a weight or bias. In torch, gates are input, forget, cell, output or reset, update, new; in ONNX,
    input, output, forget, cell or update, reset, hidden (operators LSTM and GRU)."""
    gates = part.chunk(4 if cell == "lstm" else 3)
    return torch.cat([gates[i] for i in ((0, 3, 1, 2) if cell == "lstm" else (1, 0, 2))])


class StatePooling(Pooling):
    """Pooling whose `last` is the state after the whole text: for the backward direction, the first one."""

    def __init__(self, ways: Sequence[str], features: int, bidirectional: bool) -> None:
        super().__init__(ways, features)
        self.bidirectional = bidirectional

    def last(self, states: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        ends = super().last(states, valid, lengths)
        if not self.bidirectional:
            return ends
        hidden = states.shape[2] // 2
        return torch.cat([ends[:, :hidden], states[:, 0, hidden:]], dim=1)
