"""Class weights and label smoothing against scikit-learn and sums written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from headrace.errors import RecipeError
from headrace.models.schema import Schema, Shape
from headrace.recipe.models import MLPConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_of
from headrace.training.loss_weights import class_weights, set_loss_weights
from tests.training.toys import NUMBERS, table_model

TARGET = torch.tensor([0] * 70 + [1] * 25 + [2] * 5)
LABELS = ["cat", "dog", "eel"]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=TARGET.numpy())
    np.testing.assert_allclose(class_weights("balanced", TARGET, LABELS).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("given", [{"eel": 10.0, "cat": 2.0}, {"eel": 5.0, "dog": 0.5}])
def test_given_weights_keep_their_ratios_and_have_the_mean_one(given: dict[str | int, float]) -> None:
    found = class_weights(given, TARGET, LABELS)
    assert float(found[TARGET].mean()) == pytest.approx(1.0)
    wanted = torch.tensor([given.get(label, 1.0) for label in LABELS])
    torch.testing.assert_close(found / found[0], wanted / wanted[0])


def test_labels_that_are_numbers_are_named_as_numbers() -> None:
    found = class_weights({7: 4.0}, torch.tensor([0, 1]), [3, 7])
    assert float(found[1] / found[0]) == pytest.approx(4.0)


def test_an_unknown_label_is_an_error_with_the_near_miss() -> None:
    with pytest.raises(RecipeError, match=r"'dgo'; did you mean 'dog'\?"):
        class_weights({"dgo": 2.0}, TARGET, LABELS)


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_is_not_above_zero_is_a_mistake(weight: float) -> None:
    with pytest.raises(ValidationError, match="'cat' has weight"):
        TrainConfig(class_weights={"cat": weight})


def test_the_training_loss_is_the_weighted_and_smoothed_sum_and_the_validation_loss_the_plain_one() -> None:
    model = table_model(classes=3)
    config = TrainConfig(class_weights={0: 1.0, 1: 2.0, 2: 8.0}, label_smoothing=0.1)
    set_loss_weights(model, config, TARGET, [0, 1, 2])
    raw, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    log, weight = raw.log_softmax(1), class_weights({0: 1.0, 1: 2.0, 2: 8.0}, TARGET, [0, 1, 2])
    rows = torch.arange(6)
    # torch smooths the weighted loss: 0.9 of the label's own, and 0.1 of the mean over classes, each by its class's weight
    each = -0.9 * weight[target] * log[rows, target] - 0.1 * (weight * log).sum(1) / 3
    assert float(model.train().loss(raw, target)) == pytest.approx(float(each.mean()), rel=1e-5)
    assert float(model.eval().loss(raw, target)) == pytest.approx(float(-log[rows, target].mean()), rel=1e-5)


def test_balanced_training_ends_where_scikit_learns_does() -> None:
    """One linear layer, full batches: a logistic regression."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 2))
    y = (x.sum(1) + random.normal(size=300) > 1.5).astype(int)
    wanted = LogisticRegression(C=1e6, class_weight="balanced").fit(x, y)
    schema = Schema(shape=Shape(numeric=2, outputs=2), numeric=NUMBERS, labels=[0, 1])
    model = task_type_of("classification").module(MLPConfig(hidden=[]), schema).train()
    target = torch.from_numpy(y)
    set_loss_weights(model, TrainConfig(class_weights="balanced"), target, [0, 1])
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model.loss(model.raw(torch.from_numpy(x).float()), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.inference_mode():
        found = model.eval()(torch.from_numpy(x).float())[:, 1]
    np.testing.assert_allclose(found.numpy(), wanted.predict_proba(x)[:, 1], atol=2e-3)


@pytest.mark.parametrize("asked", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}], ids=["weights", "smoothing"])
def test_a_loss_that_knows_no_classes_refuses_them(asked: dict[str, Any]) -> None:
    schema = Schema(shape=Shape(numeric=2, outputs=1), numeric=NUMBERS)
    regressor = task_type_of("regression").module(MLPConfig(), schema)
    with pytest.raises(RecipeError) as caught:
        set_loss_weights(regressor, TrainConfig.model_validate(asked), torch.rand(5), None)
    (field,) = asked
    assert f"train.{field}" in caught.value.message and f"train.{field}" in str(caught.value.hint)


def test_weights_of_classes_are_no_part_of_the_model() -> None:
    model = table_model()
    before = model.state_dict().keys()
    set_loss_weights(model, TrainConfig(class_weights="balanced", label_smoothing=0.1), torch.tensor([0, 0, 1]), [0, 1])
    assert model.state_dict().keys() == before
