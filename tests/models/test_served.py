"""Preprocessing, loss and answer around a network, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from headrace.models.schema import Categorical, Numeric, Schema, Shape
from headrace.models.served import AsIs, Classifier, ScaleImage, ScaleTable, ServedModel
from headrace.recipe.models import CNNConfig, MLPConfig
from headrace.task_types.lookup import task_type_of

NUMBERS = [Numeric(name="a", mean=10.0, std=2.0, nullable=True), Numeric(name="b", mean=-1.0, std=0.5, nullable=False)]
COLOURS = [Categorical(name="c", levels=["blue", "red"], nullable=False)]


def regression(mean: float = 100.0, std: float = 20.0) -> ServedModel:
    schema = Schema(shape=Shape(numeric=2, outputs=1), numeric=NUMBERS, target_mean=mean, target_std=std)
    torch.manual_seed(0)
    return task_type_of("regression").module(MLPConfig(hidden=[]), schema).eval()


def classification(classes: int = 3) -> ServedModel:
    schema = Schema(
        shape=Shape(numeric=2, cardinalities=(3,), outputs=classes),
        numeric=NUMBERS,
        categorical=COLOURS,
        labels=list(range(classes)),
    )
    torch.manual_seed(0)
    return task_type_of("classification").module(MLPConfig(hidden=[4]), schema).eval()


def test_pixels_run_from_minus_one_to_one() -> None:
    (scaled,) = ScaleImage()(torch.tensor([[[0, 51], [204, 255]]], dtype=torch.uint8))
    assert scaled.shape == (1, 1, 2, 2)
    torch.testing.assert_close(scaled.flatten(), torch.tensor([-1.0, -0.6, 0.6, 1.0]))


def test_numbers_are_standardised_and_missing_ones_are_the_mean() -> None:
    table = ScaleTable(Schema(shape=Shape(numeric=2, cardinalities=(3,)), numeric=NUMBERS, categorical=COLOURS))
    numeric, categorical = table(torch.tensor([[14.0, -1.0], [math.nan, 0.0]]), torch.tensor([[2], [0]]))
    assert numeric.tolist() == [[2.0, 0.0], [0.0, 2.0]]
    assert categorical.tolist() == [[2], [0]]


def test_a_table_of_one_sort_gives_the_other_sort_empty() -> None:
    numeric, categorical = ScaleTable(Schema(shape=Shape(numeric=2), numeric=NUMBERS))(torch.zeros(5, 2))
    assert (numeric.shape, categorical.shape, categorical.dtype) == ((5, 2), (5, 0), torch.int64)
    table = ScaleTable(Schema(shape=Shape(cardinalities=(3,)), categorical=COLOURS))
    numeric, categorical = table(torch.ones((5, 1), dtype=torch.int64))
    assert (numeric.shape, categorical.shape, numeric.dtype) == ((5, 0), (5, 1), torch.float32)


def test_probabilities_sum_to_one_and_follow_the_logits() -> None:
    model = classification()
    inputs = torch.randn(9, 2) * 1000, torch.randint(0, 3, (9, 1))
    answer = model(*inputs)
    assert answer.shape == (9, 3)
    torch.testing.assert_close(answer.sum(1), torch.ones(9))
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])
    torch.testing.assert_close(model.answer(logits), torch.tensor([[0.125, 0.25, 0.625]]))


def test_a_regression_answers_in_the_targets_unit() -> None:
    model = regression()
    raw = torch.tensor([[0.0], [1.0], [-2.5]])
    assert model.answer(raw).tolist() == [100.0, 120.0, 50.0]
    weight, bias = model.network.layers[0].weight, model.network.layers[0].bias
    scaled = (12.0 - 10.0) / 2.0 * weight[0, 0] + (-2.0 + 1.0) / 0.5 * weight[0, 1] + bias[0]
    torch.testing.assert_close(model(torch.tensor([[12.0, -2.0]])), (scaled * 20.0 + 100.0).reshape(1))


def test_the_classification_loss_is_the_mean_negative_log_likelihood() -> None:
    raw = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    wanted = (-math.log(0.75) - math.log(0.5)) / 2
    assert float(classification(2).loss(raw, torch.tensor([1, 0]))) == pytest.approx(wanted)


def test_several_logits_a_row_are_judged_each_alone_in_training() -> None:
    model = Classifier(AsIs(), nn.Identity()).train()
    raw, target = torch.randn(5, 2, 3), torch.tensor([0, 1, 2, 0, 1])
    each = torch.stack([nn.functional.cross_entropy(raw[:, i], target) for i in range(2)])
    torch.testing.assert_close(model.loss(raw, target), each.mean())


def test_the_regression_loss_is_hubers_in_standard_deviations() -> None:
    raw, target = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([110.0, 160.0, 120.0])
    wanted = (0.5 * 0.5**2 + (3.0 - 0.5) + 0.0) / 3  # off by 0.5, 3 and 0 deviations; quadratic within 1
    assert float(regression().loss(raw, target)) == pytest.approx(wanted)


def test_what_scales_travels_with_the_weights() -> None:
    """A model built from another schema of the same shape answers the same once it has the weights."""
    made, other = regression(), regression(mean=0.0, std=1.0)
    other.load_state_dict(made.state_dict())
    inputs = torch.tensor([[3.0, 4.0]])
    assert torch.equal(made(inputs), other(inputs))


def test_an_image_model_answers_for_bytes() -> None:
    schema = Schema(shape=Shape(image=(1, 3, 5), outputs=2), labels=["a", "b"])
    model = task_type_of("image-classification").module(CNNConfig(channels=[2]), schema).eval()
    answer = model(torch.randint(0, 256, (4, 3, 5), dtype=torch.uint8))
    assert answer.shape == (4, 2)
    torch.testing.assert_close(answer.sum(1), torch.ones(4))
