"""Exports a language model as the graph of one step, and compares it with torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.files import write_text, write_with
from headrace.models.language import LanguageNetwork, MaskedNetwork
from headrace.models.onnx_export import save_graph, to_graph
from headrace.models.onnx_inference import open_graph
from headrace.models.parity import PARITY_ROWS, check_answers
from headrace.models.schema import Shape
from headrace.models.served import ServedModel
from headrace.runtime.generation import READ, REMEMBERED, STEPS, TOKENS, StateSpec, StepLayout, StepRunner
from headrace.runtime.text_batch import TextBatch
from headrace.runtime.tokenizer import END

if TYPE_CHECKING:
    import onnx


class StepModule(nn.Module):
    """`LanguageNetwork.step` as a module, for export."""

    def __init__(self, network: LanguageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return self.network.step(tokens, *states)


class StepRowsModule(nn.Module):
    """`MaskedNetwork.step_rows` as a module, for export."""

    def __init__(self, network: MaskedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, remembered: Tensor, read: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return self.network.step_rows(tokens, remembered, read, *states)


def export_step(model: ServedModel, shape: Shape, folder: Path) -> StepLayout:
    """Writes `model.onnx` and `served_steps.json` into `folder`.

    The graph takes `tokens` `(rows, length)` and the states by name, for any number of rows, tokens and tokens in the state.
    For a `MaskedNetwork`, it also takes how many entries of the state are valid and how many tokens were read, for each row.
    It returns `logits` and, with the prefix `next_`, each state, or for a `MaskedNetwork` what is added to it.
    """
    network = _network(model)
    layout = StepLayout(length=shape.length, states=tuple(_states(network)), masked=isinstance(network, MaskedNetwork))
    rows, length, past = (torch.export.Dim(name) for name in ("rows", "length", "past"))
    # torch.export treats sizes 0 and 1 of an example as fixed
    example = {TOKENS: _random_tokens(2, 3, shape, seed=0)}
    dynamic: dict[str, Any] = {TOKENS: {0: rows, 1: length}}
    if layout.masked:
        example |= {REMEMBERED: torch.tensor([5, 3]), READ: torch.tensor([7, 3])}
        dynamic |= {REMEMBERED: {0: rows}, READ: {0: rows}}
    example |= {
        state.name: torch.zeros(2, *(5 if state.grows == axis + 1 else size for axis, size in enumerate(state.shape)))
        for state in layout.states
    }
    axes = [{0: rows} if state.grows is None else {0: rows, state.grows: past} for state in layout.states]
    outputs = ["logits", *(f"next_{state.name}" for state in layout.states)]
    step: nn.Module = StepRowsModule(network) if isinstance(network, MaskedNetwork) else StepModule(network)
    graph = to_graph(step.eval(), example, {**dynamic, "states": tuple(axes)}, outputs)
    _forget_traced_sizes(graph, layout, shape.vocabulary)
    write_with(folder / "model.onnx", lambda beside: save_graph(graph, beside))
    write_text(folder / STEPS, layout.model_dump_json(indent=1) + "\n")
    return layout


def _states(network: LanguageNetwork) -> list[StateSpec]:
    if isinstance(network, MaskedNetwork):
        return [StateSpec(name=name, shape=shape, grows=shape.index(0) + 1) for name, shape in network.row_states.items()]
    starts = zip(network.states, network.start(1), strict=True)
    return [StateSpec(name=name, shape=tuple(start.shape[1:]), grows=network.growing.get(name)) for name, start in starts]


def _forget_traced_sizes(graph: onnx.ModelProto, layout: StepLayout, vocabulary: int) -> None:
    """Marks the axes of outputs that may have any size: for recurrent layers, tracing leaves the example's length there."""
    from onnx import TensorProto, helper

    del graph.graph.value_info[:]
    shapes: list[list[str | int | None]] = [["rows", "length", vocabulary]]
    shapes += [
        ["rows", *("present" if state.grows == axis + 1 else size for axis, size in enumerate(state.shape))]
        for state in layout.states
    ]
    values = [
        helper.make_tensor_value_info(output.name, TensorProto.FLOAT, sizes)
        for output, sizes in zip(graph.graph.output, shapes, strict=True)
    ]
    del graph.graph.output[:]
    graph.graph.output.extend(values)


def check_step_parity(model: ServedModel, shape: Shape, folder: Path, layout: StepLayout, recipe: str) -> dict[str, float]:
    """Compares torch, which processes whole texts, with the graph: at once, in two steps, and token by token; on random tokens,
    for texts of minimum and maximum length, and for texts of different lengths together.

    Raises:
        ExportError: the largest difference is above `TOLERANCE`.
    """
    session = open_graph(folder / "model.onnx")

    def answers() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for seed, (rows, length) in enumerate(product(PARITY_ROWS, (1, shape.length))):
            tokens = _random_tokens(rows, length, shape, seed)
            with torch.inference_mode():
                expected = model(tokens).numpy()
            for stride in {length, max(1, length * 2 // 3), 1}:
                steps = StepRunner(session, layout, rows)
                yield expected, np.concatenate([steps(part.numpy()) for part in torch.split(tokens, stride, dim=1)], axis=1)
        yield _together(model, TextBatch(session, layout), shape)

    return check_answers(answers(), recipe)


def _together(model: ServedModel, batch: TextBatch, shape: Shape) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the logits after texts of different lengths, `(texts, V)`: torch's one by one, and the graph's together."""
    lengths = sorted({1, shape.length // 2, shape.length - 1})
    tokens = [_random_tokens(1, length + 1, shape, seed=length) for length in lengths]
    names = [batch.read(text[0, :-1].tolist())[0] for text in tokens]
    found = batch.step({name: int(text[0, -1]) for name, text in zip(names, tokens, strict=True)})
    with torch.inference_mode():
        expected = np.stack([model(text)[0, -1].numpy() for text in tokens])
    return expected, np.stack([found[name] for name in names])


def _network(model: ServedModel) -> LanguageNetwork:
    assert isinstance(model.network, LanguageNetwork)
    return model.network


def _random_tokens(rows: int, length: int, shape: Shape, seed: int) -> Tensor:
    """Returns random tokens `(rows, length)`, without special ones."""
    found: NDArray[np.int64] = np.random.default_rng(seed).integers(END + 1, shape.vocabulary, (rows, length))
    return torch.from_numpy(found)
