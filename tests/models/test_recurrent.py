"""The recurrent network against torch's own layers on packed sequences, and pooling against hand-worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headrace.models.build import build
from headrace.models.recurrent import CELLS, Layer, Recurrent
from headrace.models.schema import Shape
from headrace.models.sequences import Pooling, TokenDropout, Trim, lengths_of, valid_positions
from headrace.recipe.models import RecurrentConfig
from headrace.runtime.tokenizer import PAD, UNKNOWN

SHAPE = Shape(vocabulary=30, length=12, outputs=3)
LENGTHS = [7, 1, 12, 3]


def texts(lengths: list[int], columns: int = 12) -> Tensor:
    torch.manual_seed(1)
    tokens = torch.randint(4, 30, (len(lengths), columns))
    return tokens.masked_fill(torch.arange(columns) >= torch.tensor(lengths)[:, None], PAD)


def network(**fields: Any) -> nn.Module:
    torch.manual_seed(0)
    config = RecurrentConfig(**{"embedding": 5, "hidden": 4, "dropout": 0.0, "skip": False, **fields})
    return build(config, SHAPE).eval()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_layer_is_torchs_own_on_packed_sequences(cell: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(cell, 5, 4, bidirectional)
    reference = CELLS[cell](5, 4, batch_first=True, bidirectional=bidirectional)
    weights = dict(layer.forwards.named_parameters())
    if layer.backwards is not None:
        weights |= {f"{name}_reverse": value for name, value in layer.backwards.named_parameters()}
    reference.load_state_dict(weights)
    inputs, lengths = torch.randn(4, 12, 5), torch.tensor(LENGTHS)
    packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
    wanted, _ = pad_packed_sequence(reference(packed)[0], batch_first=True, total_length=12)
    valid = torch.arange(12) < lengths[:, None]
    got = layer(inputs, valid, lengths)
    torch.testing.assert_close(got[valid], wanted[valid])


@pytest.mark.parametrize("pooling", ["max", "mean", "last", "attention"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_padded_batch_is_answered_as_each_text_alone(cell: str, layers: int, pooling: str) -> None:
    model = network(cell=cell, layers=layers, pooling=[pooling], skip=layers == 2)
    tokens = texts(LENGTHS)
    alone = torch.cat([model(tokens[i : i + 1, :n]) for i, n in enumerate(LENGTHS)])
    torch.testing.assert_close(model(tokens), alone)
    more = torch.cat([tokens, torch.full((4, 9), PAD)], dim=1)
    torch.testing.assert_close(model(more), alone)
    assert len(set(alone[:, 0].tolist())) == 4


def test_the_last_state_is_the_final_hidden_state_of_torchs_own_layer() -> None:
    """Both directions: `h_n` of a packed sequence."""
    model = network(cell="gru", pooling=["last"])
    assert isinstance(model, Recurrent)
    layer = model.layers[0]
    reference = nn.GRU(5, 4, batch_first=True, bidirectional=True)
    backwards = {f"{name}_reverse": value for name, value in layer.backwards.named_parameters()}  # type: ignore[union-attr]
    reference.load_state_dict(dict(layer.forwards.named_parameters()) | backwards)  # type: ignore[union-attr]
    tokens = texts(LENGTHS)
    packed = pack_padded_sequence(model.embedding(tokens), torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False)
    final = reference(packed)[1].transpose(0, 1).flatten(1)
    torch.testing.assert_close(model(tokens), model.heads(final))


def test_the_answer_is_the_mean_of_what_states_and_words_say() -> None:
    model = network(pooling=["mean"], skip=True)
    assert isinstance(model, Recurrent)
    tokens = texts(LENGTHS)
    plain = network(pooling=["mean"])
    by_states = {name: value for name, value in model.state_dict().items() if "each.1" not in name}
    plain.load_state_dict(by_states)
    means = torch.stack([model.embedding(tokens[i, :n]).mean(dim=0) for i, n in enumerate(LENGTHS)])
    by_words = model.heads.each[1](means)
    torch.testing.assert_close(model(tokens).softmax(dim=1), (plain(tokens).softmax(dim=1) + by_words.softmax(dim=1)) / 2)
    torch.testing.assert_close(model.train()(tokens), torch.stack([plain(tokens), by_words], dim=1))


def test_a_text_of_no_token_is_answered() -> None:
    model = network(skip=True)
    empty = model(torch.full((2, 1), PAD))
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(model(torch.full((2, 7), PAD)), empty)


STATES = torch.tensor([[[1.0, -1.0], [3.0, -5.0], [9.0, 9.0]], [[2.0, 4.0], [9.0, 9.0], [9.0, 9.0]]])
"""Two texts of two and one states; the nines are padding."""


@pytest.mark.parametrize(
    ("way", "wanted"),
    [
        ("max", [[3.0, -1.0], [2.0, 4.0]]),
        ("mean", [[2.0, -3.0], [2.0, 4.0]]),
        ("last", [[3.0, -5.0], [2.0, 4.0]]),
    ],
)
def test_pooling_worked_by_hand(way: str, wanted: list[list[float]]) -> None:
    lengths = torch.tensor([2, 1])
    found = Pooling([way], 2)(STATES, torch.arange(3) < lengths[:, None], lengths)
    assert found.tolist() == wanted


def test_attention_pooling_weighs_by_the_softmax_of_the_scores() -> None:
    pooling = Pooling(["attention", "max"], 2)
    weights = {name: torch.zeros_like(value) for name, value in pooling.score.state_dict().items()}
    weights["0.weight"][0, 0], weights["2.weight"][0, 0] = 0.1, 2.0
    pooling.score.load_state_dict(weights)
    lengths = torch.tensor([2, 1])
    found = pooling(STATES, torch.arange(3) < lengths[:, None], lengths)
    first, second = (2 * torch.tanh(torch.tensor(0.1 * x)) for x in (1.0, 3.0))
    share = torch.exp(first) / (torch.exp(first) + torch.exp(second))
    wanted = [share * 1 + (1 - share) * 3, share * -1 + (1 - share) * -5]
    torch.testing.assert_close(found[0, :2], torch.stack(wanted))
    assert found.shape == (2, 4) and found[1].tolist() == [2.0, 4.0, 2.0, 4.0]


def test_lengths_and_positions() -> None:
    tokens = torch.tensor([[5, 6, PAD], [PAD, PAD, PAD]])
    lengths = lengths_of(tokens)
    assert lengths.tolist() == [2, 1]
    assert valid_positions(tokens, lengths).tolist() == [[True, True, False], [True, False, False]]


def test_trimming_leaves_the_longest_text_whole() -> None:
    (found,) = Trim()(texts([3, 5]))
    assert found.tolist() == texts([3, 5])[:, :5].tolist()
    assert Trim()(torch.full((2, 4), PAD))[0].shape == (2, 1)


def test_token_dropout_makes_tokens_unknown_in_training_alone() -> None:
    dropout, tokens = TokenDropout(0.5), texts([12, 4])
    torch.manual_seed(0)
    found = dropout.train()(tokens)
    changed = found != tokens
    assert changed.any() and not changed.all()
    assert (found[changed] == UNKNOWN).all() and ((found == PAD) == (tokens == PAD)).all()
    assert torch.equal(dropout.eval()(tokens), tokens)


def test_parameters_are_counted_by_hand() -> None:
    model = network(cell="lstm", layers=2, pooling=["max", "mean"])
    one_direction = [4 * (inputs * 4 + 4 * 4 + 4 + 4) for inputs in (5, 8)]
    assert sum(p.numel() for p in model.parameters()) == 30 * 5 + 2 * sum(one_direction) + (16 * 3 + 3)
