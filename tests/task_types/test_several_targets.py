"""Rows with several labels or several values, from the source to the served model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bentos.protocols.explain import ExplainRequest, _explained, explanation_for
from bentos.protocols.v2 import ModelTensors
from headrace.data.ingest import ingest
from headrace.errors import DataError, DataRejected, ExportError, RecipeError
from headrace.models.schema import Schema
from headrace.pipeline.export import load_weights
from headrace.recipe.recipe import Recipe, load_recipe, parse_recipe
from headrace.runtime.violations import ContractViolation
from headrace.task_types.lookup import task_type_for
from tests.task_types.several_targets import (
    IMAGES,
    LABELS,
    TABLE,
    TEXT,
    Built,
    instances,
    labelled,
    measured,
    one_column_each,
    pictures_of,
    recipe_text,
    texts_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 300


def table(root: Path) -> Built:
    frame, labels = labelled(ROWS)
    train = {**TABLE["train"], "label_threshold": "validation", "calibrate": "temperature"}  # type: ignore[dict-item]
    text = recipe_text("multilabel-classification", target="tags", train=train, data={"source": "several.parquet"})
    return Built(root, "several.parquet", text).run(frame.assign(tags=labels))


def separated(root: Path) -> Built:
    frame, labels = labelled(ROWS)
    data = {"label_separator": "|"}
    text = recipe_text("multilabel-classification", target="tags", data=data)
    return Built(root, "several.csv", text).run(frame.assign(tags=["|".join(given) for given in labels]), trained=False)


def texts(root: Path) -> Built:
    _, labels = labelled(ROWS)
    data = {"source": "several.parquet", "text": {"column": "body", "tokens": "words", "length": 12}}
    text = recipe_text("multilabel-text-classification", target="tags", data=data, **TEXT)
    return Built(root, "several.parquet", text).run(pd.DataFrame({"body": texts_of(labels), "tags": labels}), trained=False)


def pictures(root: Path) -> Built:
    frame, labels = labelled(ROWS)
    text = recipe_text("multilabel-image-classification", target=LABELS, data={"image": [4, 4]}, **IMAGES)
    columns = one_column_each(frame, labels)[LABELS].astype(int)
    return Built(root, "several.csv", text).run(pd.concat([pictures_of(labels), columns], axis=1), trained=False)


def photographs(root: Path) -> Built:
    """A table of paths of pictures, with the labels in one column."""
    _, labels = labelled(60)
    data = {"image": {"size": [12, 12], "path": "file"}, "label_separator": "|"}
    text = recipe_text("multilabel-image-classification", target="tags", data=data, **IMAGES)
    frame = pd.DataFrame({"file": [f"p/{i}.png" for i in range(60)], "tags": ["|".join(given) for given in labels]})
    return Built(root, "several.csv", text).with_pictures(60).run(frame, trained=False)


def values(root: Path) -> Built:
    text = recipe_text("regression", target=["rent", "rating"])
    return Built(root, "several.csv", text).run(measured(ROWS))


@pytest.fixture(scope="module", params=[table, separated, texts, pictures, photographs], ids=lambda make: make.__name__)
def labels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    found: Built = request.param(tmp_path_factory.mktemp("labels") / "project")
    return found


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return values(tmp_path_factory.mktemp("numbers") / "project")


# Several labels.


def test_labels_are_learned_and_each_metric_is_there(labels: Built) -> None:
    metrics = {"micro_f1", "macro_f1", "jaccard", "subset_accuracy", "hamming_loss", "mean_average_precision", "log_loss"}
    assert labels.metrics.keys() == metrics | {"calibration_error"}
    if labels.recipe.train.label_threshold == "validation":  # the others have random weights
        assert labels.metrics["micro_f1"] > 0.8
    assert [one["label"] for one in labels.evaluation["classes"]] == LABELS
    pictures = {path.name for path in (labels.artifacts / "evaluation" / "pictures").glob("*.png")}
    assert {"recall.png", "reliability.png", "curves.png"} <= pictures


def test_an_answer_has_the_labels_above_their_thresholds(labels: Built) -> None:
    asked = instances(labels)
    answers = labels.model.predict(asked)
    thresholds = dict(zip(LABELS, labels.model.contract.thresholds or [], strict=True))
    for answer in answers:
        assert list(answer) == ["labels", "probabilities"]
        assert answer["labels"] == [label for label, p in answer["probabilities"].items() if p >= thresholds[label]]


def test_the_service_gives_the_answers_of_the_evaluation_and_of_torch(labels: Built) -> None:
    recipe, task_type = labels.recipe, task_type_for(labels.recipe)
    outputs = task_type.answers(labels.artifacts / "export", labels.test, recipe)
    assert outputs.shape == (len(labels.test), 2, 3)
    served = labels.model.predict(instances(labels))
    np.testing.assert_allclose(outputs[:20, 0], [list(answer["probabilities"].values()) for answer in served], atol=1e-5)
    assert [[LABELS[i] for i in np.flatnonzero(row)] for row in outputs[:20, 1]] == [answer["labels"] for answer in served]
    schema = Schema.read(labels.artifacts / "prepared" / "schema.json")
    model = load_weights(recipe, schema, labels.artifacts / "train" / "model.pt")
    inputs = task_type.encode(labels.test, schema, recipe)
    with torch.inference_mode():
        expected = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
    np.testing.assert_allclose(outputs[:, 0], expected, atol=1e-4)
    saved = np.load(labels.artifacts / "evaluation" / "predictions.npz")
    score = task_type.comparison_scores("jaccard", saved["y_true"], saved["outputs"], recipe).mean()
    assert score == pytest.approx(labels.metrics["jaccard"], abs=1e-6)


def test_labels_are_tensors_too(labels: Built) -> None:
    tensors = ModelTensors(labels.model)
    asked = instances(labels)
    found = tensors.answer(labels.model.to_feeds(asked))
    answers = labels.model.predict(asked)
    assert [json.loads(given) for given in found["labels"]] == [answer["labels"] for answer in answers]
    assert np.shape(found["probabilities"]) == (20, 3)
    assert tensors.describe_outputs()[0] == {"name": "labels", "datatype": "BYTES", "shape": [-1]}
    assert tensors.labels_or_values(found)[0] == {"labels": answers[0]["labels"]}


def test_one_label_of_an_answer_is_explained(labels: Built) -> None:
    instance = instances(labels)[0]
    probabilities = labels.model.predict([instance])[0]["probabilities"]
    for target in (None, "paid"):
        asked = ExplainRequest(instance, target)
        explanation = explanation_for(labels.model, asked)
        chosen, explained = _explained(labels.model, asked, explanation.outputs(0, explanation.rows))
        assert chosen == (target or max(probabilities, key=lambda label: probabilities[label]))
        assert explained[-1] == pytest.approx(probabilities[chosen], abs=1e-5)
    with pytest.raises(ContractViolation, match="target: expected one of late, paid, urgent"):
        asked = ExplainRequest(instance, "lost")
        _explained(labels.model, asked, explanation.outputs(0, explanation.rows))


def test_a_champion_with_other_labels_is_compared_on_ours(labels: Built) -> None:
    task_type, ours = task_type_for(labels.recipe), labels.model.contract
    outputs = np.arange(8.0).reshape(2, 2, 2)
    theirs = ours.model_copy(update={"labels": ["urgent", "gone"]})
    aligned = task_type.align(outputs, theirs, ours)
    assert aligned[:, :, 2].tolist() == outputs[:, :, 0].tolist() and not aligned[:, :, :2].any()


# Several values.


def test_each_target_is_predicted_in_its_own_unit(numbers: Built) -> None:
    names = ("scaled_mae", *(f"{metric}{of}" for metric in ("mae", "rmse", "r2") for of in ("", "_rent", "_rating")))
    assert sorted(numbers.metrics) == sorted(names)
    assert numbers.metrics["r2_rent"] > 0.8 and numbers.metrics["r2_rating"] > 0.7
    assert numbers.metrics["mae"] == pytest.approx((numbers.metrics["mae_rent"] + numbers.metrics["mae_rating"]) / 2, abs=1e-5)
    answers = numbers.model.predict(instances(numbers))
    predicted = pd.DataFrame(answers)
    assert list(predicted) == ["rent", "rating"]
    assert predicted.rent.between(100, 2500).all() and predicted.rating.between(0, 6).all()
    outputs = task_type_for(numbers.recipe).answers(numbers.artifacts / "export", numbers.test, numbers.recipe)
    np.testing.assert_allclose(outputs[:20], predicted.to_numpy(), rtol=1e-5)
    pictures = {path.name for path in (numbers.artifacts / "evaluation" / "pictures").glob("*.png")}
    assert {"residuals_1.png", "residuals_2.png"} <= pictures


def test_values_are_a_tensor_each(numbers: Built) -> None:
    tensors = ModelTensors(numbers.model)
    found = tensors.answer(numbers.model.to_feeds(instances(numbers)))
    assert {name: np.shape(value) for name, value in found.items()} == {"rent": (20,), "rating": (20,)}
    assert list(tensors.labels_or_values(found)[0]) == ["rent", "rating"]


def test_one_of_several_values_is_explained(numbers: Built) -> None:
    instance = instances(numbers)[0]
    answer = numbers.model.predict([instance])[0]
    for target in (None, "rating"):
        asked = ExplainRequest(instance, target)
        explanation = explanation_for(numbers.model, asked)
        chosen, explained = _explained(numbers.model, asked, explanation.outputs(0, explanation.rows))
        assert chosen == (target or "rent") and explained[-1] == pytest.approx(answer[chosen], rel=1e-5)
        attributions = explanation.attribute(explained)["attributions"]
        assert sum(attributions.values()) == pytest.approx(explained[-1] - explained[0], rel=1e-3)
    with pytest.raises(ContractViolation, match="target: expected one of rent, rating"):
        _explained(numbers.model, ExplainRequest(instance, "price"), explanation.outputs(0, 1))


def test_values_of_a_champion_are_compared_by_name(numbers: Built) -> None:
    task_type, ours = task_type_for(numbers.recipe), numbers.model.contract
    theirs = ours.model_copy(update={"targets": ["rating", "rent"]})
    assert task_type.align(np.array([[1.0, 2.0]]), theirs, ours).tolist() == [[2.0, 1.0]]
    with pytest.raises(ExportError, match="the champion does not predict 'rent'"):
        task_type.align(np.array([[1.0]]), ours.model_copy(update={"targets": ["rating"]}), ours)
    y, outputs = np.array([[1.0, 10.0], [2.0, 30.0]]), np.array([[2.0, 10.0], [2.0, 20.0]])
    assert task_type.comparison_scores("mae_rating", y, outputs, numbers.recipe).tolist() == [0, 10]
    assert task_type.comparison_scores("scaled_mae", y, outputs, numbers.recipe).tolist() == [1, 0.5]


# Recipes and data that are refused.


@pytest.mark.parametrize(
    ("task", "target", "sections", "message"),
    [
        ("classification", ["a", "b"], {}, "data.target: 'classification' predicts one column, got 2"),
        ("regression", ["a", "a"], {}, r"target: \['a'\] are listed twice"),
        ("regression", [], {}, "expected a column or a list of columns"),
        ("regression", ["a", 3], {}, "expected a column or a list of columns"),
        (
            "regression",
            ["a", "b"],
            {"model": {"name": "mlp", "interval": 0.9}},
            "applies to regression only, and of one target",
        ),
        (
            "regression",
            ["a", "b"],
            {"gate": {"require": {"mae_c": "< 1"}}},
            "unknown metric 'mae_c' for 'regression'; did you mean 'mae_",
        ),
        ("regression", ["a", "b"], {"gate": {"beat_champion": {"metric": "r2_a"}}}, "or compare mae, mae_a, mae_b, scaled_mae"),
        ("regression", ["a", "b"], {"data": {"columns": ["a", "x"]}}, "target 'b' is not in columns"),
        (
            "regression",
            "a",
            {"data": {"label_separator": "|"}},
            "label_separator: applies to tasks with several labels per row",
        ),
        ("regression", "a", {"train": {"label_threshold": 0.4}}, "label_threshold: applies to several labels per row only"),
        ("multilabel-classification", ["a", "b"], {"data": {"label_separator": "|"}}, "has no effect with a list of columns"),
        ("multilabel-classification", "a", {"data": {"split": {"per_class": {}}}}, "per_class: needs one label per row"),
        (
            "multilabel-classification",
            "a",
            {"gate": {"beat_champion": {"metric": "macro_f1"}}},
            "macro_f1 cannot be compared row by row.*or compare hamming_loss, jaccard, log_loss, subset_accuracy",
        ),
        ("multi-label-classification", "a", {}, "unknown task 'multi-label-classification'; did you mean 'multilabel-class"),
        ("forecast", "a", {}, "unknown task 'forecast'; Headrace does not forecast a series; use statsforecast"),
        (
            "time-series-forecasting",
            "a",
            {},
            "table with lagged values as columns, and use `regression`, tested on the last rows",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(task: str, target: Any, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe_text(task, target=target, **sections), "recipes/several.yaml")


def test_a_list_of_one_target_is_that_target() -> None:
    recipe: Recipe = parse_recipe(recipe_text("regression", target=["a"]), "recipes/several.yaml")
    assert recipe.data.targets == ["a"] and "interval_width" in recipe.task_type.metrics


@pytest.mark.parametrize(
    ("column", "message"),
    [(["x"] * 20, "is not a number"), ([1.0] * 20, "every training row has the same value, 1"), ([None] * 20, "have no value")],
)
def test_a_target_that_cannot_be_learned_is_named(column: list[Any], message: str) -> None:
    recipe = parse_recipe(recipe_text("regression", target=["rent", "rating"]), "recipes/several.yaml")
    frame = measured(20).assign(rating=column)
    with pytest.raises(DataError, match=message) as error:
        task_type_for(recipe).fit(frame, recipe)
    assert "rating" in str(error.value)


def test_a_batch_with_other_values_in_a_label_column_is_refused(tmp_path: Path) -> None:
    frame, labels = labelled(40)
    text = recipe_text("multilabel-classification", target=LABELS)
    built = Built(tmp_path / "project", "several.csv", text)
    one_column_each(frame, labels).astype({"late": int}).replace({"late": {1: 3}}).to_csv(
        built.project.root / "several.csv", index=False
    )
    with pytest.raises(DataRejected, match="late"):
        ingest(load_recipe("several", built.project), built.project, lambda line: None)
