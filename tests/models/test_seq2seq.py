"""The encoder-decoder: its layers against torch's own, its mixture against one worked by hand, its graphs against itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from headrace.errors import ExportError
from headrace.models.onnx_inference import open_graph
from headrace.models.schema import IGNORED, Shape
from headrace.models.seq2seq import Attention, DecoderLayer, EncoderLayer, Seq2Seq
from headrace.models.summariser import Summarising, check_summary_parity, export_graphs
from headrace.recipe.models import Seq2SeqConfig
from headrace.runtime.beam_search import DECODER, ENCODER, GraphSteps, beam_search
from headrace.runtime.tokenizer import END, PAD, START

SHAPE = Shape(vocabulary=30, length=9, answer_length=6)
CONFIG = Seq2SeqConfig(width=8, heads=2, encoder_layers=1, decoder_layers=2, dropout=0.3)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int = 0) -> Seq2Seq:
    """Random weights, with those that begin as zeros or ones moved too."""
    torch.manual_seed(seed)
    made = Seq2Seq(CONFIG, SHAPE).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(END + 1, SHAPE.vocabulary, (rows, length)))


def started(summary: Tensor) -> Tensor:
    return torch.cat([torch.full((len(summary), 1), START), summary], dim=1)


def copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())


def copy_rest(ours: EncoderLayer | DecoderLayer, theirs: nn.Module, norms: dict[str, nn.LayerNorm]) -> None:
    for name, norm in norms.items():
        getattr(theirs, name).load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.dense[0].state_dict())  # type: ignore[union-attr]
    theirs.linear2.load_state_dict(ours.dense[2].state_dict())  # type: ignore[union-attr]


def test_an_encoder_layer_is_torchs_own() -> None:
    ours = network().encoder[0]
    assert isinstance(ours, EncoderLayer)
    theirs = nn.TransformerEncoderLayer(8, 2, 32, activation="gelu", batch_first=True, norm_first=True).train()
    theirs.dropout.p = theirs.dropout1.p = theirs.dropout2.p = 0.0
    theirs.self_attn.dropout = 0.0  # train() keeps torch off its fused path, which has other code
    copy_attention(ours.attention, theirs.self_attn)
    copy_rest(ours, theirs, {"norm1": ours.attention_norm, "norm2": ours.dense_norm})
    states, seen = torch.randn(3, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] + [False] * 4])
    wanted = theirs(states, src_key_padding_mask=~seen)
    torch.testing.assert_close(ours(states, seen)[seen], wanted[seen])


def test_a_decoder_layer_is_torchs_own() -> None:
    ours = network().decoder[0]
    assert isinstance(ours, DecoderLayer)
    theirs = nn.TransformerDecoderLayer(8, 2, 32, 0.0, activation="gelu", batch_first=True, norm_first=True)
    copy_attention(ours.attention, theirs.self_attn)
    copy_attention(ours.source_attention, theirs.multihead_attn)
    copy_rest(ours, theirs, {"norm1": ours.attention_norm, "norm2": ours.source_norm, "norm3": ours.dense_norm})
    states, memory = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    seen = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    wanted = theirs(states, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=~seen)
    torch.testing.assert_close(ours(states, memory, seen), wanted)


def test_the_mixture_is_the_one_worked_by_hand() -> None:
    """A vocabulary that is generated evenly, 1/30 each; the source is 7 9 7, looked at with 0.5, 0.3, 0.2; copied with 0.25."""
    made = network()
    with torch.no_grad():
        made.embedding.weight.zero_()
        made.bias.zero_()
    gate = torch.log(torch.tensor([[0.75, 0.25]])) + 3.0
    mixed = made.mix(torch.randn(1, 8), torch.tensor([[0.5, 0.3, 0.2]]), gate, torch.tensor([[7, 9, 7]])).exp()[0]
    wanted = torch.full((30,), 0.75 / 30)
    wanted[7] += 0.25 * 0.7
    wanted[9] += 0.25 * 0.3
    torch.testing.assert_close(mixed, wanted)
    assert mixed.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_gate_that_is_open_copies_nothing_but_the_source() -> None:
    made, source = network(), tokens(1, 4)
    with torch.no_grad():
        made.pointer.gate.bias[1] = 60.0
    found = made(source, started(tokens(1, 3))).exp()
    elsewhere = [t for t in range(SHAPE.vocabulary) if t not in source[0].tolist()]
    assert found[:, elsewhere].max().item() < 1e-9
    torch.testing.assert_close(found[:, sorted(set(source[0].tolist()))].sum(1), torch.ones(4))


def test_padding_changes_nothing_and_answers_are_those_of_real_tokens() -> None:
    made, source, summary = network(), tokens(2, 4), started(tokens(2, 3))
    wanted = made(source, summary)
    padded_source = torch.nn.functional.pad(source, (0, 3), value=PAD)
    torch.testing.assert_close(made(padded_source, torch.nn.functional.pad(summary, (0, 2), value=PAD)), wanted)
    assert wanted.shape == (8, 30)
    torch.testing.assert_close(wanted.exp().sum(1), torch.ones(8))


def test_no_token_sees_those_after_it() -> None:
    made, source, summary = network(), tokens(1, 4), started(tokens(1, 5))
    changed = summary.clone()
    changed[0, 4] = END + 1 if summary[0, 4] != END + 1 else END + 2
    before, after = made(source, summary), made(source, changed)
    torch.testing.assert_close(before[:4], after[:4])
    assert not torch.allclose(before[4], after[4])


def test_a_source_of_padding_alone_is_answered() -> None:
    assert torch.isfinite(network()(torch.zeros((2, 3), dtype=torch.int64), started(tokens(2, 2)))).all()


def test_the_loss_is_that_of_the_tokens_that_count() -> None:
    model = Summarising(network())
    source, summary = tokens(2, 4), started(tokens(2, 2))
    summary[1, 2] = PAD
    target = torch.tensor([[5, 6, END], [8, END, IGNORED]])
    raw = model.raw(source, summary)
    followed = [raw[i, t] for i, t in enumerate([5, 6, END, 8, END])]
    torch.testing.assert_close(model.loss(raw, target), -torch.stack(followed).mean())
    target[0, 0], target[1, 0] = raw[0].argmax(), raw[3].argmin()
    hits = [1, int(raw[1].argmax() == 6), int(raw[2].argmax() == END), 0, int(raw[4].argmax() == END)]
    assert float(model.metric(raw, target)) == pytest.approx(sum(hits) / 5)


def test_padding_that_is_kept_counts_for_nothing() -> None:
    """As on a GPU, where answers for padding are not cut out."""
    model, source, summary = Summarising(network()), tokens(2, 4), started(tokens(2, 2))
    summary[1, 2] = PAD
    target = torch.tensor([[5, 6, END], [8, END, IGNORED]])
    raw = model.raw(source, summary)
    kept = torch.cat([raw, torch.randn(1, SHAPE.vocabulary).log_softmax(1)])
    for measure in (model.loss, model.metric):
        torch.testing.assert_close(measure(kept, target), measure(raw, target))


def test_smoothed_labels_count_in_training_alone() -> None:
    model, source, summary = Summarising(network()), tokens(2, 4), started(tokens(2, 2))
    target, raw = torch.tensor([[5, 6, END], [8, 9, END]]), model.raw(source, summary)
    model.label_smoothing = 0.1
    plain = model.eval().loss(raw, target)
    torch.testing.assert_close(plain, -raw[torch.arange(6), target.flatten()].mean())
    torch.testing.assert_close(model.train().loss(raw, target), 0.9 * plain - 0.1 * raw.mean())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Summarising, Path]:
    folder, model = tmp_path_factory.mktemp("exported"), Summarising(network()).eval()
    export_graphs(model, SHAPE, folder)
    return model, folder


def test_the_graphs_decode_token_by_token_what_torch_reads_at_once(exported: tuple[Summarising, Path]) -> None:
    model, folder = exported
    found = check_summary_parity(model, SHAPE, folder, "toy")
    assert found["largest_relative_difference"] < 1e-5


def test_the_search_over_graphs_is_the_search_over_torch(exported: tuple[Summarising, Path]) -> None:
    """Torch processes each beam's whole text at every step, so that a mistake in the graphs' state would show."""
    model, folder = exported
    source = tokens(5, 7, seed=3)
    source[2, 4:] = PAD
    texts = np.zeros((5, 1, 0), dtype=np.int64)

    def step(last: np.ndarray, parents: np.ndarray | None) -> np.ndarray:
        nonlocal texts
        kept = texts if parents is None else np.take_along_axis(texts, parents[:, :, None], 1)
        texts = np.concatenate([kept, last[:, :, None]], axis=2)
        rows, beams, length = texts.shape
        with torch.inference_mode():
            read = model(source.repeat_interleave(beams, 0), torch.from_numpy(texts.reshape(-1, length)))
        answer: np.ndarray = read.numpy().reshape(rows, beams, length, -1)[:, :, -1]
        return answer

    graphs = GraphSteps(open_graph(folder / ENCODER), open_graph(folder / DECODER), source.numpy())
    got, wanted = beam_search(graphs, 5, 3, 6, 1.0), beam_search(step, 5, 3, 6, 1.0)
    assert [one.tokens for one in got] == [one.tokens for one in wanted]
    assert [one.score for one in got] == pytest.approx([one.score for one in wanted], abs=1e-4)
    assert len({tuple(one.tokens) for one in got}) > 1


def test_a_graph_with_another_weight_is_refused(exported: tuple[Summarising, Path], tmp_path: Path) -> None:
    model, folder = exported
    graph = onnx.load(folder / DECODER)
    bias = next(t for t in graph.graph.initializer if t.name.endswith("network.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.arange(30, dtype=np.float32), bias.name))
    onnx.save(graph, tmp_path / DECODER)
    (tmp_path / ENCODER).write_bytes((folder / ENCODER).read_bytes())
    with pytest.raises(ExportError, match="differs from torch"):
        check_summary_parity(model, SHAPE, tmp_path, "toy")
