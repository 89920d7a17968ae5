"""Converts models of scikit-learn, XGBoost and LightGBM to ONNX, and compares the answers of both."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import first_line
from headrace.importing.errors import ImportRefused, damaged
from headrace.importing.formats import SKOPS, Format
from headrace.importing.outputs import Labels
from headrace.importing.reading import require_readable
from headrace.importing.trees import TREES, check_trees, steps_of, trees_of
from headrace.models.onnx_export import rename_input
from headrace.runtime.contract import Feeds

if TYPE_CHECKING:
    import onnx

PARITY_ROWS = 256
OPSET, ML_OPSET = 18, 3
TREE_OPSET = 15
"""The opset of graphs that onnxmltools writes."""
SPREAD = 3.0
"""Random rows are at most this many standard deviations from the mean, where the model knows both; else up to this number."""


@dataclass(frozen=True)
class Converted:
    """A model as a graph, with what the original says about itself."""

    graph: onnx.ModelProto
    library: str
    task: str
    labels: Labels | None
    columns: list[str] | None
    """Names of the columns of its only input, where it knows them."""
    ranges: dict[int, tuple[float, float]]
    """By column, the lowest and highest number of random rows; others have -3 to 3."""
    levels: dict[str, list[str]]
    """By column, the categories of its texts."""
    answers: Callable[[Feeds], NDArray[Any]] = field(repr=False)
    """The original's answers to inputs of the graph, by their names in the graph."""


def convert(path: Path, kind: Format, shown: str) -> Converted:
    """Converts the file of a model.

    Raises:
        ImportRefused: it is damaged, holds unknown types, or cannot be converted.
    """
    read = {"skops": _from_skops, "xgboost": _from_xgboost, "lightgbm": _from_lightgbm}[kind]
    with _quiet():
        return read(path, shown)


def random_numbers(converted: Converted, columns: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Returns random rows `(PARITY_ROWS, columns)` within the ranges of the model."""
    bounds = [converted.ranges.get(i, (-SPREAD, SPREAD)) for i in range(columns)]
    return np.stack([rng.uniform(low, high, PARITY_ROWS) for low, high in bounds], axis=1).astype(np.float32)


def _from_skops(path: Path, shown: str) -> Converted:
    import skops.io
    from sklearn.base import is_classifier, is_regressor

    try:
        found = set(skops.io.get_untrusted_types(file=path))
    except Exception as error:  # skops raises whatever the damaged part causes
        raise damaged(shown, first_line(error)) from None
    if unknown := found - TREES:
        raise ImportRefused(
            f"{shown} holds types that are not trusted: {', '.join(sorted(unknown))}; nothing of it was loaded",
            where="model.source",
            hint="train it without classes or functions of your own; those of scikit-learn, NumPy and SciPy are known",
        )
    try:
        model = skops.io.load(path, trusted=sorted(found))
    except Exception as error:
        raise damaged(shown, first_line(error)) from None
    check_trees(model, shown)
    if not (is_classifier(model) or is_regressor(model)):
        raise ImportRefused(
            f"{shown} holds a {type(model).__name__}, which is neither a classifier nor a regressor",
            where="model.source",
            hint=f"save the fitted model itself: {SKOPS}",
        )
    if is_classifier(model) and not hasattr(model, "predict_proba"):
        raise ImportRefused(
            f"the model in {shown} has no predict_proba, so its answers have no probabilities",
            where="model.source",
            hint="wrap it before training: sklearn.calibration.CalibratedClassifierCV(model)",
        )
    labels = getattr(model, "classes_", None) if is_classifier(model) else None
    if isinstance(labels, list):
        raise ImportRefused(
            f"the model in {shown} predicts {len(labels)} targets at once", where="model.source", hint="save one for each"
        )
    return _from_estimator(model, None if labels is None else _as_labels(labels), shown)


def _from_estimator(model: Any, labels: Labels | None, shown: str) -> Converted:
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    names = [str(name) for name in getattr(model, "feature_names_in_", [])]
    texts = _text_columns(model, names)
    columns = names if names else None
    if texts or _has_column_transformer(model):
        if not names:
            raise ImportRefused(
                f"the model in {shown} selects columns, and does not know their names",
                where="model.source",
                hint="train it with a pandas.DataFrame",
            )
        kinds = [(name, (StringTensorType if name in texts else FloatTensorType)([None, 1])) for name in names]
        columns = None
    else:
        width = getattr(model, "n_features_in_", None)
        if width is None:
            raise ImportRefused(f"the model in {shown} is not fitted", where="model.source", hint=f"fit it, then: {SKOPS}")
        kinds = [("X", FloatTensorType([None, int(width)]))]
    options = {id(model): {"zipmap": False}} if labels is not None else None
    try:
        graph = to_onnx(model, initial_types=kinds, options=options, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET})
    except Exception as error:  # skl2onnx raises many classes for what it does not know
        raise _not_convertible(shown, error) from None
    is_matrix = columns is not None or not names
    if not is_matrix:  # skl2onnx changes names with blanks
        for value, name in zip(list(graph.graph.input), names, strict=True):
            rename_input(graph, value.name, name)

    def answers(feeds: Feeds) -> NDArray[Any]:
        import pandas as pd

        matrix = next(iter(feeds.values()))
        rows: Any = pd.DataFrame({name: feeds[name].ravel() for name in names}) if not is_matrix else matrix
        rows = pd.DataFrame(matrix, columns=names) if is_matrix and names else rows
        return np.asarray(model.predict(rows) if labels is None else model.predict_proba(rows))

    task = "regression" if labels is None else "classification"
    return Converted(graph, "scikit-learn", task, labels, columns, _ranges(model), texts, answers)


def _from_xgboost(path: Path, shown: str) -> Converted:
    import xgboost
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    require_readable(path, "xgboost", shown)
    booster = xgboost.Booster()
    try:
        booster.load_model(path)
        objective = _objective_of_xgboost(booster)
    except Exception as error:  # xgboost.core.XGBoostError, or what its JSON parser raises
        raise damaged(shown, first_line(error)) from None
    if booster.feature_types and any(kind == "c" for kind in booster.feature_types):
        raise _not_convertible(shown, ValueError("it has categorical columns"))
    is_classification = objective.startswith(("binary:logistic", "multi:"))
    if not is_classification and not objective.startswith(("reg:", "count:")):
        raise _not_convertible(shown, ValueError(f"its objective is {objective}"))
    model: Any = xgboost.XGBClassifier() if is_classification else xgboost.XGBRegressor()
    model.load_model(path)
    names, width = list(booster.feature_names or []) or None, booster.num_features()
    model.get_booster().feature_names = None  # the converter knows columns by number
    try:
        graph = convert_xgboost(model, initial_types=[("X", FloatTensorType([None, width]))], target_opset=TREE_OPSET)
    except Exception as error:
        raise _not_convertible(shown, error) from None

    def answers(feeds: Feeds) -> NDArray[Any]:
        rows = next(iter(feeds.values()))
        return np.asarray(model.predict_proba(rows) if is_classification else model.predict(rows))

    labels: Labels | None = list(range(int(model.n_classes_))) if is_classification else None
    task = "classification" if is_classification else "regression"
    return Converted(graph, "XGBoost", task, labels, names, {}, {}, answers)


def _objective_of_xgboost(booster: Any) -> str:
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def _from_lightgbm(path: Path, shown: str) -> Converted:
    from headrace.models.boosted_trees import require_lightgbm

    require_lightgbm()
    import lightgbm
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    text = path.read_text(encoding="utf-8", errors="replace")
    if "end of trees" not in text:
        raise damaged(shown, "its last trees are missing")
    require_readable(path, "lightgbm", shown)
    try:
        booster = lightgbm.Booster(model_str=text)
    except Exception as error:  # lightgbm.basic.LightGBMError
        raise damaged(shown, first_line(error)) from None
    objective = next((line.partition("=")[2] for line in text.splitlines() if line.startswith("objective=")), "regression")
    kind = objective.split()[0] if objective.split() else "regression"
    is_classification = kind in ("binary", "multiclass", "softmax", "multiclassova")
    matrix = [("X", FloatTensorType([None, booster.num_feature()]))]
    try:
        graph = convert_lightgbm(booster, initial_types=matrix, zipmap=False, target_opset=TREE_OPSET)
    except Exception as error:
        raise _not_convertible(shown, error) from None

    def answers(feeds: Feeds) -> NDArray[Any]:
        found = np.asarray(booster.predict(next(iter(feeds.values()))))
        return np.stack([1 - found, found], axis=1) if is_classification and found.ndim == 1 else found

    classes = max(2, booster.num_model_per_iteration())
    labels: Labels | None = list(range(classes)) if is_classification else None
    names = list(booster.feature_name())
    columns = None if all(name == f"Column_{i}" for i, name in enumerate(names)) else names
    task = "classification" if is_classification else "regression"
    return Converted(graph, "LightGBM", task, labels, columns, {}, {}, answers)


def _as_labels(classes: Any) -> Labels:
    return [int(one) if isinstance(one, int | np.integer) else str(one) for one in np.asarray(classes).tolist()]


def _has_column_transformer(model: Any) -> bool:
    return any(hasattr(step, "transformers_") for step in steps_of(model))


def _text_columns(model: Any, names: list[str]) -> dict[str, list[str]]:
    """The columns that encoders of texts read, each with its categories."""
    found: dict[str, list[str]] = {}
    for step in steps_of(model):
        for _, transformer, columns in getattr(step, "transformers_", []):
            if isinstance(transformer, str) or not names:
                continue
            known: Any = next((one.categories_ for one in steps_of(transformer) if hasattr(one, "categories_")), [])
            for column, levels in zip(columns, known, strict=False):
                if np.asarray(levels).dtype.kind in "OUST":
                    name = names[column] if isinstance(column, int) else str(column)
                    found[name] = [str(level) for level in levels]
    return found


def _ranges(model: Any) -> dict[int, tuple[float, float]]:
    """Ranges of the columns of a matrix, by a scaler before the model or by the thresholds of its trees."""
    steps = [one for one in steps_of(model) if not hasattr(one, "steps")]
    first = steps[0] if steps else model
    if getattr(first, "mean_", None) is not None and getattr(first, "scale_", None) is not None:
        return {i: (m - SPREAD * s, m + SPREAD * s) for i, (m, s) in enumerate(zip(first.mean_, first.scale_, strict=True))}
    if hasattr(first, "data_min_"):
        return {i: (float(a), float(b)) for i, (a, b) in enumerate(zip(first.data_min_, first.data_max_, strict=True))}
    found: dict[int, tuple[float, float]] = {}
    for tree in (one for one in trees_of(first) if hasattr(one, "threshold")):
        for column, threshold in zip(tree.feature.tolist(), tree.threshold.tolist(), strict=True):
            if column >= 0:
                low, high = found.get(column, (threshold - 1.0, threshold + 1.0))
                found[column] = (min(low, threshold - 1.0), max(high, threshold + 1.0))
    return found


def _not_convertible(shown: str, error: Exception) -> ImportRefused:
    return ImportRefused(
        f"the model in {shown} cannot be converted to ONNX: {first_line(error)}",
        where="model.source",
        hint="use a model that skl2onnx or onnxmltools converts, or export it to ONNX yourself",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what converters print and log from the terminal."""
    loggers = [logging.getLogger(name) for name in ("skl2onnx", "onnxmltools", "xgboost", "lightgbm")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
