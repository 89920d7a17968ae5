"""What a recipe of boosted trees cannot have: settings of networks, several values per row, texts, and several processes."""

from __future__ import annotations

from headrace.recipe.data import DataConfig
from headrace.recipe.models import BoostedTreesConfig, ModelConfig
from headrace.recipe.training import TrainConfig

USED = frozenset({"window", "start", "seed", "device", "processes", "class_weights", "calibrate", "label_threshold"})
"""Fields of `train` that mean something for boosted trees, or are checked below."""
INSTEAD = {"epochs": "rounds", "learning_rate": "learning_rate", "early_stopping": "early_stopping_rounds"}
"""Fields of `train`, and those of `model` that boosted trees have instead."""


def check_boosting(model: ModelConfig, train: TrainConfig, data: DataConfig, is_classification: bool) -> None:
    """
    Raises:
        ValueError: a field that boosted trees cannot follow is set; nothing is ignored.
    """
    if not isinstance(model, BoostedTreesConfig):
        return
    _check_data(model, data, is_classification)
    for name in sorted(train.model_fields_set - USED):
        instead = f"write it as model.{INSTEAD[name]}" if name in INSTEAD else "remove it"
        raise ValueError(f"train.{name}: applies to networks only, not to {model.name}; {instead}")
    if train.start == "champion":
        raise ValueError(f"train.start: {model.name} is trained from the start each time, in one go; remove it, or use mlp")
    if train.processes > 1:
        raise ValueError(f"train.processes: {model.name} trains in one process; remove it, and raise model.threads")
    if train.device == "cuda":
        raise ValueError(f"train.device: {model.name} trains on the CPU; remove it, or use mlp")


def _check_data(model: BoostedTreesConfig, data: DataConfig, is_classification: bool) -> None:
    if data.text is not None:
        raise ValueError(f"data.text: {model.name} reads no texts; remove it, or use mlp")
    if len(data.targets) > 1:
        raise ValueError(f"data.target: {model.name} predicts one column, got {len(data.targets)}; name one, or use mlp")
    if is_classification and getattr(model, "objective", None) is not None:
        raise ValueError("model.objective: applies to regression only; remove it")
