"""Classification of images: of pictures in files, or of tables whose columns except the target are pixels, row by row."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, RecipeError
from headrace.models.schema import Schema, Shape
from headrace.recipe.pictures import IMAGE, PATH
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.images import MEDIA_TYPES, WEBP
from headrace.runtime.input_field import InputField
from headrace.task_types.base import (
    Learner,
    RowDecoder,
    TaskType,
    as_label,
    class_indices,
    distinct_labels,
    labels_of,
    sorted_labels,
)
from headrace.task_types.pictures import as_png, decode_pictures

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class ImageClassification(TaskType):
    """Predicts one label per image."""

    def learner(self, recipe: Recipe) -> Learner | None:
        return None if recipe.data.pictures is None else _LabelsOfPictures(recipe)

    def row_decoder(self, recipe: Recipe) -> RowDecoder | None:
        if recipe.data.pictures is None:
            return None
        return RowDecoder(IMAGE, PATH, partial(decode_pictures, to=recipe.data.pictures.format), recipe.data.pictures.cache)

    def evaluation_columns(self, schema: Schema, recipe: Recipe) -> list[str] | None:
        return None if recipe.data.pictures is None else recipe.data.targets

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        labels = labels_of(train, recipe)
        if recipe.data.pictures is not None:
            return _schema_of_pictures(labels, recipe)
        _, height, width = pixels(train.iloc[:1], recipe).shape
        return Schema(shape=Shape(image=(1, height, width), outputs=len(labels)), labels=labels)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        return {"image": images(frame, recipe)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.served import Classifier, ScaleColour, ScaleImage

        assert schema.shape.image is not None
        scale = ScaleImage() if schema.shape.image[0] == 1 else ScaleColour()
        return Classifier(scale, build(config, schema.shape))

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {"image": images(frame, recipe)}

    def synthetic_rows(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        """Returns noise and, in batches of more than one row, a black, a white and a chequered image."""
        import pandas as pd

        assert schema.shape.image is not None
        _, height, width = schema.shape.image
        if recipe.data.pictures is not None:
            noise = rng.integers(0, 256, (rows, *recipe.data.pictures.format.shape), dtype=np.uint8)
            noise[1::3], noise[2::3] = 0, 255
            return pd.DataFrame({PATH: [f"synthetic/{i}.png" for i in range(rows)], IMAGE: [as_png(one) for one in noise]})
        noise = rng.integers(0, 256, (rows, height * width), dtype=np.uint8)
        chequered = (np.indices((height, width)).sum(0) % 2 * 255).reshape(-1)
        for row, edge in zip(range(1, rows), (0, 255, chequered), strict=False):
            noise[row] = edge
        return pd.DataFrame(noise).add_prefix("pixel_")

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        field: dict[str, Any] = {"name": "image", "dtype": "uint8", "minimum": 0, "maximum": 255}
        accepts = ["array", "base64", *MEDIA_TYPES]
        if recipe.data.pictures is not None:
            to = recipe.data.pictures.format
            image = InputField(**field, shape=to.shape, accepts=[*accepts, WEBP], picture=to)
            # as text in a lossless format: hundreds of thousands of numbers would make up most of the contract
            example: Any = base64.b64encode(as_png(images(sample, recipe)[0])).decode()
        else:
            assert recipe.data.pixels is not None
            image = InputField(**field, shape=recipe.data.pixels, accepts=accepts)
            example = pixels(sample, recipe)[0].tolist()
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[image],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"image": example},
            threads=recipe.serve.threads,
        )

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        return score_classification(class_indices(frame, schema, recipe), outputs, [str(as_label(v)) for v in schema.labels])


class _LabelsOfPictures:
    """Learns the labels of pictures, chunk by chunk."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._labels: set[str | int] = set()

    def add(self, train: pd.DataFrame) -> None:
        self._labels |= distinct_labels(train, self._recipe)

    def schema(self) -> Schema:
        return _schema_of_pictures(sorted_labels(self._labels, self._recipe), self._recipe)


def _schema_of_pictures(labels: list[str | int], recipe: Recipe) -> Schema:
    assert recipe.data.pictures is not None
    to = recipe.data.pictures.format
    return Schema(shape=Shape(image=(to.channels, to.height, to.width), outputs=len(labels)), labels=labels)


def images(frame: pd.DataFrame, recipe: Recipe) -> NDArray[np.uint8]:
    """Returns pixels `(rows, height, width)`, of pictures in colour `(rows, height, width, 3)`.

    Raises:
        RecipeError, DataError: as `pixels` and `decode_pictures`.
    """
    if recipe.data.pictures is None:
        return pixels(frame, recipe)
    return decode_pictures(frame[IMAGE].tolist(), frame[PATH].tolist(), to=recipe.data.pictures.format)


def pixels(frame: pd.DataFrame, recipe: Recipe) -> NDArray[np.uint8]:
    """Returns pixels `(rows, height, width)`.

    Raises:
        RecipeError: `data.image` does not match the number of pixel columns.
        DataError: a pixel is not a whole number from 0 to 255.
    """
    assert recipe.data.pixels is not None
    columns = recipe.data.features(frame.columns)
    height, width = recipe.data.pixels
    if len(columns) != height * width:
        raise RecipeError(
            f"data.image is {height} × {width} = {height * width} pixels, but the data has {len(columns)} pixel columns",
            where=f"recipes/{recipe.name}.yaml",
            hint="correct data.image, or list the pixel columns in data.columns",
        )
    values = frame[columns].to_numpy()
    if values.dtype != np.uint8:  # a cast alone would wrap 256 to 0 and cut 0.5 to 0
        wrong = ~np.isin(values, np.arange(256))
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise DataError(
                f"a pixel is {values[row, column]}",
                where=f"column {columns[column]}",
                hint="pixels have to be whole numbers from 0 to 255 (multiply by 255 if they range from 0 to 1)",
            )
    return np.ascontiguousarray(values.astype(np.uint8)).reshape(-1, height, width)
