"""Images as inputs: pictures in files, or tables whose columns except the targets are pixels, row by row."""

from __future__ import annotations

import base64
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, RecipeError
from headrace.models.schema import Schema, Shape
from headrace.recipe.pictures import IMAGE, PATH
from headrace.runtime.contract import Contract, Feeds
from headrace.runtime.images import MEDIA_TYPES, WEBP
from headrace.runtime.input_field import InputField
from headrace.task_types.base import Learner, RowDecoder
from headrace.task_types.inputs import Inputs
from headrace.task_types.pictures import as_png, decode_pictures

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class TargetLearner(Protocol):
    """Learns what images have as targets, from training rows that arrive in chunks."""

    def add(self, train: pd.DataFrame) -> None: ...

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the schema that describe the targets."""
        ...


class Images(Inputs):
    """Inputs that task types of images share; a subclass says what is predicted."""

    @abstractmethod
    def _target_learner(self, recipe: Recipe) -> TargetLearner:
        """Returns an object that learns the targets."""

    def learner(self, recipe: Recipe) -> Learner | None:
        return None if recipe.data.pictures is None else _Pictures(recipe, self._target_learner(recipe))

    def row_decoder(self, recipe: Recipe) -> RowDecoder | None:
        if recipe.data.pictures is None:
            return None
        return RowDecoder(IMAGE, PATH, partial(decode_pictures, to=recipe.data.pictures.format), recipe.data.pictures.cache)

    def evaluation_columns(self, schema: Schema, recipe: Recipe) -> list[str] | None:
        return None if recipe.data.pictures is None else recipe.data.targets

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        targets = self._target_learner(recipe)
        targets.add(train)
        if recipe.data.pictures is not None:
            return _schema(_shape_of_pictures(recipe), targets, recipe)
        _, height, width = pixels(train.iloc[:1], recipe).shape
        return _schema((1, height, width), targets, recipe)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        return {"image": images(frame, recipe)}

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

    def _preprocess(self, schema: Schema, config: ModelConfig) -> nn.Module:
        from headrace.models.served import ScaleColour, ScaleImage

        assert schema.shape.image is not None
        return ScaleImage() if schema.shape.image[0] == 1 else ScaleColour()

    def _inputs(self, schema: Schema, recipe: Recipe) -> list[InputField]:
        field: dict[str, Any] = {"name": "image", "dtype": "uint8", "minimum": 0, "maximum": 255}
        accepts = ["array", "base64", *MEDIA_TYPES]
        if recipe.data.pictures is not None:
            to = recipe.data.pictures.format
            return [InputField(**field, shape=to.shape, accepts=[*accepts, WEBP], picture=to)]
        assert recipe.data.pixels is not None
        return [InputField(**field, shape=recipe.data.pixels, accepts=accepts)]

    def _sample(self, schema: Schema, row: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
        if recipe.data.pictures is None:
            return {"image": pixels(row, recipe)[0].tolist()}
        # as text in a lossless format: hundreds of thousands of numbers would make up most of the contract
        return {"image": base64.b64encode(as_png(images(row, recipe)[0])).decode()}


class _Pictures:
    """Learns the targets of pictures in files, chunk by chunk."""

    def __init__(self, recipe: Recipe, targets: TargetLearner) -> None:
        self._recipe, self._targets = recipe, targets

    def add(self, train: pd.DataFrame) -> None:
        self._targets.add(train)

    def schema(self) -> Schema:
        return _schema(_shape_of_pictures(self._recipe), self._targets, self._recipe)


def _shape_of_pictures(recipe: Recipe) -> tuple[int, int, int]:
    """Returns channels, height and width."""
    assert recipe.data.pictures is not None
    to = recipe.data.pictures.format
    return to.channels, to.height, to.width


def _schema(image: tuple[int, int, int], targets: TargetLearner, recipe: Recipe) -> Schema:
    fields = targets.fields()
    return Schema(shape=Shape(image=image, outputs=len(fields.get("labels") or recipe.data.targets)), **fields)


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
