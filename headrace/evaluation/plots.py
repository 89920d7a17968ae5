"""Plots of an evaluation and of a training run, each with the table that `dvc plots show` reads.

The same numbers give the same bytes. Colours are Okabe and Ito's, which colour-blind readers can distinguish.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.evaluation.intervals import wilson_interval
from headrace.evaluation.metrics import Evaluation, SliceScore, as_values, score_regression
from headrace.files import write_with

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6f6f6f"
MAX_CLASSES = 30
MAX_NUMBERED = 16
MAX_POINTS = 5_000
TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²"}


def draw_evaluation(
    evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], model: str, folder: Path
) -> list[Path]:
    """Draws the plots of an evaluation of `model` into `folder`, and returns the files written: pictures and tables.

    `y_true` holds class indices or values `(rows,)`, `outputs` probabilities `(rows, classes)` or values `(rows,)`; neither
    is used for a task type with row-wise metrics.
    """
    drawn: dict[str, Callable[[], Figure]] = {}
    tables: dict[str, tuple[Sequence[str], Iterable[Sequence[Any]]]] = {}
    if evaluation.task == "classification":
        drawn = {
            "confusion": lambda: confusion(evaluation, model),
            "recall": lambda: recall(evaluation, model),
            "reliability": lambda: reliability(evaluation, model),
        }
        named = np.array(evaluation.labels, dtype=object)
        tables["confusion"] = (("actual", "predicted"), zip(named[y_true], named[outputs.argmax(axis=1)], strict=True))
        tables["reliability"] = (
            ("confidence", "accuracy", "rows"),
            [(b.confidence, b.accuracy, b.rows) for b in evaluation.calibration],
        )
    elif evaluation.task == "multilabel":
        drawn = {"recall": lambda: recall(evaluation, model), "reliability": lambda: reliability(evaluation, model)}
        tables["reliability"] = (
            ("probability", "share", "rows"),
            [(b.confidence, b.accuracy, b.rows) for b in evaluation.calibration],
        )
    elif evaluation.task == "values":
        drawn = _residuals_of_each(evaluation, y_true.astype(np.float64), outputs.astype(np.float64), model)
    elif evaluation.task == "regression":
        predicted = as_values(outputs, len(y_true))
        residual = predicted - y_true
        drawn["residuals"] = lambda: residuals(evaluation, predicted, residual, model)
        shown = _thin(len(residual))
        tables["residuals"] = (("predicted", "residual"), zip(predicted[shown].tolist(), residual[shown].tolist(), strict=True))
    if evaluation.slices:
        drawn["slices"] = lambda: slices(evaluation, model)
        tables["slices"] = (
            ("slice", _slice_metric(evaluation), "rows"),
            [(f"{s.column}={s.value}", _slice_value(s), s.rows) for s in evaluation.slices],
        )
    written = [_write_table(folder / f"{name}.csv", *table) for name, table in tables.items()]
    return written + [_write_picture(folder / f"{name}.png", draw()) for name, draw in drawn.items()]


def _residuals_of_each(
    evaluation: Evaluation, y_true: NDArray[Any], outputs: NDArray[Any], model: str
) -> dict[str, Callable[[], Figure]]:
    """Returns a plot of the residuals of each target; `y_true` and `outputs` are `(rows, targets)`."""

    def draw(i: int, target: str) -> Figure:
        one = score_regression(y_true[:, i], outputs[:, i])
        return residuals(one, outputs[:, i], outputs[:, i] - y_true[:, i], f"{model}, {target}")

    return {f"residuals_{i + 1}": partial(draw, i, target) for i, target in enumerate(evaluation.labels)}


def draw_curves(history: Path, model: str, folder: Path) -> Path:
    """Draws the curves of a training run to `folder/curves.png`.

    `history` is a CSV with the columns epoch, train_loss, val_loss and `val_<metric>`; DVC plots it directly.
    """
    with history.open(encoding="utf-8", newline="") as handle:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(handle)]
    return _write_picture(folder / "curves.png", curves(rows, model))


def confusion(evaluation: Evaluation, model: str) -> Figure:
    """Plots the confusion matrix: true classes in rows, predicted ones in columns, coloured by the share of the true class."""
    from matplotlib.colors import PowerNorm

    counts = np.array(evaluation.confusion)
    support = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(support, 1)
    classes = len(counts)
    side = float(np.clip(2.2 + 0.45 * classes, 4.5, 10))
    figure, axes = _figure(side + 1.2, side)
    # errors are rare: on a square-root scale a share of 1 % is visible next to one of 99 %
    image = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    figure.colorbar(image, ax=axes, label="share of the true class", ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], fraction=0.046)
    if classes <= MAX_NUMBERED:
        for i, j in np.ndindex(counts.shape):
            if counts[i, j]:
                axes.text(
                    j,
                    i,
                    f"{counts[i, j]:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.35 else "black",
                )
    step = math.ceil(classes / MAX_CLASSES)
    places, names = range(0, classes, step), [_short(label) for label in evaluation.labels[::step]]
    turned = any(len(name) > 3 for name in names)
    axes.set_xticks(places, names, rotation=90 if turned else 0)
    axes.set_yticks(places, names)
    axes.set(xlabel="predicted", ylabel="true")
    return _titled(figure, model, f"accuracy {_metric(evaluation, 'accuracy')} on {evaluation.rows:,} test rows")


def recall(evaluation: Evaluation, model: str) -> Figure:
    """Plots the recall of each class with its 95 % Wilson interval, the worst at the top."""
    tested = sorted((c for c in evaluation.classes if c.recall is not None), key=lambda c: (c.recall, c.label))
    shown = tested[:MAX_CLASSES]
    figure, axes = _figure(6.4, 1.6 + 0.3 * len(shown))
    for place, c in enumerate(shown):
        assert c.recall is not None
        axes.plot(wilson_interval(c.recall, c.support), (place, place), color=GREY, linewidth=1.5, zorder=1)
        axes.plot(c.recall, place, "o", color=BLUE, zorder=2)
    axes.set_yticks(range(len(shown)), [f"{_short(c.label)}  ({c.support:,} rows)" for c in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.03)
    axes.set(xlabel="recall, with 95 % Wilson interval")
    left_out = f", worst {len(shown)} of {len(tested)} classes" if len(tested) > len(shown) else ""
    return _titled(figure, model, f"macro F1 {_metric(evaluation, 'macro_f1')} on {evaluation.rows:,} test rows{left_out}")


def reliability(evaluation: Evaluation, model: str) -> Figure:
    """Plots the accuracy of the top answer by its probability; below, the number of rows for each probability."""
    figure, (top, bottom) = _figures(5.6, 6.0, ratios=(3, 1))
    bins = evaluation.calibration
    top.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    for b in bins:
        top.plot((b.confidence, b.confidence), wilson_interval(b.accuracy, b.rows), color=BLUE, alpha=0.5, linewidth=1.5)
    top.plot(
        [b.confidence for b in bins], [b.accuracy for b in bins], "o-", color=BLUE, label="model, with 95 % Wilson interval"
    )
    several = evaluation.task == "multilabel"
    top.set(ylabel="share of rows with the label" if several else "accuracy", xlim=(0, 1.01), ylim=(0, 1.03))
    top.legend(loc="upper left", frameon=False)
    bottom.bar(
        [b.lower for b in bins],
        [b.rows for b in bins],
        width=[b.upper - b.lower for b in bins],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    if several:
        bottom.set(xlabel="probability of a label", ylabel="rows and labels")
    else:
        bottom.set(xlabel="probability of the top answer", ylabel="rows")
    return _titled(figure, model, f"calibration error {evaluation.calibration_error:.3f} on {evaluation.rows:,} test rows")


def residuals(evaluation: Evaluation, predicted: NDArray[np.float64], residual: NDArray[np.float64], model: str) -> Figure:
    """Plots prediction minus truth over the prediction, with running median and middle 90 %."""
    figure, axes = _figure(6.8, 4.6)
    low, high = np.quantile(residual, [0.002, 0.998])
    pad = 0.05 * (high - low) or 1.0
    shown = _thin(len(residual))
    axes.scatter(predicted[shown], residual[shown], s=6, alpha=0.25, color=GREY, linewidths=0, rasterized=True)
    axes.axhline(0, color="black", linewidth=1)
    centres, quantiles = _running_quantiles(predicted, residual)
    axes.fill_between(centres, quantiles[0], quantiles[2], color=BLUE, alpha=0.2, label="middle 90 %")
    axes.plot(centres, quantiles[1], color=BLUE, label="median")
    axes.set(xlabel="predicted", ylabel="predicted − true", ylim=(low - pad, high + pad))
    axes.legend(frameon=False)
    beyond = int(((residual < low - pad) | (residual > high + pad)).sum())
    points = (
        f"{len(shown):,} of {evaluation.rows:,} test rows as points"
        if len(shown) < evaluation.rows
        else f"{evaluation.rows:,} test rows"
    )
    metrics = ", ".join(
        f"{TITLES.get(name, name.replace('_', ' '))} {evaluation.metrics[name]:.4g}" for name in evaluation.metrics
    )
    return _titled(figure, model, f"{metrics}\n{points}" + (f"; {beyond:,} outside of the plot" if beyond else ""))


def slices(evaluation: Evaluation, model: str) -> Figure:
    """Plots the error (or accuracy, or score) of each value of each slice column, and that of all rows."""
    metric = _slice_metric(evaluation)
    columns = list(dict.fromkeys(s.column for s in evaluation.slices))
    groups = [[s for s in evaluation.slices if s.column == column] for column in columns]
    figure, panels = _figures(6.4, 1.4 + sum(0.5 + 0.24 * len(group) for group in groups), ratios=[len(g) + 1 for g in groups])
    for axes, column, group in zip(panels, columns, groups, strict=True):
        axes.axvline(evaluation.metrics[metric], color=ORANGE, linestyle="--", linewidth=1)
        for place, s in enumerate(group):
            axes.plot(_slice_interval(s), (place, place), color=GREY, linewidth=1.5, zorder=1)
        axes.plot([_slice_value(s) for s in group], range(len(group)), "o", color=BLUE)
        axes.set_yticks(range(len(group)), [f"{_short(s.value)}  ({s.rows:,})" for s in group], fontsize=8)
        axes.set_ylabel(_short(column))
        axes.set_ylim(len(group) - 0.4, -0.6)
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel(f"{metric} of the slice, with 95 % interval (rows in brackets)")
    return _titled(figure, model, f"{metric} {_metric(evaluation, metric)} on all {evaluation.rows:,} test rows (dashed)")


def curves(history: Sequence[dict[str, float]], model: str) -> Figure:
    """Plots loss and metrics by epoch; marks the epoch with the lowest validation loss, whose weights were kept."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["val_loss"])
    metrics = [name for name in history[0] if name.startswith("val_") and name != "val_loss"]
    figure, panels = _figures(6.4, 3.4 + 2.0 * len(metrics), ratios=[1.6, *(1 for _ in metrics)])
    panels[0].plot(epochs, [row["train_loss"] for row in history], "o-", markersize=3, color=GREY, label="training")
    panels[0].plot(epochs, [row["val_loss"] for row in history], "s-", markersize=3, color=BLUE, label="validation")
    panels[0].set_ylabel("loss")
    for axes, name in zip(panels[1:], metrics, strict=True):
        axes.plot(epochs, [row[name] for row in history], "s-", markersize=3, color=BLUE)
        axes.set_ylabel(f"validation {name.removeprefix('val_').replace('_', ' ')}")
    for axes in panels:
        axes.axvline(best["epoch"], color=ORANGE, linestyle="--", linewidth=1, label=f"kept: epoch {best['epoch']:.0f}")
        axes.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    panels[-1].set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return _titled(
        figure,
        model,
        f"{len(history)} epoch{'s' * (len(history) != 1)}, lowest validation loss {best['val_loss']:.4g} "
        f"in epoch {best['epoch']:.0f}",
    )


def _running_quantiles(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[list[float], NDArray[np.float64]]:
    """Returns mean x, and the 5th, 50th and 95th percentile of y, in up to 20 groups of equal size."""
    groups = [g for g in np.array_split(np.argsort(x, kind="stable"), max(1, min(20, len(x) // 25))) if len(g)]
    return [float(x[g].mean()) for g in groups], np.array([np.quantile(y[g], [0.05, 0.5, 0.95]) for g in groups]).T


def _thin(rows: int) -> NDArray[np.int64]:
    """Returns at most MAX_POINTS rows, evenly spaced: more points hide each other."""
    return np.unique(np.linspace(0, rows - 1, min(rows, MAX_POINTS)).astype(np.int64))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure, panels = _figures(width, height, ratios=[1])
    return figure, panels[0]


def _figures(width: float, height: float, ratios: Sequence[float]) -> tuple[Figure, list[Axes]]:
    # not pyplot: it shares state, and looks for a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    grid = figure.subplots(len(ratios), 1, sharex=len(ratios) > 1, squeeze=False, gridspec_kw={"height_ratios": list(ratios)})
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[:, 0])


def _titled(figure: Figure, model: str, numbers: str) -> Figure:
    figure.suptitle(f"{model}: {numbers}", fontsize=10)
    return figure


def _write_picture(path: Path, figure: Figure) -> Path:
    # without metadata: matplotlib writes its version into the file, and an upgrade would change the bytes
    write_with(path, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
    return path


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    write_with(path, write)
    return path


def _slice_metric(evaluation: Evaluation) -> str:
    return evaluation.sliced_by or ("accuracy" if evaluation.task == "classification" else "mae")


def _slice_value(score: SliceScore) -> float:
    value = next((value for value in (score.accuracy, score.mae, score.score) if value is not None), None)
    assert value is not None
    return value


def _slice_interval(score: SliceScore) -> tuple[float, float]:
    if score.accuracy is not None:
        return wilson_interval(score.accuracy, score.rows)
    reach = 1.959964 * (score.standard_error or 0.0)
    return _slice_value(score) - reach, _slice_value(score) + reach


def _metric(evaluation: Evaluation, name: str) -> str:
    return f"{evaluation.metrics[name]:.4g}" if name in evaluation.metrics else "undefined"


def _short(text: str) -> str:
    """Shortens a label to fit an axis, and escapes dollar signs, which would start a formula."""
    return (text if len(text) <= 18 else f"{text[:9]}…{text[-8:]}").replace("$", r"\$")
