"""A network over batches of whole graphs: one answer a graph, the same alone as beside others.

B: graphs of a batch. n, e: nodes and directed edges of its largest graph. F: features of a node.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.graph_networks import GraphNetwork
from headrace.models.schema import Schema
from headrace.models.served import FARTHEST


class ScaleNodes(nn.Module):
    """Standardises `features` `(B, n, F)`; `edges` `(B, e, 2)` and `sizes` `(B, 2)` pass through.

    All are cut after the batch's largest graph, where its size is known without waiting: not on a GPU, nor in tracing.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([column.mean for column in schema.numeric]))
        self.register_buffer("std", torch.tensor([column.std for column in schema.numeric]))

    def forward(self, features: Tensor, edges: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        if not (sizes.is_cuda or torch.compiler.is_compiling()):
            nodes, links = sizes.amax(dim=0).tolist()
            features, edges = features[:, :nodes], edges[:, : max(1, links)]
        return ((features - self.mean) / self.std).clamp(-FARTHEST, FARTHEST), edges, sizes


class SideBySide(nn.Module):
    """The graphs of a batch as one without an edge between them: a block-diagonal adjacency. What fills the batch up are nodes
    that no readout counts, and edges of weight 0."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, edges: Tensor, sizes: Tensor) -> Tensor:
        """Logits `(B, classes)` of `features` `(B, n, F)` and `edges` `(B, e, 2)`, of which `sizes` `(B, 2)` count."""
        rows, nodes = features.shape[:2]
        there = torch.arange(nodes, device=sizes.device) < sizes[:, :1]
        weight = torch.arange(edges.shape[1], device=sizes.device) < sizes[:, 1:]
        first = torch.arange(rows, device=sizes.device) * nodes
        with torch.autocast(features.device.type, enabled=False):  # sums over a hub's neighbours need all their digits
            logits: Tensor = self.network(
                features.flatten(0, 1), (edges + first[:, None, None]).flatten(0, 1), weight.flatten().float(), there
            )
        return logits
