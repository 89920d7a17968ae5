"""Networks for batches of whole graphs, with one answer per graph that does not depend on the rest of the batch.

B: graphs of a batch. n, e: nodes and directed edges of its largest graph. F: features of a node.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headrace.models.graph_networks import GraphNetwork
from headrace.models.schema import Schema
from headrace.models.served import MAX_DEVIATION


class ScaleNodes(nn.Module):
    """Standardises `features` `(B, n, F)`; `edges` `(B, e, 2)` and `sizes` `(B, 2)` pass through.

    All are truncated to the batch's largest graph, except on a GPU, which would have to wait for its size, and in tracing.
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
        return ((features - self.mean) / self.std).clamp(-MAX_DEVIATION, MAX_DEVIATION), edges, sizes


class SideBySide(nn.Module):
    """Joins the graphs of a batch into one with a block-diagonal adjacency. Padding becomes nodes that the readout ignores, and
    edges of weight 0."""

    def __init__(self, network: GraphNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, edges: Tensor, sizes: Tensor) -> Tensor:
        """Returns logits `(B, classes)` of `features` `(B, n, F)` and `edges` `(B, e, 2)`; `sizes` `(B, 2)` without padding."""
        rows, nodes = features.shape[:2]
        there = torch.arange(nodes, device=sizes.device) < sizes[:, :1]
        weight = torch.arange(edges.shape[1], device=sizes.device) < sizes[:, 1:]
        first = torch.arange(rows, device=sizes.device) * nodes
        with torch.autocast(features.device.type, enabled=False):  # sums over many neighbours need full precision
            logits: Tensor = self.network(
                features.flatten(0, 1), (edges + first[:, None, None]).flatten(0, 1), weight.flatten().float(), there
            )
        return logits
