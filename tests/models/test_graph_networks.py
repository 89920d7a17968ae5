"""Graph layers against matrices written out by hand: convolution, attention, readouts; and what must hold of any graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from headrace.models.build import build
from headrace.models.graph_networks import Bags, GraphAttention, GraphConvolution, GraphNetwork, Readout, links
from headrace.models.schema import Shape
from headrace.recipe.models import APPNPConfig, GATConfig, GCNConfig, ModelConfig

N = 6
EDGES = torch.tensor([[0, 1], [1, 2], [2, 0], [3, 4]])  # a triangle, a pair, and node 5 alone
BOTH = torch.cat([EDGES, EDGES.flip(1)])
CONFIGS: list[ModelConfig] = [
    GCNConfig(hidden=[7]),
    GATConfig(hidden=[3], heads=2, output_heads=2),
    APPNPConfig(hidden=[7], steps=2),
]


def adjacency(edges: Tensor = BOTH, nodes: int = N) -> Tensor:
    """Entry (i, j) is 1 where i hears j: along an edge from j to i, and itself."""
    dense = torch.eye(nodes)
    dense[edges[:, 1], edges[:, 0]] = 1
    return dense


def network(config: ModelConfig, whole: bool = False, features: int = 4) -> GraphNetwork:
    torch.manual_seed(0)
    found = build(config, Shape(features=features, outputs=3, whole=whole)).eval()
    assert isinstance(found, GraphNetwork)
    return found


def randomised(layer: torch.nn.Module) -> dict[str, Any]:
    """Random parameters, so that no bias is zero."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return {name: value.detach() for name, value in layer.named_parameters()}


def test_convolution_is_the_symmetrically_normalised_matrix() -> None:
    layer = GraphConvolution(4, 3, dropout=0.0)
    w = randomised(layer)
    x = torch.randn(N, 4)
    a = adjacency()
    d = torch.diag(a.sum(1) ** -0.5)
    torch.testing.assert_close(layer(x, links(BOTH, None, N)), d @ a @ d @ x @ w["project.weight"] + w["bias"])


@pytest.mark.parametrize("mean", [False, True])
def test_attention_is_a_softmax_over_neighbours_and_oneself(mean: bool) -> None:
    heads, outputs = 2, 3
    layer = GraphAttention(4, outputs, heads, mean, dropout=0.0, attention_dropout=0.0).eval()
    w = randomised(layer)
    x = torch.randn(N, 4)
    heard = []
    for head in range(heads):
        h = (x @ w["project.weight"])[:, head * outputs : (head + 1) * outputs]
        # entry (i, j): how much i wants to hear j; eq. 3 of the paper, its vector a as two halves
        scores = F.leaky_relu((h @ w["receives"][head])[:, None] + (h @ w["sends"][head])[None, :], 0.2)
        heard.append(scores.masked_fill(adjacency() == 0, -torch.inf).softmax(dim=1) @ h)
    wanted = torch.stack(heard).mean(0) if mean else torch.cat(heard, 1)
    torch.testing.assert_close(layer(x, links(BOTH, None, N)), wanted + w["bias"])


def test_propagation_is_personalised_pagerank() -> None:
    """With steps without end, the network's answer is that of the closed form, eq. 3 of the paper."""
    net = network(APPNPConfig(hidden=[5], steps=200, teleport=0.2))
    w = randomised(net)
    x = torch.randn(N, 4)
    a = adjacency()
    d = torch.diag(a.sum(1) ** -0.5)
    h = (x @ w["layers.0.weight"] + w["biases.0"]).relu() @ w["layers.1.weight"] + w["biases.1"]
    wanted = 0.2 * torch.linalg.inv(torch.eye(N) - 0.8 * d @ a @ d) @ h
    torch.testing.assert_close(net(x, BOTH), wanted, rtol=1e-4, atol=1e-5)
    once = network(APPNPConfig(hidden=[5], steps=1, teleport=0.2))
    randomised(once)
    torch.testing.assert_close(once(x, BOTH), 0.8 * d @ a @ d @ h + 0.2 * h)


def test_shares_sum_to_one_where_they_arrive_however_large_the_scores() -> None:
    layer = GraphAttention(4, 3, heads=2, mean=False, dropout=0.0, attention_dropout=0.0).eval()
    randomised(layer)
    along = links(BOTH, None, N)
    shares = layer.shares(torch.randn(N, 2, 3) * 1e4, along)
    assert torch.isfinite(shares).all()
    torch.testing.assert_close(along.gather(shares), torch.ones(N, 2))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_a_node_without_edges_is_answered_from_its_own_features(config: ModelConfig) -> None:
    net, x = network(config), torch.randn(N, 4)
    alone = net(x[5:], torch.zeros((0, 2), dtype=torch.int64))
    torch.testing.assert_close(net(x, BOTH)[5:], alone)
    assert torch.isfinite(alone).all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_renaming_the_nodes_renames_the_answers(config: ModelConfig) -> None:
    net, x = network(config), torch.randn(N, 4)
    order = torch.tensor([3, 0, 5, 1, 4, 2])  # node i is called order[i]
    renamed = torch.empty_like(x)
    renamed[order] = x
    torch.testing.assert_close(net(renamed, order[BOTH])[order], net(x, BOTH))
    torch.testing.assert_close(net(x, BOTH.flip(0)), net(x, BOTH))  # nor does the order of the edges matter


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_an_answer_looks_over_as_many_edges_as_the_network_says(config: ModelConfig) -> None:
    """On a path of five nodes, the features of one that is three edges away change nothing, of one two edges away do."""
    net = network(config)
    path = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]])
    path, x = torch.cat([path, path.flip(1)]), torch.randn(5, 4)
    before = net(x, path)[0]
    for node, changes in ((3, False), (2, True)):
        other = x.clone()
        other[node] += 1
        assert torch.allclose(net(other, path)[0], before) is not changes
    assert net.hops == 2


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_an_edge_of_weight_zero_has_no_effect(config: ModelConfig) -> None:
    net, x = network(config), torch.randn(N, 4)
    more = torch.cat([BOTH, torch.tensor([[5, 0], [0, 0]])])
    weight = torch.cat([torch.ones(len(BOTH)), torch.zeros(2)])
    torch.testing.assert_close(net(x, more, weight), net(x, BOTH))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_few_features_are_multiplied_as_the_full_matrix(config: ModelConfig) -> None:
    x = torch.tensor([[0, 2.0, 0, 1], [0, 0, 0, 0], [0, 0, 3, 0], [1, 1, 1, 1], [0, 0, 0, 5], [0, 0, 0, 0]])
    row, feature = x.nonzero(as_tuple=True)
    bags = Bags(feature, torch.searchsorted(row, torch.arange(N)), x[row, feature])
    net = network(config)
    torch.testing.assert_close(net(bags, BOTH), net(x, BOTH))
    grown = []
    for features in (bags, x):
        net.zero_grad()
        net(features, BOTH).square().sum().backward()
        grown.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(grown[0], grown[1])


def test_dropout_drops_features_and_neighbours_in_training_alone() -> None:
    for config in (
        GCNConfig(dropout=0.5),
        GATConfig(dropout=0.0, attention_dropout=0.5),
        APPNPConfig(dropout=0.0, edge_dropout=0.5),
    ):
        net, x = network(config), torch.randn(N, 4)
        assert torch.equal(net(x, BOTH), net(x, BOTH))
        net.train()
        assert not torch.equal(net(x, BOTH), net(x, BOTH))


def test_parameters_are_counted_by_hand() -> None:
    counts = [
        sum(p.numel() for p in network(config, features=1433).parameters()) for config in (GCNConfig(hidden=[16]), GATConfig())
    ]
    # the paper's network for Cora has 8 heads of 8 features, each with a vector of 16
    assert counts == [1433 * 16 + 16 + 16 * 3 + 3, (1433 * 64 + 8 * 16 + 64) + (64 * 3 + 2 * 3 + 3)]


@pytest.mark.parametrize("pooling", ["mean", "max", "sum", "attention"])
def test_a_readout_counts_the_nodes_that_are_there(pooling: str) -> None:
    readout = Readout(pooling, 2)
    w = randomised(readout)
    nodes = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [100.0, 100.0]], [[5.0, 6.0], [0.0, 0.0], [0.0, 0.0]]])
    there = torch.tensor([[True, True, False], [True, False, False]])
    first, second = nodes[0, :2], nodes[1, :1]
    wanted: dict[str, Any] = {
        "mean": [[2.0, -3.0], [5.0, 6.0]],
        "max": [[3.0, -2.0], [5.0, 6.0]],
        "sum": [[4.0, -6.0], [5.0, 6.0]],
    }
    if pooling == "attention":
        share = (first @ w["score.weight"].T + w["score.bias"]).exp()
        wanted["attention"] = torch.cat([(share / share.sum() * first).sum(0, keepdim=True), second]).tolist()
    torch.testing.assert_close(readout(nodes, there), torch.tensor(wanted[pooling]))


@pytest.mark.parametrize("pooling", ["mean", "max", "sum", "attention"])
@pytest.mark.parametrize("config_class", [GCNConfig, GATConfig, APPNPConfig])
def test_a_whole_graph_gets_the_same_answer_alone_and_in_a_batch(config_class: Any, pooling: str) -> None:
    """Three nodes and two edges, alone, and padded to five nodes beside another graph."""
    net = network(config_class(hidden=[4], pooling=pooling), whole=True)
    x, edges = torch.randn(3, 4), torch.tensor([[0, 1], [1, 0], [1, 2], [2, 1]])
    alone = net(x, edges, there=torch.ones(1, 3, dtype=torch.bool))
    batch = torch.cat([x, torch.zeros(2, 4), torch.randn(5, 4)])
    there = torch.tensor([[True, True, True, False, False], [True] * 5])
    more = torch.cat([edges, torch.tensor([[0, 0], [5, 6], [6, 5]])])
    both = net(batch, more, torch.tensor([1.0, 1, 1, 1, 0, 1, 1]), there)
    assert both.shape == (2, 3)
    torch.testing.assert_close(both[:1], alone)
