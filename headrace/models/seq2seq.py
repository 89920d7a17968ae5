"""A transformer encoder-decoder that can copy tokens of its source.

B: rows. S: tokens of a source. T: tokens of a summary. K: beams of a row. P: tokens decoded before. V: vocabulary.
D: width. H: heads. L: layers of the decoder. N: tokens of a batch of summaries: without their padding, but on a GPU with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.schema import Shape
from headrace.recipe.models import Seq2SeqConfig
from headrace.runtime.tokenizer import PAD

SMALLEST = 1e-12
"""Smallest probability: the logarithm of zero would be infinite."""


class Seq2Seq(nn.Module):
    """Pre-norm transformer layers on both sides (Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745),
    one embedding for sources, summaries and the output (Press & Wolf 2017, arXiv:1608.05859), and a pointer that copies
    tokens of the source (See et al. 2017, arXiv:1704.04368).

    `forward` takes sources `(B, S)` and summaries `(B, T)` that begin with a start token, int64 and padded, and
    returns the log-probabilities `(N, V)` of what follows each token of the summaries.
    """

    def __init__(self, config: Seq2SeqConfig, shape: Shape) -> None:
        super().__init__()
        width = config.width
        self.scale = width**0.5
        self.embedding = nn.Embedding(shape.vocabulary, width, padding_idx=PAD)
        self.source_positions = nn.Embedding(shape.length, width)
        self.summary_positions = nn.Embedding(shape.answer_length + 1, width)
        for table in (self.embedding, self.source_positions, self.summary_positions):
            nn.init.normal_(table.weight, std=1 / self.scale)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(config.dropout)
        settings = (width, config.heads, width * config.expansion, config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*settings) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        decoder = nn.ModuleList(DecoderLayer(*settings) for _ in range(config.decoder_layers))
        self.decoder: Sequence[DecoderLayer] = decoder  # type: ignore[assignment]
        self.decoder_norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))
        self.pointer = Pointer(width)

    def forward(self, source: Tensor, summary: Tensor) -> Tensor:
        memory, seen = self.read(source), seen_positions(source)
        states = self.embed(summary, self.summary_positions)
        for layer in self.decoder:
            states = layer(states, memory, seen)
        states = self.decoder_norm(states)
        weights, gate = self.pointer(states, self.pointer.remember(memory), seen)
        copied = source[:, None].expand(-1, summary.shape[1], -1)
        parts = (states, weights, gate, copied)
        if summary.is_cuda or torch.compiler.is_compiling():  # a GPU would have to wait for the number of tokens
            return self.mix(*(part.flatten(0, 1) for part in parts))
        kept = summary != PAD
        return self.mix(*(part[kept] for part in parts))

    def read(self, source: Tensor) -> Tensor:
        """Encodes sources `(B, S)` to `(B, S, D)`."""
        states, seen = self.embed(source, self.source_positions), seen_positions(source)
        for layer in self.encoder:
            states = layer(states, seen)
        normed: Tensor = self.encoder_norm(states)
        return normed

    def embed(self, tokens: Tensor, positions: nn.Embedding) -> Tensor:
        """Embeds tokens of whole texts, `(B, S)` to `(B, S, D)`."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.at(tokens, positions(places))

    def at(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Embeds tokens at positions whose embeddings are `position`, which is broadcast over rows."""
        embedded: Tensor = self.dropout((self.embedding(tokens) + position) * self.scale)
        return embedded

    def mix(self, states: Tensor, weights: Tensor, gate: Tensor, source: Tensor) -> Tensor:
        """Returns log-probabilities `(..., V)` of the mixture (See et al. 2017, eq. 9): a token is generated or copied.

        Args:
            states: `(..., D)`.
            weights: copying weight of each position of the source, `(..., S)`.
            gate: logits of generating and of copying, `(..., 2)`.
            source: token at each position, `(..., S)`.
        """
        # a softmax: ONNX Runtime's sigmoid loses all precision near zero
        generate, copy = gate.softmax(-1).chunk(2, dim=-1)
        generated = F.linear(states, self.embedding.weight, self.bias).softmax(-1) * generate
        mixed: Tensor = generated.scatter_add(-1, source, weights * copy).clamp_min(SMALLEST).log()
        return mixed


class Attention(nn.Module):
    """Scaled dot-product attention in `heads` heads, over keys and values that `remember` computes and that can be cached."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def remember(self, states: Tensor) -> Tensor:
        """Returns keys and values of `(B, S, D)`, `(B, 2, H, S, D / H)`."""
        rows, length, width = states.shape
        pairs: Tensor = self.key_value(states).view(rows, length, 2, self.heads, width // self.heads)
        return pairs.permute(0, 2, 3, 1, 4)

    def forward(self, states: Tensor, memory: Tensor, seen: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attends from `states` `(B, T, D)` to `memory`, at the positions in the mask `seen` `(B, S)`; returns `(B, T, D)`."""
        rows, length, width = states.shape
        query = self.query(states).view(rows, length, self.heads, width // self.heads).transpose(1, 2)
        mask = None if seen is None else seen[:, None, None, :]
        found = F.scaled_dot_product_attention(query, memory[:, 0], memory[:, 1], attn_mask=mask, is_causal=causal)
        mixed: Tensor = self.out(found.transpose(1, 2).reshape(rows, length, width))
        return mixed


class EncoderLayer(nn.Module):
    """Self-attention, then a dense layer of `hidden` features with GELU, both residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dense_norm = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, self.attention.remember(normed), seen))
        added: Tensor = self.dropout(self.dense(self.dense_norm(states)))
        return states + added


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source, then a dense layer, all residual."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.source_norm = nn.LayerNorm(width)
        self.source_attention = Attention(width, heads)
        self.dense_norm = nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """Processes `states` `(B, T, D)` of a whole summary with `memory` `(B, S, D)` of its source; returns `(B, T, D)`."""
        normed = self.attention_norm(states)
        states = states + self.dropout(self.attention(normed, self.attention.remember(normed), causal=True))
        return self.look(states, self.source_attention.remember(memory), seen)

    def step(self, states: Tensor, past: Tensor, memory: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Processes a token per beam: `states` `(B, K, D)`, `past` `(B, K, 2, H, P, D / H)`, `memory` `(B, 2, H, S, D / H)`.

        Returns:
            The states, and `past` with this token: `P + 1`.
        """
        normed = self.attention_norm(states).flatten(0, 1)[:, None]  # each beam becomes a row with one token
        kept = torch.cat([past.flatten(0, 1), self.attention.remember(normed)], dim=3)
        states = states + self.attention(normed, kept).view(states.shape)
        return self.look(states, memory, seen), kept.view(*past.shape[:4], -1, past.shape[5])

    def look(self, states: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
        """Applies the part after self-attention, in which tokens are independent; the token axis may be beams."""
        states = states + self.dropout(self.source_attention(self.source_norm(states), memory, seen))
        added: Tensor = self.dropout(self.dense(self.dense_norm(states)))
        return states + added


class Pointer(nn.Module):
    """Attention whose weights are probabilities of copying, and the gate between copying and generating."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(2 * width, 2)

    def remember(self, memory: Tensor) -> Tensor:
        """Returns keys and values of `(B, S, D)`, `(B, 2, S, D)`."""
        pairs: Tensor = self.key_value(memory).view(*memory.shape[:2], 2, memory.shape[2])
        return pairs.transpose(1, 2)

    def forward(self, states: Tensor, memory: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights `(B, T, S)` and gate logits `(B, T, 2)` for `states` `(B, T, D)`."""
        scores = self.query(states) @ memory[:, 0].transpose(1, 2) * states.shape[2] ** -0.5
        weights = scores.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        return weights, self.gate(torch.cat([states, weights @ memory[:, 1]], dim=-1))


class EncoderGraph(nn.Module):
    """Encodes a source once: `(B, S)` to keys and values for the decoder's layers, `(B, L, 2, H, S, D / H)`, and for the
    pointer, `(B, 2, S, D)`."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.network.read(source)
        layers = [layer.source_attention.remember(memory) for layer in self.network.decoder]
        return torch.stack(layers, dim=1), self.network.pointer.remember(memory)


class DecoderGraph(nn.Module):
    """Decodes one token per beam.

    Takes the last tokens `(B, K)`, the source `(B, S)`, the output of `EncoderGraph`, and the keys and values of the P tokens
    before, `(B, K, L, 2, H, P, D / H)`. Returns log-probabilities `(B, K, V)` and the keys and values with these tokens.
    """

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, source: Tensor, memory: Tensor, pointed: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        network, seen, length = self.network, seen_positions(source), past.shape[5]
        place = torch.arange(length, length + 1, device=tokens.device)
        states = network.at(tokens, network.summary_positions(place))
        kept = []
        for i, layer in enumerate(network.decoder):
            states, present = layer.step(states, past[:, :, i], memory[:, i], seen)
            kept.append(present)
        states = network.decoder_norm(states)
        weights, gate = network.pointer(states, pointed, seen)
        copied = source[:, None].expand(-1, tokens.shape[1], -1)
        return network.mix(states, weights, gate, copied), torch.stack(kept, dim=2)


def seen_positions(source: Tensor) -> Tensor:
    """Returns which positions of `(B, S)` are not padding; in a source of only padding, the first position counts."""
    return (source != PAD) | (torch.arange(source.shape[1], device=source.device) == 0)
