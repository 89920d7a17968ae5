"""Boosted trees as a network: the library's own model as bytes among the weights, and the library to answer.

The libraries are needed for training and export only: the served graph has the trees as an ONNX node.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.errors import TrainingError
from headrace.models.schema import Shape
from headrace.recipe.models import BoostedTreesConfig

if TYPE_CHECKING:
    import lightgbm
    import onnx
    import xgboost

BUFFERS = ("booster", "booster_sha256")


class BoostedTrees(nn.Module):
    """Scores of trees: takes features `(rows, features)` float32, and returns logits `(rows, classes)`, or for a regression the
    standardised value `(rows, 1)`."""

    library: str

    def __init__(self, config: BoostedTreesConfig, shape: Shape) -> None:
        super().__init__()
        self.threads = config.threads
        self.outputs = shape.outputs
        self.booster: Tensor
        self.booster_sha256: Tensor
        for name in BUFFERS:
            self.register_buffer(name, torch.empty(0, dtype=torch.uint8))
        self._opened: Any = None

    @property
    def scores_per_row(self) -> int:
        """The number of scores of a row: one for each of several classes, otherwise a single one."""
        return self.outputs if self.outputs > 2 else 1

    def forward(self, features: Tensor) -> Tensor:
        if self._opened is None:
            self._opened = self.open(self.content())
        scores = self.scores(self._opened, features.detach().cpu().numpy())
        return self.logits(torch.from_numpy(scores.astype(np.float32).reshape(len(features), -1)))

    def logits(self, scores: Tensor) -> Tensor:
        """Converts scores `(rows, scores_per_row)`; of two classes the first one has the logit 0."""
        return torch.cat([torch.zeros_like(scores), scores], dim=1) if self.outputs == 2 else scores

    def set_content(self, content: bytes) -> None:
        """Stores trained trees, as the library writes them."""
        self.booster = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.booster_sha256 = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
        self._opened = None

    def content(self) -> bytes:
        """Returns the trained trees.

        Raises:
            TrainingError: there are none, or their bytes are damaged: the library could crash while reading them.
        """
        content = self.booster.numpy().tobytes()
        if not content or hashlib.sha256(content).digest() != self.booster_sha256.numpy().tobytes():
            raise TrainingError(
                f"the trees of {self.library} are damaged" if content else f"{self.library} has no trees yet",
                where="train/model.pt",
                hint="remove the file, and train again: headrace run RECIPE",
            )
        return content

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Takes over buffers of any length."""
        for name in BUFFERS:
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor):
                setattr(self, name, torch.empty_like(found))
        self._opened = None
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @abstractmethod
    def open(self, content: bytes) -> Any:
        """Returns the library's booster."""

    @abstractmethod
    def scores(self, booster: Any, features: NDArray[np.float32]) -> NDArray[Any]:
        """Returns the sums of the trees' leaves, `(rows,)` or `(rows, classes)`."""

    @abstractmethod
    def convert(self, features: int) -> onnx.ModelProto:
        """Returns the ONNX graph that the library's converter makes of the trees."""

    @abstractmethod
    def nodes(self) -> int:
        """Returns the number of nodes of all trees, leaves included."""


class LightGBM(BoostedTrees):
    """Trees of LightGBM, as its text format, with thresholds that are float32."""

    library = "LightGBM"

    def open(self, content: bytes) -> lightgbm.Booster:
        require_lightgbm()
        import lightgbm

        return lightgbm.Booster(model_str=content.decode())

    def scores(self, booster: lightgbm.Booster, features: NDArray[np.float32]) -> NDArray[Any]:
        found: NDArray[Any] = np.asarray(booster.predict(features, raw_score=True, num_threads=self.threads))
        return found

    def convert(self, features: int) -> onnx.ModelProto:
        from onnxmltools import convert_lightgbm
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("features", FloatTensorType([None, features]))]
        converted: onnx.ModelProto = convert_lightgbm(self.open(self.content()), initial_types=types, zipmap=False)
        return converted

    def nodes(self) -> int:
        return sum(2 * int(leaves) - 1 for leaves in re.findall(rb"^num_leaves=(\d+)", self.content(), re.MULTILINE))


class XGBoost(BoostedTrees):
    """Trees of XGBoost, as its JSON format."""

    library = "XGBoost"

    def open(self, content: bytes) -> xgboost.Booster:
        import xgboost

        booster = xgboost.Booster({"nthread": self.threads, "verbosity": 0})
        booster.load_model(bytearray(content))
        return booster

    def scores(self, booster: xgboost.Booster, features: NDArray[np.float32]) -> NDArray[Any]:
        import xgboost

        found: NDArray[Any] = booster.predict(xgboost.DMatrix(features, nthread=self.threads), output_margin=True)
        return found

    def convert(self, features: int) -> onnx.ModelProto:
        from onnxmltools import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType

        types = [("features", FloatTensorType([None, features]))]
        converted: onnx.ModelProto = convert_xgboost(self.open(self.content()), initial_types=types)
        return converted

    def nodes(self) -> int:
        trees = json.loads(self.content())["learner"]["gradient_booster"]["model"]["trees"]
        return sum(int(tree["tree_param"]["num_nodes"]) for tree in trees)


def require_lightgbm() -> None:
    """Checks that LightGBM can be loaded: its package needs a library of the operating system.

    Raises:
        TrainingError: that library is missing.
    """
    try:
        import lightgbm  # noqa: F401
    except OSError as error:
        raise TrainingError(
            f"LightGBM cannot be loaded: {error}",
            where="model.name",
            hint="install GCC's OpenMP library (Debian, Ubuntu: apt install libgomp1; Fedora: dnf install libgomp; "
            "macOS: brew install libomp), or use xgboost",
        ) from None


def with_float32_thresholds(text: str) -> str:
    """Returns LightGBM's text with each threshold rounded down to float32, which decides the same for float32 features.

    ONNX compares in float32; a threshold that the conversion rounds up would send values between the two to another leaf.
    """
    lines = []
    for line in text.split("\n"):
        name, _, values = line.partition("=")
        if name == "tree_sizes":  # sizes of the text of each tree, which change; the field is optional
            continue
        if name == "threshold":
            line = "threshold=" + " ".join(repr(_rounded_down(float(value))) for value in values.split())
        lines.append(line)
    return "\n".join(lines)


def _rounded_down(value: float) -> float:
    with np.errstate(over="ignore"):
        near = np.float32(value)
    return float(np.nextafter(near, np.float32(-np.inf)) if float(near) > value else near)
