"""A classifier of the nodes of one graph: it sees all nodes and edges, and is trained on the nodes that have labels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.models.graph_networks import Bags, GraphNetwork
from headrace.models.schema import Schema
from headrace.models.served import Classifier
from headrace.runtime.graph import Graph


class NodeClassifier(Classifier):
    """Maps node indices `(batch,)` to logits `(batch, classes)`. Every call computes all nodes: they depend on each other.

    The graph is in buffers that are not saved with the weights.
    """

    network: GraphNetwork

    def __init__(self, preprocess: nn.Module, network: GraphNetwork, graph: Graph) -> None:
        super().__init__(preprocess, network)
        features = preprocess(bags(graph) if isinstance(preprocess, RowShares) else matrix(graph))
        self.is_sparse = isinstance(features, Bags)
        for name, tensor in zip(Bags._fields, features if isinstance(features, Bags) else (features,), strict=False):
            self.register_buffer(f"features_{name}", tensor, persistent=False)
        self.edges: Tensor
        self.register_buffer("edges", torch.from_numpy(graph.edges), persistent=False)

    @property
    def features(self) -> Tensor | Bags:
        """The features of all nodes, preprocessed."""
        parts = [self.get_buffer(f"features_{name}") for name in (Bags._fields if self.is_sparse else Bags._fields[:1])]
        return Bags(*parts) if self.is_sparse else parts[0]

    def raw(self, *inputs: Tensor) -> Tensor:
        (place,) = inputs
        with torch.autocast(place.device.type, enabled=False):  # sums over many neighbours need full precision
            logits: Tensor = self.network(self.features, self.edges)
        return logits[place]


class NodeProbabilities(nn.Module):
    """The exported module: any graph's `features` `(nodes, F)` and `edges` `(E, 2)` to probabilities `(nodes, classes)`."""

    def __init__(self, model: NodeClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        features, edges = inputs
        return self.model.answer(self.model.network(self.model.preprocess(features), edges))


class RowShares(nn.Module):
    """Divides a node's features by their sum, as Kipf & Welling do with bags of words; all-zero rows stay zero."""

    def forward(self, features: Tensor | Bags) -> Tensor | Bags:
        if not isinstance(features, Bags):
            return F.normalize(features, p=1.0, dim=1)
        lengths = torch.diff(features.starts, append=torch.tensor([len(features.values)]))
        row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        sums = torch.zeros(len(lengths)).index_add(0, row, features.values.abs())
        return features._replace(values=features.values / sums[row].clamp(min=1e-12))


class ScaleColumns(nn.Module):
    """Fills missing numbers with the mean and standardises, `(nodes, F)`."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([column.mean for column in schema.numeric]))
        self.register_buffer("std", torch.tensor([column.std for column in schema.numeric]))

    def forward(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean) / self.std
        return torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled)


def bags(graph: Graph) -> Bags:
    """Returns the features of all nodes, as bags."""
    index, values = torch.from_numpy(graph.feature_index.astype(np.int64)), torch.from_numpy(graph.feature_values)
    return Bags(index, torch.from_numpy(graph.feature_starts[:-1]), values)


def matrix(graph: Graph) -> Tensor:
    """Returns the features of all nodes, as a dense matrix."""
    return torch.from_numpy(graph.subgraph(np.arange(len(graph.ids))).features)
