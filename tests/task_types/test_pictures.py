"""Pictures in files: a client's file becomes the pixels that were trained on, and every network of images is exported."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.errors import DataError
from headrace.models.resnet import ResNet
from headrace.models.schema import Schema, Shape
from headrace.recipe.models import ResNetConfig
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_recipe
from tests.picture_files import COLOURS, KINDS, file_of, noisy


def pictures(rows: int = 40) -> pd.DataFrame:
    """Pictures of mixed sizes and formats, in stored form."""
    rng, found = np.random.default_rng(0), []
    for i in range(rows):
        name, kind = list(COLOURS)[i % 3], list(KINDS)[i % 3]
        height, width = rng.integers(9, 50, 2)
        found.append({"path": f"{name}/{i}", "image": file_of(noisy(COLOURS[name], height, width, i), kind), "y": name})
    return pd.DataFrame(found)


def recipe_of(model: dict[str, Any] | None = None, **image: Any) -> Recipe:
    return make_recipe("image-classification", model, image={"size": [12, 16], **image})


def learned(frame: pd.DataFrame, recipe: Recipe) -> Schema:
    """The schema, learned chunk by chunk."""
    learner = task_type_of(recipe.task).learner(recipe)
    assert learner is not None
    for start in range(0, len(frame), 7):
        learner.add(frame.iloc[start : start + 7])
    return learner.schema()


@pytest.mark.parametrize("image", [{}, {"fit": "crop"}, {"fit": "pad", "interpolation": "lanczos"}, {"channels": 1}])
def test_a_file_sent_by_a_client_is_the_picture_that_was_trained_on(image: dict[str, Any]) -> None:
    frame, recipe = pictures(), recipe_of(**image)
    task_type, schema = task_type_of(recipe.task), learned(frame, recipe)
    assert schema == fitted(frame, recipe) and schema.labels == sorted(COLOURS)
    trained = task_type.encode(frame, schema, recipe)["image"]
    assert trained.shape == (40, 12, 16) if image.get("channels") == 1 else (40, 12, 16, 3)
    contract = task_type.contract(schema, recipe, frame.iloc[:1])
    sent = contract.to_feeds([{"image": base64.b64encode(raw).decode()} for raw in frame["image"]])["image"]
    np.testing.assert_array_equal(sent, trained)
    np.testing.assert_array_equal(contract.to_feeds([{"image": trained[3].tolist()}])["image"][0], trained[3])
    np.testing.assert_array_equal(contract.to_feeds([contract.sample])["image"][0], trained[0])


NETWORKS: list[dict[str, Any]] = [
    {"name": "cnn", "channels": [4, 6], "batch_norm": True},
    {"name": "mlp", "hidden": [8]},
    {"name": "resnet", "width": 4, "depth": 1},
    {"name": "resnet", "width": 4, "depth": 2, "stages": 2, "stem": "large", "dropout": 0.5},
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: f"{model['name']}-{model.get('stem', '')}")
def test_networks_of_pictures_are_exported(model: dict[str, Any], channels: int, tmp_path: Path) -> None:
    frame, recipe = pictures(), recipe_of(model, channels=channels)
    task_type, schema = task_type_of(recipe.task), learned(frame, recipe)
    torch.manual_seed(0)
    network = task_type.module(recipe.model, schema)
    inputs = torch.from_numpy(task_type.encode(frame, schema, recipe)["image"])
    network.train()(inputs)  # running statistics of batch norm
    contract = task_type.contract(schema, recipe, frame.iloc[:1])
    parity = task_type.export(network.eval(), schema, recipe, contract, frame, tmp_path)
    assert parity["largest_relative_difference"] < 1e-5
    contract.write(tmp_path / "contract.json")
    answers = task_type.answers(tmp_path, frame, recipe)
    with torch.inference_mode():
        np.testing.assert_allclose(answers, network(inputs).numpy(), atol=1e-5)


def test_a_new_block_passes_its_input_on_and_size_and_width_follow_the_stages() -> None:
    shape = Shape(image=(3, 33, 47), outputs=5)
    network = ResNet(ResNetConfig(width=8, depth=2, stages=3), shape).eval()
    x = torch.rand(2, 3, 33, 47)
    stem = network.stem(x)
    assert stem.shape == (2, 8, 33, 47) and torch.equal(network.blocks[0](stem), stem)
    assert network.blocks(stem).shape == (2, 32, 9, 12) and network(x).shape == (2, 5)
    large = ResNet(ResNetConfig(width=8), Shape(image=(3, 96, 128), outputs=5))
    assert large.stem(torch.rand(1, 3, 96, 128)).shape == (1, 8, 24, 32), "from 96 pixels on"
    assert large.train()(torch.rand(1, 3, 96, 128)).shape == (1, 5)


def test_a_picture_that_breaks_while_decoding_is_named() -> None:
    frame, recipe = pictures(6), recipe_of()
    for row in (1, 4):
        frame.loc[row, "image"] = frame.loc[row, "image"][:60]
    with pytest.raises(DataError, match=r"2 pictures cannot be decoded:\n  green/1: a (damaged file|file that)") as caught:
        task_type_of(recipe.task).encode(frame, learned(frame, recipe), recipe)
    assert "green/4: " in caught.value.message
