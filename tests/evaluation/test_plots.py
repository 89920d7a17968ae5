"""Plots are complete and reproducible, and DVC reads their tables."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headrace.evaluation.metrics import score_classification, score_regression
from headrace.evaluation.plots import draw_curves, draw_evaluation

CURVES = "epoch,train_loss,val_loss,val_accuracy,learning_rate\n1,1.0,0.9,0.5,0.1\n2,0.5,0.6,0.8,0.1\n3,0.3,0.7,0.8,0.1\n"


def classified() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)


def draw_classification(folder: Path) -> list[Path]:
    y, p = classified()
    return draw_evaluation(score_classification(y, p, ["a", "b", "c"], {"by": y % 2}), y, p, "pets", folder)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_every_picture_is_a_png_with_a_table(tmp_path):
    written = draw_classification(tmp_path)
    assert (
        {path.name for path in written}
        == {path.name for path in tmp_path.iterdir()}
        == {"confusion.csv", "confusion.png", "recall.png", "reliability.csv", "reliability.png", "slices.csv", "slices.png"}
    )
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    first, second = draw_classification(tmp_path / "first"), draw_classification(tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"Software" not in (tmp_path / "first" / "recall.png").read_bytes()


def test_the_confusion_table_has_a_row_for_each_test_row(tmp_path):
    draw_classification(tmp_path)
    y, p = classified()
    counted = Counter((row["actual"], row["predicted"]) for row in rows_of(tmp_path / "confusion.csv"))
    assert counted == Counter(("abc"[true], "abc"[best]) for true, best in zip(y, p.argmax(1), strict=True))


def test_dvc_renders_the_tables_with_its_own_templates(tmp_path):
    from dvc_render import VegaRenderer

    draw_classification(tmp_path)
    tables = ("confusion", "confusion", "predicted", "actual"), ("reliability", "scatter", "confidence", "accuracy")
    for name, template, x, y in tables:
        points = [row | {"rev": "workspace", "filename": name} for row in rows_of(tmp_path / f"{name}.csv")]
        rendered = VegaRenderer(points, name, template=template, x=x, y=y).get_filled_template()
        assert [value[x] for value in rendered["data"]["values"]] == [point[x] for point in points]


def test_a_regression_gets_residuals_and_slices(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.normal(size=6_000)
    outputs = (y + 0.1)[:, None]
    written = draw_evaluation(score_regression(y, outputs, {"sign": np.sign(y)}), y, outputs, "flights", tmp_path)
    assert {path.name for path in written} == {"residuals.csv", "residuals.png", "slices.csv", "slices.png"}
    residuals = rows_of(tmp_path / "residuals.csv")
    assert len(residuals) == 5_000  # thinned: more points hide each other
    assert all(float(row["residual"]) == pytest.approx(0.1) for row in residuals)


@pytest.mark.parametrize("rows", [1, 2, 60])
def test_few_rows_many_classes_and_strange_names_can_be_drawn(tmp_path, rows):
    labels = [f"класс <{i}> $\\no$" for i in range(40)]
    p = np.full((rows, 40), 1 / 40)
    y = np.arange(rows) % 40
    assert len(draw_evaluation(score_classification(y, p, labels), y, p, "many", tmp_path)) == 5
    values = np.arange(float(rows))
    assert len(draw_evaluation(score_regression(values, values), values, values, "exact", tmp_path)) == 2


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_come_from_the_history_of_a_run(tmp_path, epochs):
    history = tmp_path / "curves.csv"
    history.write_text("".join(CURVES.splitlines(keepends=True)[: epochs + 1]))
    assert draw_curves(history, "pets", tmp_path / "out").read_bytes().startswith(b"\x89PNG")


def test_curves_mark_the_epoch_of_the_lowest_validation_loss():
    from headrace.evaluation.plots import curves

    rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(CURVES.splitlines())]
    figure = curves(rows, "pets")
    assert "kept: epoch 2" in [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "validation accuracy"]
