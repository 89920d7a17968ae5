"""Six small models with random rows for the training benchmark, and the minimum time of their training."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from headrace.models.schema import Categorical, Numeric, Schema, Shape
from headrace.models.served import ServedModel
from headrace.recipe.models import AttentionConfig, CNNConfig, GCNConfig, MLPConfig, ModelConfig, RecurrentConfig
from headrace.runtime.graph import make_graph
from headrace.runtime.tokenizer import SPECIAL
from headrace.task_types.lookup import task_type_of

CLASSES = 10
VOCABULARY, LENGTH = 8000, 64
COLUMNS, CARDINALITIES = 8, (3, 8, 20, 50, 100, 300)
NODES, FEATURES, WORDS, CITED, LABELLED = 2708, 1433, 18, 4, 140


@dataclass(frozen=True)
class Workload:
    """A model and its rows; each call of `model` returns a new one with the same initial weights."""

    name: str
    about: str
    model: Callable[[], ServedModel]
    inputs: tuple[Tensor, ...]
    target: Tensor
    batch_size: int
    epochs: int = 1
    """Epochs per round: several short epochs are timed together."""

    def __len__(self) -> int:
        """Returns the rows that a round trains on."""
        return len(self.target) * self.epochs

    def part(self, rows: int) -> Workload:
        """Returns the same workload with the first rows only, for one epoch."""
        return replace(self, inputs=tuple(part[:rows] for part in self.inputs), target=self.target[:rows], epochs=1)


def workloads(times: int = 1) -> list[Workload]:
    """Returns all workloads. Rows are random, because values do not affect the time; texts have 8 to 64 tokens.

    Args:
        times: factor of the number of rows, which suits two CPU cores.
    """
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20_000 * times, 28, 28), dtype=torch.uint8, generator=random)
    numbers = torch.randn(40_000 * times, COLUMNS, generator=random)
    levels = [torch.randint(0, count + 1, (len(numbers),), generator=random) for count in CARDINALITIES]
    texts = torch.randint(len(SPECIAL), VOCABULARY, (1_000 * times, LENGTH), generator=random)
    lengths = torch.randint(8, LENGTH + 1, (len(texts), 1), generator=random)
    texts = texts * (torch.arange(LENGTH) < lengths)  # 0 is padding
    few, half = images[: 3_000 * times], texts[: len(texts) // 2]

    def target(rows: Tensor) -> Tensor:
        return torch.randint(0, CLASSES, (len(rows),), generator=random)

    nodes = torch.arange(LABELLED)
    return [
        Workload("MLP", "28 × 28 pixels, hidden 128 and 128", mlp, (images,), target(images), 128),
        Workload(
            "MLP with embeddings",
            f"{COLUMNS} numbers and {len(CARDINALITIES)} categories, hidden 128 and 64",
            embeddings,
            (numbers, torch.stack(levels, dim=1)),
            target(numbers),
            256,
        ),
        Workload("CNN", "28 × 28 pixels, channels 16 and 32", cnn, (few,), target(few), 128),
        Workload(
            "LSTM", f"texts of up to {LENGTH} tokens, hidden 64 in each direction", recurrent, (texts,), target(texts), 64
        ),
        Workload(
            "transformer encoder",
            f"texts of up to {LENGTH} tokens, 2 blocks of width 64, 4 heads",
            encoder,
            (half,),
            target(half),
            64,
        ),
        Workload(
            "GCN",
            f"{NODES:,} nodes with {FEATURES:,} features, {LABELLED} of them with labels, hidden 64",
            gcn,
            (nodes,),
            target(nodes),
            256,
            epochs=20 * times,
        ),
    ]


def build_model(task: str, config: ModelConfig, schema: Schema) -> ServedModel:
    torch.manual_seed(0)
    return task_type_of(task).module(config, schema.model_copy(update={"labels": list(range(CLASSES))}))


def mlp() -> ServedModel:
    schema = Schema(shape=Shape(image=(1, 28, 28), outputs=CLASSES))
    return build_model("image-classification", MLPConfig(hidden=[128, 128]), schema)


def embeddings() -> ServedModel:
    columns = [Numeric(name=f"n{i}", mean=0.0, std=1.0, nullable=False) for i in range(COLUMNS)]
    named = [(f"c{i}", [str(level) for level in range(count)]) for i, count in enumerate(CARDINALITIES)]
    categories = [Categorical(name=name, levels=levels, nullable=False) for name, levels in named]
    shape = Shape(numeric=COLUMNS, cardinalities=tuple(count + 1 for count in CARDINALITIES), outputs=CLASSES)
    schema = Schema(shape=shape, numeric=columns, categorical=categories)
    return build_model("classification", MLPConfig(hidden=[128, 64]), schema)


def cnn() -> ServedModel:
    schema = Schema(shape=Shape(image=(1, 28, 28), outputs=CLASSES))
    model = build_model("image-classification", CNNConfig(channels=[16, 32]), schema)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def text_schema() -> Schema:
    return Schema(shape=Shape(vocabulary=VOCABULARY, length=LENGTH, outputs=CLASSES))


def recurrent() -> ServedModel:
    return build_model("text-classification", RecurrentConfig(cell="lstm", embedding=64, hidden=64), text_schema())


def encoder() -> ServedModel:
    return build_model("text-classification", AttentionConfig(width=64), text_schema())


def gcn() -> ServedModel:
    """Returns a GCN and a graph of Cora's size: as many papers, words per paper, and citations."""
    random = np.random.default_rng(0)
    words = [np.sort(random.choice(FEATURES, WORDS, replace=False)).astype(np.int32) for _ in range(NODES)]
    values = [(index, np.ones(WORDS, dtype=np.float32)) for index in words]
    edges = random.integers(0, NODES, (NODES * CITED // 2, 2))
    graph = make_graph([str(i) for i in range(NODES)], FEATURES, values, edges)
    extra = {"graph": base64.b64encode(graph.to_bytes()).decode()}
    return build_model("node-classification", GCNConfig(), Schema(shape=Shape(features=FEATURES, outputs=CLASSES), extra=extra))


@dataclass(frozen=True)
class Machine:
    """Measured rates of the device, which bound the speed of training."""

    operations: float
    """Floating-point operations per second, in matrix products of the precision of training."""
    bandwidth: float
    """Bytes per second, read and written."""


def measure(device: torch.device, precision: torch.dtype, quick: bool = False) -> Machine:
    """Times five products of 2048 × 2048 and five copies of 256 MB, and takes the best; `quick` uses an eighth of the sizes."""
    width, floats = (256, 8 << 20) if quick else (2048, 64 << 20)
    a, b = (torch.randn(width, width, device=device, dtype=precision) for _ in range(2))
    source = torch.zeros(floats, device=device)
    copied = torch.empty_like(source)
    product, copy = (best(f, device) for f in (lambda: torch.mm(a, b), lambda: copied.copy_(source)))
    return Machine(2 * width**3 / product, 2 * source.nbytes / copy)


def best(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(5):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor(workload: Workload, machine: Machine) -> float:
    """Returns the minimum seconds of a round: operations at the full rate or bytes at full bandwidth, whichever takes longer.

    Operations are those of matrix products and convolutions, forward and backward, as torch counts them; it does not count
    sparse products and LSTM cells. Bytes are AdamW's seven passes over the parameters (reads w, g, m, v; writes w, m, v), the
    gradients written once, and the rows read once.
    """
    model, size = workload.model().train(), min(workload.batch_size, len(workload.target))
    with FlopCounterMode(display=False) as counter:
        model.loss(model.raw(*(part[:size] for part in workload.inputs)), workload.target[:size]).backward()  # type: ignore[no-untyped-call]
    steps = -(-len(workload.target) // workload.batch_size) * workload.epochs
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    read = workload.epochs * sum(part.nbytes for part in (*workload.inputs, workload.target))
    operations = float(counter.get_total_flops()) * len(workload) / size
    return max(operations / machine.operations, (steps * 8 * parameters + read) / machine.bandwidth)
