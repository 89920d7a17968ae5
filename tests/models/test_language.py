"""TextGenerator models against torch's own layers, attention worked out by hand, and themselves without a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from headrace.errors import ExportError
from headrace.models.build import build
from headrace.models.causal import GPT, CausalAttention
from headrace.models.language import LanguageModel, LanguageNetwork, RecurrentLanguage
from headrace.models.language_export import check_step_parity, export_step
from headrace.models.onnx_inference import open_graph
from headrace.models.rotary import angles
from headrace.models.schema import Shape
from headrace.recipe.models import GPTConfig, RecurrentLanguageConfig
from headrace.runtime.generation import StepLayout, StepRunner
from headrace.runtime.tokenizer import PAD
from tests.exhaustive import exhaustive

SHAPE = Shape(vocabulary=13, length=6)
CONFIGS = {
    "lstm": RecurrentLanguageConfig(embedding=5, hidden=7, layers=2, dropout=0.0),
    "gru": RecurrentLanguageConfig(cell="gru", embedding=5, hidden=7, dropout=0.0),
    "gpt": GPTConfig(width=12, heads=2, layers=2, dropout=0.0),
}


def network(name: str, seed: int = 0) -> LanguageNetwork:
    """With weights that are all alive: a fresh block adds nothing."""
    torch.manual_seed(seed)
    made = build(CONFIGS[name], SHAPE).eval()
    assert isinstance(made, LanguageNetwork)
    for weight in made.parameters():
        nn.init.normal_(weight, std=0.4)
    return made


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, SHAPE.vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_the_recurrent_network_is_torchs_lstm_between_a_table_and_its_transpose():
    ours = network("lstm")
    assert isinstance(ours, RecurrentLanguage)
    theirs = nn.LSTM(5, 7, 2, batch_first=True)
    theirs.load_state_dict(ours.layers.state_dict())
    read = tokens(3, 4)
    states = theirs(ours.embedding.weight[read])[0]
    wanted = (states @ ours.project.weight.T + ours.project.bias) @ ours.embedding.weight.T + ours.out.bias
    assert ours(read).numpy() == pytest.approx(wanted.numpy(), abs=1e-5)


@torch.inference_mode()
def test_attention_agrees_with_one_worked_position_by_position():
    """Each pair of features as a complex number, turned by its position's angle: the paper's eq. 12, in loops."""
    torch.manual_seed(1)
    ours, states = CausalAttention(8, 2, 0.0).eval(), torch.randn(1, 5, 8)
    nn.init.normal_(ours.outer.weight)
    query, key, value = (states[0] @ ours.joint.weight.T).split(8, dim=1)
    wanted = torch.zeros(5, 8)
    for head in range(2):
        q, k = (torch.complex(*part[:, head * 4 : head * 4 + 4].split(2, dim=1)) for part in (query, key))
        turned = [[x[i] * torch.exp(1j * i * torch.tensor([1.0, 0.01])) for i in range(5)] for x in (q, k)]
        for i in range(5):
            scores = torch.stack([(turned[0][i] * turned[1][j].conj()).real.sum() for j in range(i + 1)]) / 2.0
            wanted[i, head * 4 : head * 4 + 4] = scores.softmax(0) @ value[: i + 1, head * 4 : head * 4 + 4]
    found = ours(states, angles(5, 4, torch.device("cpu")))
    assert found[0].numpy() == pytest.approx((wanted @ ours.outer.weight.T).numpy(), abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stride", [1, 2, 4])
@torch.inference_mode()
def test_steps_over_the_parts_of_a_text_give_the_logits_of_the_whole(name, stride):
    ours, read = network(name), tokens(3, 6)
    states, got = ours.start(3), []
    for part in read.split(stride, dim=1):
        logits, *states = ours.step(part, *states)
        got.append(logits)
    assert torch.cat(got, dim=1).numpy() == pytest.approx(ours(read).numpy(), abs=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_no_token_is_seen_before_its_turn(name):
    ours, read = network(name), tokens(1, 6)
    changed = read.clone()
    changed[0, 4] = (changed[0, 4] + 1) % SHAPE.vocabulary
    before, after = ours(read)[0], ours(changed)[0]
    assert torch.equal(before[:4], after[:4]) and not torch.allclose(before[4:], after[4:])


@torch.inference_mode()
def test_dropped_context_does_not_change_positions():
    """Of one block, keys and values know their own token alone: without the oldest it reads as if they had never been."""
    torch.manual_seed(0)
    ours = GPT(GPTConfig(width=12, heads=2, layers=1, dropout=0.0), SHAPE).eval()
    for weight in ours.parameters():
        nn.init.normal_(weight, std=0.4)
    read = tokens(1, 6)
    _, past = ours.step(read[:, :5], *ours.start(1))
    logits, _ = ours.step(read[:, 5:], past[:, :, :, :, 2:])
    assert logits[0, -1].numpy() == pytest.approx(ours(read[:, 2:])[0, -1].numpy(), abs=1e-5)
    assert not torch.allclose(logits[0, -1], ours(read)[0, -1])


@torch.inference_mode()
def test_padding_in_the_targets_counts_for_nothing():
    model = LanguageModel(network("gpt"))
    read, target = tokens(2, 6), tokens(2, 6, seed=1).clamp(min=PAD + 1)
    target[1, 3:] = PAD
    raw = model.raw(read)
    logp, kept = raw.log_softmax(-1), target != PAD
    wanted = -logp[kept].gather(1, target[kept][:, None]).mean()
    assert float(model.loss(raw, target)) == pytest.approx(float(wanted))
    assert float(model.metric(raw, target)) == pytest.approx(float(wanted) / np.log(2))


def test_a_transformer_as_large_as_a_recurrent_network_learns_a_repeated_text():
    torch.manual_seed(0)
    model = LanguageModel(GPT(CONFIGS["gpt"], SHAPE))  # type: ignore[arg-type]
    text = torch.arange(40).remainder(5)[None] + 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = model.loss(model.raw(text[:, :-1]), text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < 1.5 < losses[0]


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request, tmp_path_factory) -> tuple[str, LanguageModel, Path, StepLayout]:
    folder = tmp_path_factory.mktemp(request.param)
    model = LanguageModel(network(request.param)).eval()
    return request.param, model, folder, export_step(model, SHAPE, folder)


def test_the_graph_agrees_with_torch_at_once_and_token_by_token(exported):
    _, model, folder, layout = exported
    assert check_step_parity(model, SHAPE, folder, layout, "tiny")["largest_relative_difference"] < 1e-5


@pytest.mark.parametrize("name", ["lstm", exhaustive("gru")])
def test_every_export_of_a_process_takes_texts_of_any_length(name, tmp_path):
    model = LanguageModel(network(name)).eval()
    for _ in range(2):
        layout = export_step(model, SHAPE, tmp_path)
    check_step_parity(model, SHAPE, tmp_path, layout, "tiny")


def test_the_graph_says_that_rows_and_lengths_may_be_any(exported):
    _, _, folder, layout = exported
    graph = onnx.load(folder / "model.onnx").graph
    logits, *states = ([d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in graph.output)
    assert logits == ["rows", "length", SHAPE.vocabulary] and all(shape[0] == "rows" for shape in states)
    assert StepLayout.model_validate_json((folder / "served_steps.json").read_text()) == layout


def test_an_export_with_other_outputs_is_refused(exported, tmp_path):
    name, _, folder, layout = exported
    with pytest.raises(ExportError, match="differs from torch"):
        check_step_parity(LanguageModel(network(name, seed=9)).eval(), SHAPE, folder, layout, "tiny")


def test_a_text_longer_than_the_context_continues(exported):
    """What grows stays within the context; what does not is the same network at any length."""
    _, model, folder, layout = exported
    steps = StepRunner(open_graph(folder / "model.onnx"), layout)
    read = tokens(1, 20, seed=3)
    got = np.concatenate([steps(part.numpy()) for part in read.split(1, dim=1)], axis=1)
    remembered = steps.feeds(np.zeros((1, 1), dtype=np.int64))
    for state in layout.states:
        if state.grows is not None:
            assert remembered[state.name].shape[state.grows] == SHAPE.length - 1
    assert np.isfinite(got).all()
    if all(state.grows is None for state in layout.states):
        with torch.inference_mode():
            assert got == pytest.approx(model(read).numpy(), abs=1e-5)
