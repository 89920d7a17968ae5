"""The libraries of boosted trees behind one interface: a round, its evaluation, and the trees as bytes. N: all rows."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.models.boosted_trees import BoostedTrees, require_lightgbm, with_float32_thresholds
from headrace.models.served import Regressor, ServedModel
from headrace.recipe.models import BoostedTreesConfig, LightGBMConfig, XGBoostConfig


@dataclass(frozen=True)
class Part:
    """Rows of a split."""

    features: NDArray[np.float32]
    """`(N, features)`, NaN for missing ones."""
    target: NDArray[Any]
    """Class indices or values in their own unit, `(N,)`."""
    weights: NDArray[np.float32] | None = None


class Booster(ABC):
    """Trees that grow round by round."""

    def __init__(self, model: ServedModel, validation: Part) -> None:
        self.model, self.validation = model, validation
        self.is_regression = isinstance(model, Regressor)

    @abstractmethod
    def update(self) -> bool:
        """Grows the trees of one round; returns whether no split improves the loss any more."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float, float]:
        """Returns the loss on the training and on the validation rows, and the model's metric on the validation rows."""

    @abstractmethod
    def content(self, rounds: int) -> bytes:
        """Returns the trees of the first `rounds` rounds, without the rows."""

    def labels(self, part: Part) -> NDArray[np.float32]:
        """Returns what the trees learn of each row, `(N,)`: class indices, or standardised values."""
        target = torch.from_numpy(part.target)
        found: NDArray[np.float32] = (self.model.standardised(target) if isinstance(self.model, Regressor) else target).numpy()
        return found.astype(np.float32)

    def metric(self, scores: NDArray[Any]) -> float:
        """Returns a regression's error in the target's own unit, for scores of the validation rows `(N,)`."""
        raw = torch.from_numpy(np.asarray(scores, dtype=np.float32)).reshape(-1, 1)
        return float(self.model.metric(raw, torch.from_numpy(self.validation.target)))


def booster_for(model: ServedModel, config: BoostedTreesConfig, train: Part, validation: Part, seed: int) -> Booster:
    """Returns the booster of the library that `config` names, before its first round."""
    if isinstance(config, LightGBMConfig):
        return LightGBMBooster(model, config, train, validation, seed)
    assert isinstance(config, XGBoostConfig)
    return XGBoostBooster(model, config, train, validation, seed)


def scores_per_row(model: ServedModel) -> int:
    """Returns the number of trees of a round."""
    assert isinstance(model.network, BoostedTrees)
    return model.network.scores_per_row


class LightGBMBooster(Booster):
    """Trees of LightGBM. `deterministic` with histograms by column makes the trees those of any number of threads."""

    def __init__(self, model: ServedModel, config: LightGBMConfig, train: Part, validation: Part, seed: int) -> None:
        super().__init__(model, validation)
        require_lightgbm()
        import lightgbm

        parameters = {
            **self._objective(config),
            "learning_rate": config.learning_rate,
            "num_leaves": config.num_leaves,
            "max_depth": config.max_depth or -1,
            "min_child_samples": config.min_child_samples,
            "subsample": config.subsample,
            "subsample_freq": 1 if config.subsample < 1 else 0,
            "colsample_bytree": config.colsample_bytree,
            "reg_alpha": config.reg_alpha,
            "reg_lambda": config.reg_lambda,
            "max_bin": config.max_bin,
            "num_threads": config.threads,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_col_wise": True,
            "verbose": -1,
        }
        rows = lightgbm.Dataset(train.features, self.labels(train), weight=train.weights, params=parameters)
        self._booster = lightgbm.Booster(parameters, rows)
        checked = rows.create_valid(validation.features, self.labels(validation), params=parameters)
        self._booster.add_valid(checked, "validation")

    def _objective(self, config: LightGBMConfig) -> dict[str, Any]:
        if self.is_regression:
            return {"objective": config.objective or "regression"}
        classes = scores_per_row(self.model)
        if classes == 1:
            return {"objective": "binary", "metric": ["binary_logloss", "binary_error"]}
        return {"objective": "multiclass", "num_class": classes, "metric": ["multi_logloss", "multi_error"]}

    def update(self) -> bool:
        return bool(self._booster.update())

    def evaluate(self) -> tuple[float, float, float]:
        train_loss = float(self._booster.eval_train()[0][2])
        if self.is_regression:
            found = self._booster.eval_valid(feval=lambda scores, rows: ("error", self.metric(scores), False))
            return train_loss, float(found[0][2]), float(found[1][2])
        found = self._booster.eval_valid()
        return train_loss, float(found[0][2]), 1.0 - float(found[1][2])

    def content(self, rounds: int) -> bytes:
        return with_float32_thresholds(self._booster.model_to_string(num_iteration=rounds)).encode()


class XGBoostBooster(Booster):
    """Trees of XGBoost."""

    def __init__(self, model: ServedModel, config: XGBoostConfig, train: Part, validation: Part, seed: int) -> None:
        super().__init__(model, validation)
        import xgboost

        parameters = {
            **self._objective(config),
            "learning_rate": config.learning_rate,
            "max_depth": config.max_depth,
            "min_child_weight": config.min_child_weight,
            "gamma": config.gamma,
            "subsample": config.subsample,
            "colsample_bytree": config.colsample_bytree,
            "reg_alpha": config.reg_alpha,
            "reg_lambda": config.reg_lambda,
            "max_bin": config.max_bin,
            "nthread": config.threads,
            "seed": seed % 2**31,
            "tree_method": "hist",
            "device": "cpu",
            "verbosity": 0,
        }
        self._round = 0
        self._rows = xgboost.QuantileDMatrix(
            train.features, self.labels(train), weight=train.weights, max_bin=config.max_bin, nthread=config.threads
        )
        self._validation = xgboost.DMatrix(validation.features, self.labels(validation), nthread=config.threads)
        self._booster = xgboost.Booster(parameters, [self._rows, self._validation])

    def _objective(self, config: XGBoostConfig) -> dict[str, Any]:
        if self.is_regression:
            return {"objective": config.objective or "reg:squarederror", "base_score": 0.0}
        classes = scores_per_row(self.model)
        if classes == 1:
            return {"objective": "binary:logistic", "base_score": 0.5, "eval_metric": ["logloss", "error"]}
        return {"objective": "multi:softprob", "num_class": classes, "base_score": 0.0, "eval_metric": ["mlogloss", "merror"]}

    def update(self) -> bool:
        self._booster.update(self._rows, self._round)
        self._round += 1
        return False

    def evaluate(self) -> tuple[float, float, float]:
        shown = self._booster.eval_set([(self._rows, "train"), (self._validation, "validation")], self._round)
        train, validation = (re.findall(rf"{name}-[^:]*:(\S+)", shown) for name in ("train", "validation"))
        if self.is_regression:
            metric = self.metric(self._booster.predict(self._validation, output_margin=True))
        else:
            metric = 1.0 - float(validation[1])
        return float(train[0]), float(validation[0]), metric

    def content(self, rounds: int) -> bytes:
        return bytes(self._booster[:rounds].save_raw("json"))
