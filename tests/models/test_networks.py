"""The networks against forward passes written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from headrace.models.build import build
from headrace.models.schema import Shape
from headrace.recipe.models import CNNConfig, MLPConfig


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (1, 9), (1, 1), (3, 2)])
def test_cnn_is_conv_relu_pool_then_linear(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = build(CNNConfig(channels=[2, 3], dropout=0.5), Shape(image=(1, height, width), outputs=4)).eval()
    w: dict[str, Any] = dict(network.named_parameters())
    x = torch.randn(5, 1, height, width)
    h = x
    for block in ("features.0", "features.3"):
        h = F.relu(F.conv2d(h, w[f"{block}.weight"], w[f"{block}.bias"], padding=1))
        # pooling that keeps odd borders: pad with what can never be the largest
        h = F.max_pool2d(F.pad(h, (0, h.shape[3] % 2, 0, h.shape[2] % 2), value=float("-inf")), 2)
    wanted = h.flatten(1) @ w["head.2.weight"].T + w["head.2.bias"]
    torch.testing.assert_close(network(x), wanted)
    assert network(x).shape == (5, 4)


def test_cnn_with_all_its_options_is_the_same_written_out() -> None:
    """Two convolutions a block, each normalised by the running statistics, then the mean over all places."""
    torch.manual_seed(0)
    config = CNNConfig(channels=[3, 4], convolutions=2, batch_norm=True, dropout2d=0.5, pooling="average", dropout=0.5)
    network = build(config, Shape(image=(2, 7, 6), outputs=4))
    for _ in range(3):  # running statistics that are neither 0 nor 1
        network(torch.randn(8, 2, 7, 6) * 2 + 1)
    network.eval()
    w: dict[str, Any] = network.state_dict()
    x = torch.randn(5, 2, 7, 6)
    h = x
    for block, end in ((0, False), (3, True), (8, False), (11, True)):
        h = F.conv2d(h, w[f"features.{block}.weight"], padding=1)
        mean, variance, scale, shift = (
            w[f"features.{block + 1}.{name}"].view(1, -1, 1, 1) for name in ("running_mean", "running_var", "weight", "bias")
        )
        h = F.relu((h - mean) / (variance + 1e-5).sqrt() * scale + shift)
        h = F.max_pool2d(h, 2, ceil_mode=True) if end else h
    torch.testing.assert_close(network(x), h.mean(dim=(2, 3)) @ w["head.3.weight"].T + w["head.3.bias"])


def test_cnn_parameters_are_counted_by_hand() -> None:
    network = build(CNNConfig(channels=[32, 64]), Shape(image=(1, 28, 28), outputs=10))
    assert parameters(network) == (9 * 32 + 32) + (32 * 9 * 64 + 64) + (64 * 7 * 7 * 10 + 10)
    network = build(
        CNNConfig(channels=[8], convolutions=2, batch_norm=True, pooling="average"), Shape(image=(1, 9, 9), outputs=3)
    )
    assert parameters(network) == (9 * 8 + 2 * 8) + (8 * 9 * 8 + 2 * 8) + (8 * 3 + 3)


def test_dropout2d_drops_whole_channels_in_training_alone() -> None:
    torch.manual_seed(0)
    network = build(CNNConfig(channels=[64], dropout2d=0.5), Shape(image=(1, 4, 4), outputs=2))
    features: Any = network.features
    kept = features(torch.rand(1, 1, 4, 4) + 1) != 0
    network.eval()
    whole = features(torch.rand(1, 1, 4, 4) + 1) != 0
    lost = whole.any((2, 3)) & ~kept.any((2, 3))
    assert lost.any() and not lost.all()
    assert torch.equal(kept[0, ~lost[0]].any(2).any(1), whole[0, ~lost[0]].any(2).any(1))


def test_an_image_goes_through_a_dense_network_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    network = build(MLPConfig(hidden=[6]), Shape(image=(1, 3, 4), outputs=5)).eval()
    w: dict[str, Any] = dict(network.named_parameters())
    image = torch.randn(7, 1, 3, 4)
    h = (image.reshape(7, 12) @ w["layers.0.weight"].T + w["layers.0.bias"]).clamp(min=0)
    torch.testing.assert_close(network(image), h @ w["layers.3.weight"].T + w["layers.3.bias"])


def test_mlp_is_embeddings_beside_numbers_then_relu_layers() -> None:
    torch.manual_seed(0)
    shape = Shape(numeric=2, cardinalities=(3, 20), outputs=4)
    network = build(MLPConfig(hidden=[6, 5], embedding=3, dropout=0.5), shape).eval()
    w: dict[str, Any] = dict(network.named_parameters())
    numeric, categorical = torch.randn(7, 2), torch.randint(0, 3, (7, 2))
    first, second = w["embeddings.0.weight"][categorical[:, 0]], w["embeddings.1.weight"][categorical[:, 1]]
    h = torch.cat([numeric, first, second], 1)
    h = (h @ w["layers.0.weight"].T + w["layers.0.bias"]).clamp(min=0)
    h = (h @ w["layers.3.weight"].T + w["layers.3.bias"]).clamp(min=0)
    torch.testing.assert_close(network(numeric, categorical), h @ w["layers.6.weight"].T + w["layers.6.bias"])


def test_batch_norm_takes_a_last_batch_of_one_row_that_shrank_to_one_place() -> None:
    """Torch's own refuses it in training. The running statistics are used instead, and do not change."""
    torch.manual_seed(0)
    network = build(CNNConfig(channels=[3, 4], batch_norm=True, dropout=0.0), Shape(image=(1, 2, 2), outputs=2))
    for _ in range(3):
        network(torch.randn(8, 1, 2, 2) * 2 + 1)
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    states = [norm.state_dict() for norm in norms]  # the statistics themselves, not copies
    before = [(state["running_mean"].clone(), state["running_var"].clone()) for state in states]
    one = torch.randn(1, 1, 2, 2)
    seen: list[torch.Tensor] = []
    handle = norms[1].register_forward_pre_hook(lambda part, inputs: seen.append(inputs[0].detach()))
    network(one).sum().backward()
    handle.remove()
    assert seen[0].shape == (1, 4, 1, 1)
    assert not torch.equal(states[0]["running_mean"], before[0][0])  # 2 × 2 values have a spread
    assert torch.equal(states[1]["running_mean"], before[1][0]) and torch.equal(states[1]["running_var"], before[1][1])
    wanted = F.batch_norm(seen[0], *before[1], norms[1].weight, norms[1].bias)
    torch.testing.assert_close(norms[1](seen[0]), wanted)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize(("entries", "width"), [(2, 1), (3, 2), (5, 3), (15, 8), (16, 8), (1000, 8)])
def test_an_embedding_is_half_its_vocabulary_and_at_most_what_the_recipe_says(entries: int, width: int) -> None:
    network = build(MLPConfig(hidden=[], embedding=8), Shape(cardinalities=(entries,), outputs=3))
    assert parameters(network) == entries * width + (width * 3 + 3)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    network = build(MLPConfig(hidden=[64], dropout=0.5), Shape(numeric=3, outputs=2))
    inputs = torch.randn(4, 3), torch.zeros((4, 0), dtype=torch.int64)
    assert not torch.equal(network(*inputs), network(*inputs))
    network.eval()
    assert torch.equal(network(*inputs), network(*inputs))
