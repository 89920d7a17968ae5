"""Classification of images. All columns except the target are pixels from 0 to 255, in row-major order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError, RecipeError
from headrace.models.schema import Schema, Shape
from headrace.runtime.contract import Contract, Feeds, InputField
from headrace.runtime.images import MEDIA_TYPES
from headrace.task_types.base import TaskType, as_label, class_indices, labels_of

if TYPE_CHECKING:
    import pandas as pd

    from headrace.evaluation.metrics import Evaluation
    from headrace.models.served import ServedModel
    from headrace.recipe.models import ModelConfig
    from headrace.recipe.recipe import Recipe


class ImageClassification(TaskType):
    """Predicts one label per image."""

    def fit(self, train: pd.DataFrame, recipe: Recipe) -> Schema:
        labels = labels_of(train, recipe)
        _, height, width = pixels(train.iloc[:1], recipe).shape
        return Schema(shape=Shape(image=(1, height, width), outputs=len(labels)), labels=labels)

    def encode(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> dict[str, NDArray[Any]]:
        return {"image": pixels(frame, recipe)}

    def targets(self, frame: pd.DataFrame, schema: Schema, recipe: Recipe) -> NDArray[Any]:
        return class_indices(frame, schema, recipe)

    def module(self, config: ModelConfig, schema: Schema) -> ServedModel:
        from headrace.models.build import build
        from headrace.models.served import Classifier, ScaleImage

        return Classifier(ScaleImage(), build(config, schema.shape))

    def feeds(self, frame: pd.DataFrame, contract: Contract, recipe: Recipe) -> Feeds:
        return {"image": pixels(frame, recipe)}

    def synthetic_rows(self, schema: Schema, recipe: Recipe, rows: int, rng: np.random.Generator) -> pd.DataFrame:
        """Returns noise and, in batches of more than one row, a black, a white and a chequered image."""
        import pandas as pd

        assert schema.shape.image is not None
        _, height, width = schema.shape.image
        noise = rng.integers(0, 256, (rows, height * width), dtype=np.uint8)
        chequered = (np.indices((height, width)).sum(0) % 2 * 255).reshape(-1)
        for row, edge in zip(range(1, rows), (0, 255, chequered), strict=False):
            noise[row] = edge
        return pd.DataFrame(noise).add_prefix("pixel_")

    def contract(self, schema: Schema, recipe: Recipe, sample: pd.DataFrame) -> Contract:
        assert recipe.data.image is not None
        accepts = ["array", "base64", *MEDIA_TYPES]
        image = InputField(name="image", dtype="uint8", shape=recipe.data.image, minimum=0, maximum=255, accepts=accepts)
        return Contract(
            model=recipe.name,
            task=recipe.task,
            inputs=[image],
            output="probabilities",
            labels=schema.labels,
            target=recipe.data.target,
            sample={"image": pixels(sample, recipe)[0].tolist()},
            threads=recipe.serve.threads,
        )

    def evaluate(self, frame: pd.DataFrame, outputs: NDArray[Any], schema: Schema, recipe: Recipe) -> Evaluation:
        from headrace.evaluation.metrics import score_classification

        assert schema.labels is not None
        return score_classification(class_indices(frame, schema, recipe), outputs, [str(as_label(v)) for v in schema.labels])


def pixels(frame: pd.DataFrame, recipe: Recipe) -> NDArray[np.uint8]:
    """Returns pixels `(rows, height, width)`.

    Raises:
        RecipeError: `data.image` does not match the number of pixel columns.
        DataError: a pixel is not a whole number from 0 to 255.
    """
    assert recipe.data.image is not None
    columns = recipe.data.features(frame.columns)
    height, width = recipe.data.image
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
