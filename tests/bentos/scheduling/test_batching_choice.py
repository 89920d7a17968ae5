"""Batching is chosen for a model that gains by it, and for no other."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bentos.models.onnx_model import OnnxModel
from bentos.scheduling import batching_choice
from bentos.scheduling.batching_choice import choose_batching
from headrace.serving.packaging.build_bento import write_choices
from headrace.serving.packaging.code_files import CODE
from tests.tiny_models import image_model, language_model


class Costly(OnnxModel):
    """A real model whose answers take longer: `fixed` seconds a run and `each` seconds a row."""

    fixed, each = 0.0, 0.0

    def predict(self, instances: list[Any]) -> list[dict[str, Any]]:
        time.sleep(self.fixed + self.each * len(instances))
        return super().predict(instances)


def costly(folder: Path, fixed: float, each: float) -> OnnxModel:
    model = Costly(image_model(folder))
    model.fixed, model.each = fixed, each
    return model


def test_a_tiny_model_runs_each_request_alone(tmp_path: Path) -> None:
    assert choose_batching(OnnxModel(image_model(tmp_path))) is None


def test_a_model_with_cheap_batches_takes_all_waiting_requests(tmp_path: Path) -> None:
    assert choose_batching(costly(tmp_path, 0.01, 0.0001)) == {"max_rows": 32, "wait_seconds": 0.0}


def test_a_model_that_saves_less_than_a_thread_costs_runs_requests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = costly(tmp_path, 0.01, 0.0)
    monkeypatch.setattr(batching_choice, "THREAD_SECONDS", 0.008)
    assert choose_batching(model) is not None
    monkeypatch.setattr(batching_choice, "THREAD_SECONDS", 10.0)
    assert choose_batching(model) is None


def test_a_model_of_two_milliseconds_that_gains_from_batches_is_batched(tmp_path: Path) -> None:
    assert choose_batching(costly(tmp_path, 0.0018, 0.0)) == {"max_rows": 32, "wait_seconds": 0.0}


def test_a_model_that_gains_nothing_from_batches_runs_requests_alone(tmp_path: Path) -> None:
    assert choose_batching(costly(tmp_path, 0.0, 0.01)) is None


def test_no_batch_delays_a_request_for_long(tmp_path: Path) -> None:
    assert choose_batching(costly(tmp_path, 0.1, 0.015)) == {"max_rows": 8, "wait_seconds": 0.0}


def test_texts_are_batched_by_their_length(tmp_path: Path) -> None:
    from bentos.models.generation import GenerationModel

    assert choose_batching(GenerationModel(language_model(tmp_path))) is None


@pytest.mark.parametrize("broken", [False, True])
def test_the_choice_is_stored_with_the_model_and_a_model_that_cannot_be_loaded_has_none(tmp_path: Path, broken: bool) -> None:
    (tmp_path / "model").mkdir()
    image_model(tmp_path / "model")
    if broken:
        (tmp_path / "model" / "model.onnx").write_bytes(b"no graph")
    (tmp_path / "src").symlink_to(CODE)
    write_choices(tmp_path)
    assert json.loads((tmp_path / "model" / "serving.json").read_text()) == {"batching": None}
