"""Trains on pictures beside a plain torchvision-style script, with the same network for the same time, and compares pixels that
are decoded once with pixels that are decoded in each epoch: `python -m benchmarks.pictures`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.report import hardware, markdown, wrap
from headrace.data.pictures.listing import list_pictures
from headrace.data.pictures.shards import write_pictures
from headrace.models.resnet import ResNet
from headrace.models.schema import Schema, Shape
from headrace.models.served import ServedModel
from headrace.recipe.models import ResNetConfig
from headrace.recipe.recipe import Recipe
from headrace.recipe.training import TrainConfig
from headrace.task_types.image_classification import ImageClassification
from headrace.training.loading import load_rows
from headrace.training.loop import Trainer, TrainingRun, evaluate
from headrace.training.rows import Rows

SIDE, BATCH, RATE = 64, 32, 2e-3
CLASSES = ("circle", "cross", "square", "stripes")
CPU = torch.device("cpu")
NETWORK = ResNetConfig(width=16, depth=1, stages=3)
SHAPE = Shape(image=(3, SIDE, SIDE), outputs=len(CLASSES))


@dataclass(frozen=True)
class Trained:
    """What one way of training reached."""

    name: str
    pictures: int
    """Pictures that were trained on, all epochs together."""
    seconds: float
    first: float
    """Seconds until the first step."""
    accuracy: float


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs both comparisons, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(prog="benchmarks.pictures", description=__doc__)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=60.0, help="time that each way trains, its preparation included")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes of the DataLoader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--quick", action="store_true", help="few pictures and seconds: a check of the code, not a result")
    parser.add_argument("--out", type=Path, help="file for the report (default: docs/benchmarks/pictures.md)")
    options = parser.parse_args(arguments)
    count, seconds = (160, 2.0) if options.quick else (options.pictures, options.seconds)
    out = options.out or (None if options.quick else Path("docs/benchmarks/pictures.md"))
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as folder:
        text = _compared(Path(folder), count, seconds, options.workers)
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")
    return text


def _compared(folder: Path, count: int, seconds: float, workers: int) -> str:
    load = os.getloadavg()[0]
    size = draw(folder / "train", count, 0) + draw(folder / "test", count // 4, 1)
    started = time.perf_counter()
    for part in ("train", "test"):
        write_pictures([list_pictures(folder / part, recipe().data, None, None)], folder / f"{part}.parquet", part)
    stored = time.perf_counter() - started
    with_headrace(folder, 0.0)  # imports what it needs, untimed
    trained = [with_headrace(folder, seconds), with_a_plain_script(folder, seconds, workers)]
    ways = decoded_ways(folder)
    speeds = [one.pictures / (one.seconds - one.first) for one in trained]
    table = [
        [one.name, f"{one.first:.1f}", f"{speed:,.0f}", f"{one.pictures:,}", f"{one.accuracy:.3f}"]
        for one, speed in zip(trained, speeds, strict=True)
    ]
    decoding = [[name, f"{first:.2f}", f"{epoch:.2f}", f"{count / epoch:,.0f}"] for name, first, epoch in ways]
    total = count + count // 4
    prose = f"""{total:,} JPEG files of mixed sizes ({size / total / 1e3:.0f} KB each), {len(CLASSES)} classes of drawn shapes,
        brought to {SIDE} × {SIDE}; a residual network of width {NETWORK.width}; batches of {BATCH}, AdamW, horizontal flips.
        Each way has {seconds:g} s, from the files on. {hardware()}, {torch.get_num_threads()} threads of torch, {workers}
        workers of the DataLoader; load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f}. Reading, checking and
        storing all files took {stored:.1f} s ({total / stored:,.0f} per second), which is part of Headrace's time below."""
    head = ["way", "first step after (s)", "pictures per second", "pictures trained on", "test accuracy"]
    return (
        "\n\n".join(
            [
                "# Pictures",
                "Written by `python -m benchmarks.pictures`.",
                wrap(prose),
                "## Training beside a plain script",
                wrap(
                    "The plain script is that of torchvision's tutorials, without torchvision: a Dataset that opens and "
                    "resizes a file with Pillow, a DataLoader with workers, the same network, optimizer and augmentation."
                ),
                markdown(head, _with_storing(table, stored)),
                f"Headrace trains {speeds[0] / speeds[1]:.2f} times as many pictures per second as the plain script.",
                "## Decoding once or in each epoch",
                wrap("One epoch of batches without a network: what each way can feed at most."),
                markdown(["pixels", "before the first epoch (s)", "epoch (s)", "pictures per second"], decoding),
            ]
        )
        + "\n"
    )


def _with_storing(table: list[list[str]], stored: float) -> list[list[str]]:
    ours, plain = table
    return [[ours[0], f"{float(ours[1]) + stored:.1f}", *ours[2:]], plain]


# --- the pictures -----------------------------------------------------------------------------------------------------


def draw(folder: Path, count: int, seed: int) -> int:
    """Draws shapes in random colours on random backgrounds, and returns the size of all files."""
    rng, size = np.random.default_rng(seed), 0
    for i in range(count):
        name = CLASSES[i % len(CLASSES)]
        height, width = (int(side) for side in rng.integers(120, 260, 2))
        noise = rng.integers(0, 60, (height, width, 3)) + rng.integers(0, 190, 3)
        picture = Image.fromarray(noise.astype(np.uint8))
        _shape(ImageDraw.Draw(picture), name, width, height, rng)
        path = folder / name / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=85)
        size += path.stat().st_size
    return size


def _shape(pen: ImageDraw.ImageDraw, name: str, width: int, height: int, rng: np.random.Generator) -> None:
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    side = int(min(width, height) * rng.uniform(0.3, 0.6))
    left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
    box = (left, top, left + side, top + side)
    thick = max(4, side // 6)
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    elif name == "cross":
        pen.line((left, top, left + side, top + side), fill=colour, width=thick)
        pen.line((left, top + side, left + side, top), fill=colour, width=thick)
    else:
        for y in range(top, top + side, 2 * thick):
            pen.rectangle((left, y, left + side, y + thick), fill=colour)


# --- the ways ---------------------------------------------------------------------------------------------------------


def recipe(**data: Any) -> Recipe:
    image = {"size": [SIDE, SIDE], **data.pop("image", {})}
    fields = {
        "name": "shapes",
        "task": "image-classification",
        "data": {"source": "train", "target": "label", "image": image, **data},
        "expect": [],
        "model": NETWORK.model_dump(),
        "train": {"device": "cpu"},
        "serve": {},
    }
    return Recipe.model_validate(fields)


def _schema() -> Schema:
    return Schema(shape=SHAPE, labels=list(CLASSES))


def _rows(folder: Path, part: str, **data: Any) -> Rows:
    return load_rows(folder / f"{part}.parquet", ImageClassification(), _schema(), recipe(**data), CPU, folder / "encoded")


def with_headrace(folder: Path, seconds: float) -> Trained:
    """Trains with the loop of `headrace run`, on pixels that are decoded once."""
    torch.manual_seed(0)
    started = time.perf_counter()
    rows = _rows(folder, "train")
    model: ServedModel = ImageClassification().module(NETWORK, _schema()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = TrainConfig.model_validate(
        {"batch_size": BATCH, "epochs": 10**6, "learning_rate": RATE, "schedule": "constant", "augment": {"flip": "horizontal"}}
    )
    trainer = Trainer(model, rows, rows, config, TrainingRun(folder / "unused.pt", "benchmark"))
    first, trained = time.perf_counter() - started, 0
    step = trainer.step

    def counted(*given: Any) -> Tensor:
        nonlocal trained
        if time.perf_counter() - started > seconds:
            raise _TimeIsUp
        trained += len(given[0][1])
        return step(*given)

    trainer.step = counted
    try:
        while True:
            progress = trainer.progress
            progress.step, progress.loss_sum, progress.loss_rows = 0, 0.0, 0
            trainer.train_epoch()
            progress.epoch += 1
    except _TimeIsUp:
        spent = time.perf_counter() - started
    return Trained("Headrace", trained, spent, first, evaluate(model, _rows(folder, "test"))[1])


class _TimeIsUp(Exception):
    pass


class FolderOfPictures(Dataset[tuple[Tensor, int]]):
    """Files of a folder with a folder for each class, as in torchvision's ImageFolder with a resize and a flip."""

    def __init__(self, folder: Path, flips: bool) -> None:
        self.files = [(path, i) for i, name in enumerate(CLASSES) for path in sorted((folder / name).iterdir())]
        self.flips = flips

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        pixels: NDArray[np.uint8] = np.array(picture)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
        return (tensor.flip(-1) if self.flips and torch.rand(()) < 0.5 else tensor), label


def with_a_plain_script(folder: Path, seconds: float, workers: int) -> Trained:
    """Trains with a Dataset, a DataLoader with workers, and the loop of PyTorch's tutorials."""
    torch.manual_seed(0)
    started = time.perf_counter()
    network: nn.Module = ResNet(NETWORK, SHAPE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    data = FolderOfPictures(folder / "train", flips=True)
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    first, trained = 0.0, 0
    while time.perf_counter() - started < seconds:
        for images, labels in loader:
            first = first or time.perf_counter() - started
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            trained += len(labels)
            if time.perf_counter() - started > seconds:
                break
    spent = time.perf_counter() - started
    right = 0
    network.eval()
    with torch.inference_mode():
        for images, labels in DataLoader(FolderOfPictures(folder / "test", flips=False), 128):
            right += int((network(images).argmax(1) == labels).sum())
    return Trained("plain script", trained, spent, first, right / len(FolderOfPictures(folder / "test", flips=False)))


def decoded_ways(folder: Path) -> list[tuple[str, float, float]]:
    """Returns name, seconds before the first epoch, and seconds of an epoch, of each place of the pixels."""
    ways: dict[str, dict[str, Any]] = {
        "decoded once, in memory": {},
        "decoded once, in a mapped file": {"memory": "64KB"},
        "decoded in each epoch": {"memory": "64KB", "image": {"cache": 0}},
    }
    found = []
    for name, data in ways.items():
        before = _timed(lambda data=data: _rows(folder, "train", **data))  # type: ignore[misc]
        rows = _rows(folder, "train", **data)
        found.append((name, before, min(_timed(lambda rows=rows: _drain(rows)) for _ in range(3))))  # type: ignore[misc]
    return found


def _drain(rows: Rows) -> None:
    for _ in rows.batches(BATCH, torch.Generator().manual_seed(0)):
        pass


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
