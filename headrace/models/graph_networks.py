"""Graph convolution, attention and propagation, for nodes or, with a readout, for whole graphs.

N: nodes. F: features of a node. E: directed edges `(E, 2)`, each from source to target. Self-loops and normalisation are added
here, so that a node without edges is classified by its own features.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.schema import Shape
from headrace.recipe.models import APPNPConfig, GATConfig, GCNConfig


class Bags(NamedTuple):
    """Sparse features `(N, F)`; multiplying them with `F.embedding_bag` is ten times as fast as the dense matrix."""

    feature: Tensor
    """Indices of non-zero features, node after node, `(M,)` int64."""
    starts: Tensor
    """Start of each node's features, `(N,)` int64."""
    values: Tensor
    """Values of the features, `(M,)`."""


class Links(NamedTuple):
    """The edges between N nodes, followed by one self-loop per node."""

    source: Tensor
    """`(E + N,)` int64."""
    target: Tensor
    """`(E + N,)` int64."""
    weight: Tensor
    """1, or 0 for padding edges, `(E + N,)`."""
    nodes: int

    def gather(self, messages: Tensor) -> Tensor:
        """Sums the messages that reach each node: `(E + N, ...)` to `(N, ...)`."""
        return messages.new_zeros((self.nodes, *messages.shape[1:])).index_add(0, self.target, messages)

    def strengths(self) -> Tensor:
        """Returns the entries of `D^-1/2 (A + I) D^-1/2`, one per link, `(E + N,)`."""
        scale = self.gather(self.weight).rsqrt()  # with its self-loop, a node has degree 1 or more
        return self.weight * scale[self.source] * scale[self.target]


def links(edges: Tensor, weight: Tensor | None, nodes: int) -> Links:
    """Returns the links along `edges` `(E, 2)`, with weights `weight` `(E,)`, or 1 by default."""
    loops = torch.arange(nodes, device=edges.device)
    ones = torch.ones(nodes, device=edges.device)
    given = torch.ones(edges.shape[0], device=edges.device) if weight is None else weight
    return Links(
        torch.cat([edges[:, 0], loops]), torch.cat([edges[:, 1], loops]), torch.cat([given.to(ones.dtype), ones]), nodes
    )


class Projection(nn.Module):
    """Computes `dropout(features) @ weight`, for dense features or bags."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(features, outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, features: Tensor | Bags) -> Tensor:
        if isinstance(features, Bags):
            values = F.dropout(features.values, self.dropout, self.training)  # dropping a zero changes nothing
            return F.embedding_bag(features.feature, self.weight, features.starts, mode="sum", per_sample_weights=values)
        return F.dropout(features, self.dropout, self.training) @ self.weight


class GraphConvolution(nn.Module):
    """`D^-1/2 (A + I) D^-1/2 X W + b` (Kipf & Welling 2017, arXiv:1609.02907, eq. 2), `(N, features)` to `(N, outputs)`."""

    def __init__(self, features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.project = Projection(features, outputs, dropout)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, features: Tensor | Bags, along: Links) -> Tensor:
        return along.gather(self.project(features)[along.source] * along.strengths()[:, None]) + self.bias


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
        """Returns the attention weight of each link, `(E + N, heads)`; those of one target node sum to 1."""
        sends, receives = (h * self.sends).sum(dim=2), (h * self.receives).sum(dim=2)
        scores = F.leaky_relu(sends[along.source] + receives[along.target], 0.2)
        # Subtracting each node's largest score keeps exp from overflowing; it cancels, so it needs no gradient.
        place = along.target[:, None].expand_as(scores)
        largest = torch.zeros_like(receives).scatter_reduce(0, place, scores.detach(), "amax", include_self=False)
        grown = (scores - largest[along.target]).exp() * along.weight[:, None]
        return grown / along.gather(grown)[along.target]


class Readout(nn.Module):
    """Pools the nodes of each graph: `(B, n, features)`, and which nodes are not padding, `(B, n)`, to `(B, features)`."""

    def __init__(self, pooling: str, features: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.score = nn.Linear(features, 1) if pooling == "attention" else None

    def forward(self, nodes: Tensor, there: Tensor) -> Tensor:
        present = there[:, :, None].to(nodes.dtype)
        if self.pooling == "max":
            return nodes.masked_fill(~there[:, :, None], -torch.inf).amax(dim=1)
        if self.score is not None:  # Li et al. 2016, arXiv:1511.05493, eq. 7, with a softmax instead of the sigmoid gate
            present = self.score(nodes).masked_fill(~there[:, :, None], -torch.inf).softmax(dim=1)
        total = (nodes * present).sum(dim=1)
        return total / present.sum(dim=1) if self.pooling == "mean" else total


class GraphNetwork(nn.Module):
    """Returns logits of nodes, `(N, outputs)`, or of whole graphs, `(B, outputs)`, through a readout and a linear layer."""

    hops: int
    """The number of edges over which a node's answer depends on others; their degrees need one more."""

    def __init__(self, config: GCNConfig | GATConfig | APPNPConfig, shape: Shape, activation: nn.Module, width: int) -> None:
        """`width`: number of features per node that the readout pools."""
        super().__init__()
        self.activation = activation
        self.readout = Readout(config.pooling, width) if shape.whole else None
        self.head = nn.Linear(width, shape.outputs) if shape.whole else None

    def states(self, features: Tensor | Bags, along: Links) -> Tensor:
        """Returns the state of each node."""
        raise TypeError(f"{type(self).__name__} has no states")

    def forward(
        self, features: Tensor | Bags, edges: Tensor, weight: Tensor | None = None, there: Tensor | None = None
    ) -> Tensor:
        """`features` `(N, F)`, `edges` `(E, 2)`, `weight` `(E,)`; `there` `(B, n)` with B * n = N for whole graphs."""
        nodes = features.starts.shape[0] if isinstance(features, Bags) else features.shape[0]
        h = self.states(features, links(edges, weight, nodes))
        if self.readout is None or self.head is None or there is None:
            return h
        logits: Tensor = self.head(self.readout(self.activation(h).unflatten(0, there.shape), there))
        return logits


class Layered(GraphNetwork):
    """Layers of convolution or attention, with an activation in between."""

    layers: nn.ModuleList

    @property
    def hops(self) -> int:  # type: ignore[override]
        return len(self.layers)

    def states(self, features: Tensor | Bags, along: Links) -> Tensor:
        h: Tensor = self.layers[0](features, along)
        for layer in self.layers[1:]:
            h = layer(self.activation(h), along)
        return h


class GCN(Layered):
    """Graph convolutions with ReLU in between."""

    def __init__(self, config: GCNConfig, shape: Shape) -> None:
        widths = widths_of(config.hidden, shape)
        super().__init__(config, shape, nn.ReLU(), widths[-1])
        self.layers = nn.ModuleList(GraphConvolution(one, after, config.dropout) for one, after in pairwise(widths))


class GAT(Layered):
    """Graph attention with ELU in between; heads of hidden layers are concatenated, those of the last layer averaged."""

    def __init__(self, config: GATConfig, shape: Shape) -> None:
        drops = config.dropout, config.attention_dropout
        layers: list[nn.Module] = []
        width = shape.features
        for hidden in config.hidden:
            layers.append(GraphAttention(width, hidden, config.heads, False, *drops))
            width = config.heads * hidden
        if not shape.whole:
            layers.append(GraphAttention(width, shape.outputs, config.output_heads, True, *drops))
        super().__init__(config, shape, nn.ELU(), width)
        self.layers = nn.ModuleList(layers)


class APPNP(GraphNetwork):
    """Dense layers for each node, whose output H is then propagated: `Z <- (1 - a) D^-1/2 (A + I) D^-1/2 Z + a H`, repeatedly
    (Gasteiger, Bojchevski, Guennemann 2019, arXiv:1810.05997, eq. 4)."""

    def __init__(self, config: APPNPConfig, shape: Shape) -> None:
        widths = widths_of(config.hidden, shape)
        super().__init__(config, shape, nn.ReLU(), widths[-1])
        self.hops, self.teleport, self.edge_dropout = config.steps, config.teleport, config.edge_dropout
        self.layers = nn.ModuleList(Projection(one, after, config.dropout) for one, after in pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(width) for width in widths[1:])

    def states(self, features: Tensor | Bags, along: Links) -> Tensor:
        h: Tensor = self.layers[0](features) + self.biases[0]
        for layer, bias in zip(self.layers[1:], self.biases[1:], strict=True):
            h = layer(self.activation(h)) + bias
        z, strengths = h, along.strengths()
        for _ in range(self.hops):
            heard = F.dropout(strengths, self.edge_dropout, self.training)
            z = (1 - self.teleport) * along.gather(z[along.source] * heard[:, None]) + self.teleport * h
        return z


def widths_of(hidden: list[int], shape: Shape) -> list[int]:
    """Returns the number of features per node before and after each layer; without a readout, the last are logits."""
    return [shape.features, *hidden, *([] if shape.whole else [shape.outputs])]
