"""Writes the model that all servers of the serving benchmark serve: a small CNN for 28 x 28 pixels, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField

LABELS = [str(digit) for digit in range(10)]


class SmallCNN(nn.Module):
    """Maps pixels `(rows, 28, 28)` uint8 to probabilities `(rows, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 49, 10),
            nn.Softmax(1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.layers(pixels[:, None].to(torch.float32) / 255)
        return found


def write_model(folder: Path) -> None:
    """Writes `model.onnx` and `contract.json` for Headrace, and `model.pt` for torch."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = SmallCNN().eval()
    example = torch.from_numpy(sample())[None]
    export(model, example, "pixels", folder)
    torch.jit.trace(model, example).save(str(folder / "model.pt"))  # type: ignore[no-untyped-call]
    pixels = InputField(name="pixels", dtype="uint8", shape=(28, 28), minimum=0, maximum=255)
    contract_of(pixels, sample().tolist()).write(folder / "contract.json")


def contract_of(field: InputField, value: list[Any]) -> Contract:
    """Returns the contract of a model with one input field and ten classes; `value` is the sample of the field."""
    return Contract(
        model="digits",
        task="classification",
        output="probabilities",
        labels=list(LABELS),
        target="label",
        inputs=[field],
        sample={field.name: value},
    )


def export(model: nn.Module, example: Tensor, name: str, folder: Path) -> None:
    """Exports `model.onnx`, with any number of rows of one input `name` and the output `probabilities`."""
    torch.onnx.export(
        model,
        (example,),
        folder / "model.onnx",
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("rows")},),
        input_names=[name],
        output_names=["probabilities"],
        external_data=False,
        verbose=False,
    )


def sample() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns an image `(28, 28)`; as with digits, a fifth of its pixels are not zero."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
    return np.where(generator.random((28, 28)) < 0.2, pixels, 0).astype(np.uint8)
