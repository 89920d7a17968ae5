"""The transformer encoder against torch's own layer, and rotary positions against complex numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headrace.errors import RecipeError
from headrace.models.attention import Attention, Block
from headrace.models.build import build
from headrace.models.ensemble import Ensemble
from headrace.models.rotary import angles, turn
from headrace.models.schema import Shape
from headrace.recipe.models import AttentionConfig
from headrace.recipe.recipe import parse_recipe
from headrace.runtime.tokenizer import PAD

SHAPE = Shape(vocabulary=30, length=12, outputs=3)
LENGTHS = [7, 1, 12, 3]


def texts(lengths: list[int], columns: int = 12) -> Tensor:
    torch.manual_seed(1)
    tokens = torch.randint(4, 30, (len(lengths), columns))
    return tokens.masked_fill(torch.arange(columns) >= torch.tensor(lengths)[:, None], PAD)


def network(**fields: Any) -> Attention:
    torch.manual_seed(0)
    made = build(AttentionConfig(**{"width": 8, "heads": 2, "dropout": 0.0, **fields}), SHAPE).eval()
    assert isinstance(made, Attention)
    return made


def torchs_own(block: Block, width: int, heads: int) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of `block`."""
    layer = nn.TransformerEncoderLayer(
        width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).train()  # in evaluation torch takes another path, which writes zeros where there is padding
    pairs = {
        "self_attn.in_proj_": block.attention.joint,
        "self_attn.out_proj.": block.attention.out,
        "linear1.": block.dense[0],
        "linear2.": block.dense[3],
        "norm1.": block.attention_norm,
        "norm2.": block.dense_norm,
    }
    weights = {f"{name}{part}": getattr(module, part) for name, module in pairs.items() for part in ("weight", "bias")}
    layer.load_state_dict(weights)
    return layer


def test_blocks_with_learned_positions_are_torchs_own_layers() -> None:
    model = network(positions="learned", layers=2, pooling=["mean"])
    tokens = texts(LENGTHS)
    states = model.embedding(tokens) + model.positions(torch.arange(12))  # type: ignore[misc]
    for block in model.blocks:
        assert isinstance(block, Block)
        states = torchs_own(block, 8, 2)(states, src_key_padding_mask=tokens == PAD)
    normed = model.norm(states)
    means = torch.stack([normed[i, :n].mean(dim=0) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(model(tokens), model.heads(means))


def rotated(states: Tensor) -> Tensor:
    return turn(states, angles(states.shape[-2], states.shape[-1], states.device))


def test_rotation_is_multiplication_by_complex_numbers() -> None:
    """Feature i with feature i + half as real and imaginary part, turned by position / 10000^(i / half)."""
    torch.manual_seed(0)
    states = torch.randn(2, 3, 7, 6)
    pairs = torch.complex(states[..., :3], states[..., 3:])
    turns = torch.tensor([[complex(0, position * 10_000 ** (-i / 3)) for i in range(3)] for position in range(7)]).exp()
    wanted = pairs * turns
    torch.testing.assert_close(rotated(states), torch.cat([wanted.real, wanted.imag], dim=-1))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(4).expand(9, 4), torch.randn(4).expand(9, 4)
    products = rotated(query) @ rotated(key).T
    for distance in range(-8, 9):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("pooling", ["max", "mean", "last", "attention"])
def test_a_padded_batch_is_answered_as_each_text_alone(positions: str, pooling: str) -> None:
    model = network(positions=positions, pooling=[pooling], skip=pooling == "max")
    tokens = texts(LENGTHS)
    alone = torch.cat([model(tokens[i : i + 1, :n]) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(model(tokens), alone)
    assert len(set(alone[:, 0].tolist())) == 4


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_order_of_the_tokens_matters(positions: str) -> None:
    model = network(positions=positions)
    # Embeddings start small: at their initial size all texts look the same to the norms.
    nn.init.normal_(model.embedding.weight)
    if model.positions is not None:
        nn.init.normal_(model.positions.weight)
    there, back = torch.tensor([[5, 9, 14]]), torch.tensor([[14, 9, 5]])
    assert not torch.allclose(model(there), model(back))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_text_of_no_token_is_answered(positions: str) -> None:
    model = network(positions=positions)
    empty = model(torch.full((2, 1), PAD))
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(model(torch.full((2, 7), PAD)), empty)


def test_dropout_acts_in_training_alone() -> None:
    model = network(dropout=0.5, token_dropout=0.3)
    tokens = texts(LENGTHS)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_members_are_averaged_and_each_is_judged_alone_in_training() -> None:
    torch.manual_seed(0)
    model = build(AttentionConfig(width=8, heads=2, dropout=0.0, skip=True, members=3), SHAPE).eval()
    assert isinstance(model, Ensemble)
    tokens = texts(LENGTHS)
    alone = torch.stack([member(tokens).softmax(dim=1) for member in model.members])
    assert not torch.allclose(alone[0], alone[1])
    torch.testing.assert_close(model(tokens).softmax(dim=1), alone.mean(dim=0))
    judged = model.train()(tokens)
    assert judged.shape[:2] == (len(LENGTHS), 3 * 2)
    torch.testing.assert_close(judged[:, :2], model.members[0](tokens))


def test_parameters_are_counted_by_hand() -> None:
    model = network(positions="learned", width=8, heads=2, layers=3, expansion=4)
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 16
    assert sum(p.numel() for p in model.parameters()) == 30 * 8 + 12 * 8 + 3 * block + 16 + (8 * 3 + 3)


@pytest.mark.parametrize(("width", "heads", "positions"), [(10, 4, "learned"), (12, 4, "rotary")])
def test_a_width_that_the_heads_do_not_divide_is_the_recipes_mistake(width: int, heads: int, positions: str) -> None:
    recipe = f"""
name: toy
task: text-classification
data: {{source: toy.csv, target: y, text: {{column: text}}}}
expect: []
model: {{name: attention, width: {width}, heads: {heads}, positions: {positions}}}
train: {{}}
serve: {{}}
"""
    with pytest.raises(RecipeError, match=rf"model: width {width} cannot be divided into {heads} heads"):
        parse_recipe(recipe, "recipes/toy.yaml")
