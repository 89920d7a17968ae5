"""A text as one vector, beside the numbers and categories of a table. B: rows. L: tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.attention import Attention
from headrace.models.schema import Shape
from headrace.models.sequences import Pooling, TokenDropout, Trim, lengths_of, valid_positions
from headrace.models.served import ScaleTable
from headrace.recipe.models import AttentionConfig, TextVectorConfig
from headrace.runtime.tokenizer import PAD


class TextVector(nn.Module):
    """Padded tokens `(B, L)` int64 to vectors `(B, features)`."""

    def __init__(self, config: TextVectorConfig, shape: Shape) -> None:
        super().__init__()
        self.trim = Trim()
        self.encoder: nn.Module
        if config.encoder == "attention":
            attention = AttentionConfig(
                width=config.width,
                heads=config.heads,
                layers=config.layers,
                dropout=config.dropout,
                token_dropout=config.token_dropout,
            )
            self.features = config.width
            self.encoder = Attention(attention, shape.model_copy(update={"outputs": config.width}))
        else:
            embeddings = PooledEmbeddings(config, shape)
            self.features, self.encoder = embeddings.pooling.features, embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        (trimmed,) = self.trim(tokens)
        vectors: Tensor = self.encoder(trimmed)
        return vectors


class PooledEmbeddings(nn.Module):
    """The mean and the largest value of the embeddings of a text's tokens: `(B, L)` to `(B, 2 * width)`."""

    def __init__(self, config: TextVectorConfig, shape: Shape) -> None:
        super().__init__()
        self.token_dropout = TokenDropout(config.token_dropout)
        self.embedding = nn.Embedding(shape.vocabulary, config.width, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PAD].zero_()
        self.dropout = nn.Dropout(config.dropout)
        self.pooling = Pooling(["mean", "max"], config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = lengths_of(tokens)
        words = self.dropout(self.embedding(self.token_dropout(tokens)))
        found: Tensor = self.pooling(words, valid_positions(tokens, lengths), lengths)
        return found


class ScaleTextTable(ScaleTable):
    """Prepares the columns as `ScaleTable` does; the tokens of the text, the last input, pass through."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        *columns, tokens = inputs
        if not columns:  # a text alone
            rows = tokens.shape[0]
            return tokens.new_zeros((rows, 0), dtype=torch.float32), tokens.new_zeros((rows, 0)), tokens
        return (*super().forward(*columns), tokens)
