"""Unknown names are answered by their meaning, and by what to use instead of Headrace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from headrace.errors import RecipeError
from headrace.recipe import synonyms
from headrace.recipe.models import MODELS
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.recipe.synonyms import LIMITS, near_field, near_metric, near_model, near_task
from headrace.recipe.task_types import TASK_TYPES
from tests.paths import ROOT
from tests.projects import TINY_TABLE


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("binary-classification", "classification"),
        ("multiclass_classification", "classification"),
        ("BinaryClassifier", "classification"),
        ("classifier", "classification"),
        ("churn prediction", "classification"),
        ("fraud-detection", "classification"),
        ("tabular-regression", "regression"),
        ("regressor", "regression"),
        ("linear regression", "regression"),
        ("image_classifier", "image-classification"),
        ("vision", "image-classification"),
        ("sentiment-analysis", "text-classification"),
        ("spam_detection", "text-classification"),
        ("topic-classification", "text-classification"),
        ("language-modeling", "text-generation"),
        ("summarization", "summarisation"),
        ("text-summarizer", "summarisation"),
        ("molecule-classification", "graph-classification"),
        ("nodes-classification", "node-classification"),
        ("clasification", "classification"),
        ("regresion", "regression"),
        ("multi-label-classification", "multilabel-classification"),
        ("MultiLabelClassifier", "multilabel-classification"),
        ("multi_label", "multilabel-classification"),
        ("multi-label-text", "multilabel-text-classification"),
        ("multilabel image", "multilabel-image-classification"),
    ],
)
def test_a_task_is_answered_by_its_meaning(name: str, meant: str) -> None:
    assert near_task(name, TASK_TYPES) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forecast", "does not forecast a series; use statsforecast"),
        ("forecasting", "does not forecast a series"),
        ("time-series-forecasting", "does not forecast a series"),
        ("TimeSeries", "does not forecast a series"),
        ("object-detection", "does not find objects in images"),
        ("detection", "does not find objects in images"),
        ("instance_segmentation", "does not label the pixels"),
        ("ranking", "does not rank or recommend"),
        ("recommender-system", "does not rank or recommend"),
        ("clustering", "does not learn without a target"),
        ("anomaly-detection", "does not find anomalies"),
        ("outliers", "does not find anomalies"),
        ("translation", "does not adapt large language models"),
        ("named-entity-recognition", "does not label parts of a text"),
        ("token-classification", "does not label parts of a text"),
        ("speech-recognition", "does not read audio"),
        ("survival", "does not model the time until an event"),
    ],
)
def test_a_task_that_there_is_not_is_answered_by_what_to_use(name: str, said: str) -> None:
    found = near_task(name, TASK_TYPES)
    assert said in found and found.endswith("(docs/limits.md)")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dense", "mlp"), ("neural_network", "mlp"), ("LogisticRegression", "mlp"), ("MLPClassifier", "mlp"),
        ("LSTM", "recurrent"), ("bi-gru", "recurrent"), ("transformer", "attention"), ("bert-base-uncased", "attention"),
        ("gpt-2", "gpt"), ("llama3", "gpt"), ("t5-small", "seq2seq"), ("GraphSAGE", "gcn"), ("graph-attention", "gat"),
        ("efficientnet_b0", "cnn"), ("ConvNet", "cnn"), ("vgg16", "cnn"), ("mpl", "mlp"), ("recurent", "recurrent"),
    ],
)  # fmt: skip
def test_a_model_is_answered_by_the_nearest_one(name: str, meant: str) -> None:
    assert near_model(name, MODELS) == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("XGBClassifier", "xgboost"), ("xgb", "xgboost"), ("LGBMRegressor", "lightgbm"), ("catboost", "lightgbm"),
     ("RandomForestClassifier", "lightgbm"), ("gradient_boosting", "lightgbm"), ("decision-tree", "lightgbm")],
)  # fmt: skip
def test_trees_are_answered_by_the_nearest_ones(name: str, meant: str) -> None:
    assert near_model(name, MODELS) == f"did you mean {meant!r}?"


def test_other_models_of_other_libraries_are_answered_too() -> None:
    assert "scikit-learn" in near_model("svm", MODELS) and "forecast" in near_model("prophet", MODELS)
    assert near_model("frobnicator", MODELS).startswith("known: appnp, ")


def test_a_model_that_there_is_later_is_preferred_to_a_synonym_of_another() -> None:
    assert near_model("resnet18", [*MODELS, "resnet"]) == "did you mean 'resnet'?"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("lables", 1, "lables: unknown field; known: "),
        ("training", {}, "training: unknown field; did you mean 'train'?"),
        ("validation", [], "validation: unknown field; did you mean 'expect'?"),
        ("data.label", "kind", "data.label: unknown field; did you mean 'target'?"),
        ("data.path", "x.csv", "data.path: unknown field; did you mean 'source'?"),
        ("data.features", [], "data.features: unknown field; did you mean 'columns'?"),
        ("data.split.test_size", 0.2, "data.split.test_size: unknown field; did you mean 'test'?"),
        ("data.split.random_state", 1, "data.split.random_state: unknown field; did you mean 'seed'?"),
        ("model.prediction_interval", 0.9, "model.prediction_interval: unknown field; did you mean 'interval'?"),
        ("model.percentiles", [0.1, 0.5], "model.percentiles: unknown field; did you mean 'quantiles'?"),
        ("model.hidden_layers", [8], "model.hidden_layers: unknown field; did you mean 'hidden'?"),
        ("model.zzz", 1, "model.zzz: unknown field; known: "),
        ("train.lr", 0.1, "train.lr: unknown field; did you mean 'learning_rate'?"),
        ("train.num_train_epochs", 2, "train.num_train_epochs: unknown field; did you mean 'epochs'?"),
        ("train.gradient_clipping", 1.0, "train.gradient_clipping: unknown field; did you mean 'max_grad_norm'?"),
        ("train.epoch", 3, "train.epoch: unknown field; did you mean 'epochs'?"),
        ("gate.thresholds", {}, "gate.thresholds: unknown field; did you mean 'require'?"),
        ("serve.workers", 2, "serve.workers: unknown field; did you mean 'replicas'?"),
        ("gate.require", {"f1": ">= 0.5"}, "gate: unknown metric 'f1' for 'classification'; did you mean 'macro_f1'?"),
        ("gate.require", {"roc_auc": ">= 0.5"}, "gate: unknown metric 'roc_auc' for 'classification'; did you mean 'auc'?"),
        ("task", "forecast", "task: unknown task 'forecast'; Headrace does not forecast a series; use statsforecast"),
        ("model", {"name": "xgb"}, "model: unknown model 'xgb'; did you mean 'xgboost'?"),
    ],
)
def test_a_recipe_is_answered_so(path: str, value: Any, said: str) -> None:
    fields = copy.deepcopy(yaml.safe_load(TINY_TABLE))
    *sections, last = path.split(".")
    place = fields
    for section in sections:
        place = place[section]
    place[last] = value
    with pytest.raises(RecipeError) as caught:
        parse_recipe(yaml.safe_dump(fields), "recipes/tiny.yaml")
    assert said in str(caught.value)


def test_an_unknown_field_of_a_model_is_answered_with_those_of_this_model() -> None:
    text = TINY_TABLE.replace("{name: mlp, hidden: [16]}", "{name: mlp, hidden: [16], zzz: 1}")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipes/tiny.yaml")
    assert "hidden" in str(caught.value) and "beams" not in str(caught.value)


def test_only_names_that_exist_are_suggested() -> None:
    assert synonyms.MODELS.keys() <= MODELS.keys()
    assert synonyms.FIELDS[""].keys() <= Recipe.model_fields.keys()
    assert near_field("lr", ["train"], ["epochs"]).startswith("known: ")
    assert near_metric("mse", ["mae", "rmse"]) == "did you mean 'rmse'?"


def test_the_page_names_what_each_message_says() -> None:
    page = (ROOT / synonyms.PAGE).read_text()
    assert page.count("\n| ") == len(LIMITS) + 2
    for limit in LIMITS:
        tools = [word.strip(".,;") for word in limit.instead.partition(";")[0].split()[1:] if word[0].isupper()]
        assert all(tool.removesuffix("'s") in page for tool in tools), limit
