"""One number and several numbers of texts alone, of pictures in files and of pixels, from the source to the served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.protocols.explain import ExplainRequest, _explained, explanation_for
from bentos.protocols.v2 import ModelTensors
from headrace.errors import RecipeError
from headrace.recipe.recipe import parse_recipe
from headrace.task_types.lookup import task_type_for
from tests.task_types.several_targets import IMAGES, Built, instances, labelled, pictures_of, recipe_text, texts_of

pytestmark = pytest.mark.usefixtures("one_thread")
ROWS = 80
TARGETS = ["x", "y"]


def numbers(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"x": np.arange(rows) / 10, "y": 5 - np.arange(rows) * 3.0})


def texts(root: Path, target: Any) -> Built:
    frame = numbers(ROWS).assign(body=texts_of(labelled(ROWS)[1]))
    data = {"columns": ["body", *TARGETS][: None if target == TARGETS else 2], "text": {"column": "body", "length": 12}}
    model = {"name": "mlp", "hidden": [8]}
    return Built(root, "several.csv", recipe_text("regression", target=target, data=data, model=model)).run(
        frame, trained=False
    )


def photographs(root: Path, target: Any) -> Built:
    data = {"image": {"size": [12, 12], "path": "file"}}
    train = {"epochs": 25, "batch_size": 16, "learning_rate": 0.01, "device": "cpu"}
    built = Built(root, "several.csv", recipe_text("image-regression", target=target, data=data, **{**IMAGES, "train": train}))
    return built.with_pictures(ROWS).run(numbers(ROWS).assign(file=[f"p/{i}.png" for i in range(ROWS)]))


def pixels(root: Path, target: Any) -> Built:
    frame = pd.concat([pictures_of(labelled(ROWS)[1]), numbers(ROWS)[TARGETS if target == TARGETS else [target]]], axis=1)
    data, model = {"image": [4, 4]}, {"name": "mlp", "hidden": [8], **({"interval": 0.8} if target == "x" else {})}
    text = recipe_text("image-regression", target=target, data=data, model=model)
    return Built(root, "several.csv", text).run(frame, trained=False)


@pytest.fixture(
    scope="module",
    params=[(make, target) for make in (texts, photographs, pixels) for target in ("x", TARGETS)],
    ids=lambda given: f"{given[0].__name__}-{len(given[1])}",
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    make, target = request.param
    found: Built = make(tmp_path_factory.mktemp("numbers") / "project", target)
    return found


def test_numbers_are_answered_by_their_names_as_in_the_evaluation(built: Built) -> None:
    targets, recipe = built.recipe.data.targets, built.recipe
    answers = built.model.predict(instances(built))
    names = [*targets, *(["interval"] if built.model.contract.interval else [])]
    assert all(list(answer) == names for answer in answers)
    outputs = task_type_for(recipe).answers(built.artifacts / "export", built.test, recipe).reshape(len(built.test), -1)
    served = [[answer[name] for name in targets] for answer in answers]
    np.testing.assert_allclose(outputs[: len(served), : len(targets)], served, rtol=1e-5)
    assert {"mae", "rmse", "r2"} <= built.metrics.keys()
    assert len(targets) == 1 or {"scaled_mae", "mae_x", "r2_y"} <= built.metrics.keys()
    tensors = ModelTensors(built.model).answer(built.model.to_feeds(instances(built)))
    assert set(targets) <= tensors.keys() and np.shape(tensors["x"])[0] == len(answers)


def test_a_network_learns_numbers_of_pictures(built: Built) -> None:
    if built.recipe.data.pictures is None:
        pytest.skip("the others have random weights")
    names = ["r2"] if len(built.recipe.data.targets) == 1 else ["r2_x", "r2_y"]
    assert all(built.metrics[name] > 0.5 for name in names), built.metrics


def test_a_number_is_explained(built: Built) -> None:
    instance, last = instances(built, 1)[0], built.recipe.data.targets[-1]
    answer = built.model.predict([instance])[0]
    asked = ExplainRequest(instance, last if len(built.recipe.data.targets) > 1 else None)
    explanation = explanation_for(built.model, asked)
    _, explained = _explained(built.model, asked, explanation.outputs(0, explanation.rows))
    assert explained[-1] == pytest.approx(answer[last], rel=1e-4)


@pytest.mark.parametrize(
    ("task", "target", "data", "message"),
    [
        (
            "regression",
            "x",
            {"image": {"size": [8, 8], "path": "file"}},
            "data.image: applies to image tasks only; use .*image-regr",
        ),
        ("image-regression", "x", {"image": {"size": [8, 8]}}, "data.image.path: the folder of a picture is its only label"),
        ("image-regression", ["x", "y"], {"image": {"size": [8, 8]}}, "'image-regression' needs numbers of each picture"),
        (
            "multilabel-image-classification",
            ["late", "paid"],
            {"image": {"size": [8, 8]}},
            "needs labels of each picture; use a table",
        ),
        ("image-regression", ["x", "width"], {"image": {"size": [8, 8], "path": "file"}}, "has its own column 'width'"),
        ("image-classification", ["x", "y"], {"image": [8, 8]}, r"predicts one column, got 2.*image-regression"),
    ],
)
def test_what_pictures_do_not_have_is_refused(task: str, target: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe_text(task, target=target, data=data, **IMAGES), "recipes/several.yaml")
