"""The model of a summarisation in training, and its export as two graphs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from headrace.files import write_with
from headrace.models.onnx_export import save_graph, to_graph
from headrace.models.onnx_inference import open_graph
from headrace.models.parity import PARITY_ROWS, check_answers
from headrace.models.schema import IGNORED, Shape
from headrace.models.seq2seq import DecoderGraph, EncoderGraph, Seq2Seq
from headrace.models.served import AsIs, ServedModel
from headrace.runtime.beam_search import DECODER, ENCODER, GraphSteps
from headrace.runtime.tokenizer import END, PAD, START


class Summarising(ServedModel):
    """Predicts log-probabilities `(N, V)` of the next token for the N tokens of a batch of summaries, with or without padding.
    Targets `(B, T)` are the next tokens, or `IGNORED` if there is none."""

    metric_name = "token_accuracy"
    loss_options = frozenset({"label_smoothing"})
    max_evaluation_batch = 32  # a row's answer is its tokens times the vocabulary: a megabyte

    def __init__(self, network: nn.Module) -> None:
        super().__init__(AsIs(), network)

    def answer(self, raw: Tensor) -> Tensor:
        return raw

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        # log-probabilities are their own log-softmax
        return F.cross_entropy(raw, _targets_of(raw, target), ignore_index=IGNORED, label_smoothing=smoothing)

    def metric(self, raw: Tensor, target: Tensor) -> Tensor:
        expected = _targets_of(raw, target)
        return (raw.argmax(dim=1) == expected).sum() / (expected != IGNORED).sum()

    def count_items(self, target: Tensor) -> Tensor:
        return (target != IGNORED).sum()


def _targets_of(raw: Tensor, target: Tensor) -> Tensor:
    """Returns the targets of `raw`, `(N,)`."""
    return target.flatten() if target.numel() == len(raw) else target[target != IGNORED]


def export_graphs(model: ServedModel, shape: Shape, folder: Path) -> None:
    """Writes the graphs of `EncoderGraph` and `DecoderGraph` into `folder`."""
    rows, source, beams, past = (torch.export.Dim(name) for name in ("rows", "source", "beams", "past"))
    network = _network(model)
    encoder_graph = EncoderGraph(network)
    sources = torch.from_numpy(_random_tokens(2, 3, shape, seed=0))
    encoder = to_graph(encoder_graph, {"source": sources}, {"source": {0: rows, 1: source}}, ["memory", "pointed"])
    write_with(folder / ENCODER, lambda beside: save_graph(encoder, beside))

    memory, pointed = encoder_graph(sources)
    example = {
        "tokens": torch.full((2, 4), START),
        "source": sources,
        "memory": memory,
        "pointed": pointed,
        "past": torch.zeros(2, 4, *memory.shape[1:4], 5, memory.shape[5]),
    }
    axes = {
        "tokens": {0: rows, 1: beams},
        "source": {0: rows, 1: source},
        "memory": {0: rows, 4: source},
        "pointed": {0: rows, 2: source},
        "past": {0: rows, 1: beams, 5: past},
    }
    decoder = to_graph(DecoderGraph(network), example, axes, ["log_probabilities", "present"])
    write_with(folder / DECODER, lambda beside: save_graph(decoder, beside))


def check_summary_parity(model: ServedModel, shape: Shape, folder: Path, recipe: str) -> dict[str, float]:
    """Compares torch, which processes whole summaries at once, with the graphs, token by token: on random tokens, for sources
    of any length, including the empty and the longest, and for summaries of minimum and maximum length.

    Raises:
        ExportError: the largest difference is above `TOLERANCE`.
    """

    def answers() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for seed, (rows, read, written) in enumerate(product(PARITY_ROWS, (1, shape.length), (1, shape.answer_length))):
            source = _random_tokens(rows, read, shape, seed)
            for row in range(1, rows):
                source[row, row * read // rows :] = PAD
            summary = np.concatenate([np.full((rows, 1), START), _random_tokens(rows, written, shape, seed + 100)], axis=1)
            with torch.inference_mode():
                expected = model(torch.from_numpy(source), torch.from_numpy(summary)).numpy().reshape(rows, written + 1, -1)
            steps = GraphSteps(open_graph(folder / ENCODER), open_graph(folder / DECODER), source)
            same = np.zeros((rows, 1), dtype=np.int64)
            tokens = enumerate(summary.T)
            yield expected, np.concatenate([steps(token[:, None], same if i else None) for i, token in tokens], axis=1)

    return check_answers(answers(), recipe)


def _network(model: ServedModel) -> Seq2Seq:
    assert isinstance(model.network, Seq2Seq)
    return model.network


def _random_tokens(rows: int, length: int, shape: Shape, seed: int) -> NDArray[np.int64]:
    """Returns random tokens `(rows, length)`, without special ones."""
    return np.random.default_rng(seed).integers(END + 1, shape.vocabulary, (rows, length))
