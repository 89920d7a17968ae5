"""Graph convolution and graph attention, for nodes or, with a readout behind them, for whole graphs.

N: nodes. F: features of a node. E: directed edges, `(E, 2)` from which node to which. Self-loops and normalisation are made
inside, so that a node without edges is answered from its own features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.kinds.base import Shape
from headrace.models.registry import GATConfig, GCNConfig


class Bags(NamedTuple):
    """Features `(N, F)` of which few are not zero; `F.embedding_bag` multiplies them, ten times as fast as the full matrix."""

    feature: Tensor
    """`(M,)` int64: which features, node after node."""
    starts: Tensor
    """`(N,)` int64: where each node's features begin."""
    values: Tensor
    """`(M,)`."""


class Links(NamedTuple):
    """Messages between N nodes: every edge, then every node to itself."""

    source: Tensor
    """`(E + N,)` int64."""
    target: Tensor
    """`(E + N,)` int64."""
    weight: Tensor
    """`(E + N,)`: 1, or 0 for an edge that only fills a batch up."""
    nodes: int

    def gather(self, messages: Tensor) -> Tensor:
        """The sum of what reaches each node: `(E + N, ...)` to `(N, ...)`."""
        return messages.new_zeros((self.nodes, *messages.shape[1:])).index_add(0, self.target, messages)


def links(edges: Tensor, weight: Tensor | None, nodes: int) -> Links:
    """The links along `edges` `(E, 2)`, whose weights are 1 unless `weight` `(E,)` says otherwise."""
    loops = torch.arange(nodes, device=edges.device)
    ones = torch.ones(nodes, device=edges.device)
    given = torch.ones(edges.shape[0], device=edges.device) if weight is None else weight
    return Links(
        torch.cat([edges[:, 0], loops]), torch.cat([edges[:, 1], loops]), torch.cat([given.to(ones.dtype), ones]), nodes
    )


class Projection(nn.Module):
    """`dropout(features) @ weight`, for features in full or as bags."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(features, outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor | Bags) -> Tensor:
        if isinstance(features, Bags):
            values = F.dropout(features.values, self.dropout, self.training)  # to drop a zero changes nothing
            return F.embedding_bag(features.feature, self.weight, features.starts, mode="sum", per_sample_weights=values)
        return F.dropout(features, self.dropout, self.training) @ self.weight


class GraphConvolution(nn.Module):
    """`D^-1/2 (A + I) D^-1/2 X W + b` (Kipf & Welling 2017, arXiv:1609.02907, eq. 2), `(N, features)` to `(N, outputs)`."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.project = Projection(features, outputs, dropout)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor | Bags, along: Links) -> Tensor:
        scale = along.gather(along.weight).rsqrt()  # a node's loop makes its degree at least 1
        strength = along.weight * scale[along.source] * scale[along.target]
        return along.gather(self.project(features)[along.source] * strength[:, None]) + self.bias


class GraphAttention(nn.Module):
    """Attention over a node's neighbours and itself (Velickovic et al. 2018, arXiv:1710.10903, eq. 1 to 6).

    `(N, features)` to `(N, heads * outputs)`, or to the heads' mean `(N, outputs)`.
    """

    def __init__(self, features: int, outputs: int, heads: int, mean: bool, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.mean, self.attention_dropout = heads, mean, attention_dropout
        self.project = Projection(features, heads * outputs, dropout)
        self.sends = nn.Parameter(torch.empty(heads, outputs))
        self.receives = nn.Parameter(torch.empty(heads, outputs))
        nn.init.xavier_uniform_(self.sends)
        nn.init.xavier_uniform_(self.receives)
        self.bias = nn.Parameter(torch.zeros(outputs if mean else heads * outputs))

    def forward(self, features: Tensor | Bags, along: Links) -> Tensor:
        h = self.project(features).unflatten(1, (self.heads, -1))
        shares = F.dropout(self.shares(h, along), self.attention_dropout, self.training)
        heard = along.gather(h[along.source] * shares[:, :, None])
        return (heard.mean(dim=1) if self.mean else heard.flatten(1)) + self.bias

    def shares(self, h: Tensor, along: Links) -> Tensor:
        """How much each link counts where it ends, `(E + N, heads)`; those that end in one node sum to 1."""
        sends, receives = (h * self.sends).sum(dim=2), (h * self.receives).sum(dim=2)
        scores = F.leaky_relu(sends[along.source] + receives[along.target], 0.2)
        # The largest score of each node is taken off, lest exp overflow; it cancels, and so needs no gradient.
        place = along.target[:, None].expand_as(scores)
        largest = torch.zeros_like(receives).scatter_reduce(0, place, scores.detach(), "amax", include_self=False)
        grown = (scores - largest[along.target]).exp() * along.weight[:, None]
        return grown / along.gather(grown)[along.target]


class Readout(nn.Module):
    """The nodes of each graph as one vector: `(B, n, features)` and which of the n are there, `(B, n)`, to `(B, features)`."""

    def __init__(self, pooling: str, features: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Linear(features, 1) if pooling == "attention" else None

    def forward(self, nodes: Tensor, there: Tensor) -> Tensor:
        present = there[:, :, None].to(nodes.dtype)
        if self.pooling == "max":
            return nodes.masked_fill(~there[:, :, None], -torch.inf).amax(dim=1)
        if self.score is not None:  # as Li et al. 2016, arXiv:1511.05493, eq. 7, with a softmax for the gate
            present = self.score(nodes).masked_fill(~there[:, :, None], -torch.inf).softmax(dim=1)
        total = (nodes * present).sum(dim=1)
        return total / present.sum(dim=1) if self.pooling == "mean" else total


class GraphNetwork(nn.Module):
    """Layers of convolution or attention with an activation between them.

    For nodes the last layer gives the logits `(N, outputs)`. For whole graphs a readout and a linear layer follow.
    """

    def __init__(self, layers: list[nn.Module], activation: nn.Module, readout: Readout | None, head: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        self.readout, self.head = readout, head

    @property
    def hops(self) -> int:
        """Over how many edges a node's answer looks; the degree of what it sees is one further."""
        return len(self.layers)

    def forward(
        self, features: Tensor | Bags, edges: Tensor, weight: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        """`features` `(N, F)`, `edges` `(E, 2)`, `weight` `(E,)`; `there` `(B, n)` with B * n = N for whole graphs."""
        nodes = features.starts.shape[0] if isinstance(features, Bags) else features.shape[0]
        along = links(edges, weight, nodes)
        h: Tensor | Bags = features
        for i, layer in enumerate(self.layers):
            h = layer(self.activation(h) if i else h, along)
        assert isinstance(h, Tensor)
        if self.readout is None or self.head is None or there is None:
            return h
        logits: Tensor = self.head(self.readout(self.activation(h).unflatten(0, there.shape), there))
        return logits


class GCN(GraphNetwork):
    """Graph convolutions with ReLU between them."""

    def __init__(self, config: GCNConfig, shape: Shape) -> None:
        widths = [shape.features, *config.hidden, *([] if shape.whole else [shape.outputs])]
        layers: list[nn.Module] = [GraphConvolution(width, after, config.dropout) for width, after in pairwise(widths)]
        super().__init__(layers, nn.ReLU(), *ending(config.pooling, widths[-1], shape))


class GAT(GraphNetwork):
    """Graph attention with ELU between; the heads of a hidden layer stand side by side, those of the last are averaged."""

    def __init__(self, config: GATConfig, shape: Shape) -> None:
        drops = config.dropout, config.attention_dropout
        layers: list[nn.Module] = []
        width = shape.features
        for hidden in config.hidden:
            layers.append(GraphAttention(width, hidden, config.heads, False, *drops))
            width = config.heads * hidden
        if not shape.whole:
            layers.append(GraphAttention(width, shape.outputs, config.output_heads, True, *drops))
        super().__init__(layers, nn.ELU(), *ending(config.pooling, width, shape))


def ending(pooling: str, width: int, shape: Shape) -> tuple[Readout | None, nn.Module | None]:
    """What follows the layers where one answer is for a whole graph."""
    return (Readout(pooling, width), nn.Linear(width, shape.outputs)) if shape.whole else (None, None)
