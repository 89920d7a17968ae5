"""Rows preprocessed once train the same weights, and only where nothing else would change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from headrace.models.schema import Categorical, Numeric, Schema, Shape
from headrace.models.served import AsIs, ServedModel
from headrace.recipe.models import MLPConfig
from headrace.recipe.training import TrainConfig
from headrace.task_types.lookup import task_type_of
from headrace.training import loading
from headrace.training.device import seed_everything
from headrace.training.loading import preprocessed
from headrace.training.rows import Rows, Split
from tests.training.toys import image_model, image_rows, largest_difference, table_model, table_rows, train, weights

CONFIG = TrainConfig(epochs=2, batch_size=16)


def mixed_model() -> ServedModel:
    """Numbers with gaps beside a category."""
    seed_everything(0)
    schema = Schema(
        shape=Shape(numeric=2, cardinalities=(4,), outputs=2),
        numeric=[Numeric(name=name, mean=0.3, std=1.7, nullable=True) for name in "ab"],
        categorical=[Categorical(name="c", levels=["x", "y", "z"], nullable=False)],
        labels=[0, 1],
    )
    return task_type_of("classification").module(MLPConfig(hidden=[8]), schema)


def mixed_rows() -> Split:
    numbers = table_rows(100)
    numbers.inputs[0][::7, 1] = torch.nan
    return Split((numbers.inputs[0], torch.randint(0, 4, (100, 1), generator=torch.Generator().manual_seed(2))), numbers.target)


@pytest.mark.parametrize(
    ("make_model", "make_rows"), [(mixed_model, mixed_rows), (image_model, lambda: image_rows(100))], ids=["table", "images"]
)
def test_the_weights_are_those_of_preprocessing_each_batch(
    make_model: Callable[[], ServedModel], make_rows: Callable[[], Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, quick = make_model(), make_model()
    train(plain, make_rows(), CONFIG, tmp_path / "plain")
    with preprocessed(quick, CONFIG, make_rows()) as (rows,):
        monkeypatch.setattr(quick.preprocess, "forward", None)  # it is not called any more
        assert isinstance(rows, Split)
        train(quick, rows, CONFIG, tmp_path / "quick")
    assert largest_difference(weights(plain), weights(quick)) == 0


def test_after_it_the_model_takes_what_clients_send() -> None:
    model, rows = image_model(), image_rows(10)
    before = model.raw(*rows.inputs)
    with pytest.raises(KeyError), preprocessed(model, CONFIG, rows) as (done,):
        assert isinstance(done, Split) and torch.equal(model.raw(*done.inputs), before)
        raise KeyError
    assert torch.equal(model.raw(*rows.inputs), before)


class Elsewhere:
    """Rows that are not in memory."""

    def __init__(self, rows: Split) -> None:
        self.device, self.target, self.batches = rows.device, rows.target, rows.batches

    def __len__(self) -> int:
        return len(self.target)


def left_alone(model: ServedModel, config: TrainConfig, rows: Rows) -> bool:
    with preprocessed(model, config, rows) as (same,):
        return same is rows and not model.is_preprocessed


def test_images_that_change_in_every_epoch_are_left_alone() -> None:
    assert left_alone(image_model(), TrainConfig.model_validate({"augment": {"shift": 0.1}}), image_rows(10))


def test_rows_in_files_are_left_alone() -> None:
    assert left_alone(table_model(), CONFIG, Elsewhere(table_rows(10)))


def test_a_split_without_rows_is_left_alone() -> None:
    assert left_alone(table_model(), CONFIG, table_rows(0))


def test_rows_that_would_be_shuffled_in_another_order_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "window_rows", lambda size: 1_000_000 // size)
    assert not left_alone(image_model(), CONFIG, image_rows(1_000_000 // (36 * 4 + 8)))
    assert left_alone(image_model(), CONFIG, image_rows(1_000_000 // (36 * 4 + 8) + 1))


def test_a_custom_model_with_its_own_preprocessing_is_left_alone() -> None:
    model = table_model()
    model.preprocess = AsIs()
    assert left_alone(model, CONFIG, table_rows(10))

    class Own(type(table_model())):  # type: ignore[misc]
        def raw(self, *inputs: Tensor) -> Tensor:
            return super().raw(*inputs) * 2  # type: ignore[no-any-return]

    model = table_model()
    model.__class__ = Own
    assert left_alone(model, CONFIG, table_rows(10))
