"""torch.compile: chosen when it pays, left when it does not or cannot be, and never seen in the weights by the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.files import read_json
from headrace.recipe.training import TrainConfig
from headrace.training import compiling
from headrace.training.cuda_graphs import fits
from headrace.training.rows import Batch
from headrace.training.step import Objective, Step
from headrace.training.update import Update
from tests.training.toys import image_model, image_rows, largest_difference, table_model, table_rows, train, weights


def make_step(batch_norm: bool = True) -> Step:
    model = image_model(dropout=0.3, batch_norm=batch_norm)
    return Step(Objective(model), Update(model, TrainConfig(), steps=10), torch.float32, size=16)


def batch() -> Batch:
    return next(image_rows(16).batches(16))


def timed(monkeypatch: pytest.MonkeyPatch, eager: float, compiled: float) -> None:
    """Lets a batch take so many seconds; nothing is compiled."""
    monkeypatch.setattr(compiling, "compiled", lambda objective: torch.nn.Sequential(objective))

    def seconds(step: Step, batch: Batch, timed: int = 1) -> float:
        return compiled if isinstance(step.objective, torch.nn.Sequential) else eager

    monkeypatch.setattr(compiling, "seconds_per_batch", seconds)


@pytest.mark.parametrize(
    ("eager", "compiled", "batches", "wanted"),
    [(0.1, 0.01, 2999, False), (0.1, 0.05, 3001, True), (0.1, 0.095, 3001, False), (0.1, 0.2, 3001, False)],
    ids=["too short a run", "pays", "hardly faster", "slower"],
)
def test_it_is_tried_on_long_runs_and_kept_where_it_is_faster(
    eager: float, compiled: float, batches: int, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, eager, compiled)
    said: list[str] = []
    found = compiling.should_compile("auto", make_step(), batch(), batches, tmp_path / "m.json", "run", said.append)
    assert found == wanted
    assert bool(said) == (batches > 3000)


def test_a_measured_choice_is_made_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "m.json"
    ask: Callable[[str], bool] = lambda run: compiling.should_compile(  # noqa: E731
        "auto", make_step(), batch(), 10_000, memory, run, lambda line: None
    )
    timed(monkeypatch, eager=0.1, compiled=0.05)
    assert ask("one")
    timed(monkeypatch, eager=0.1, compiled=0.2)
    assert not ask("other")
    assert ask("one")
    assert read_json(memory) == {"one": True, "other": False}


def test_where_no_compiler_is_the_run_goes_on_and_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real torch.compile that finds no C++ compiler."""
    from torch._inductor import config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    said: list[str] = []
    model, plain, rows = table_model(), table_model(), table_rows(50)
    progress = train(model, rows, TrainConfig(epochs=1, batch_size=16, compile="on"), tmp_path / "a", say=said.append)
    train(plain, rows, TrainConfig(epochs=1, batch_size=16, compile="off"), tmp_path / "b")
    assert progress.is_compiled is False
    assert len(said) == 1 and said[0].startswith("the model is not compiled: ") and "\n" not in said[0]
    assert largest_difference(weights(model), weights(plain)) == 0


def test_a_network_that_cannot_be_traced_is_trained_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(objective: Any) -> Any:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr(compiling, "compiled", refuse)
    said: list[str] = []
    assert not compiling.should_compile("on", make_step(), batch(), 10, tmp_path / "m.json", "run", said.append)
    assert said == ["the model is not compiled: first line"]


def test_measuring_leaves_no_trace() -> None:
    step = make_step()
    before, random = weights(step.objective), torch.get_rng_state()
    assert compiling.seconds_per_batch(step, batch(), timed=2) > 0
    assert largest_difference(before, weights(step.objective)) == 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in step.objective.parameters())
    assert step.update.done == 0


def test_only_full_batches_go_through_the_compiled_model() -> None:
    step = make_step()
    sizes: list[int] = []

    class Compiled(torch.nn.Module):
        def forward(self, inputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
            sizes.append(len(target))
            loss: torch.Tensor = step.objective(inputs, target)
            return loss

    step.compiled = Compiled()
    for rows in image_rows(40).batches(16):
        step.backward(rows)
    assert sizes == [16, 16]


def test_off_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "seconds_per_batch", None)
    assert not compiling.should_compile("off", make_step(), batch(), 10**9, tmp_path / "m.json", "run", print)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_cuda_graph_is_recorded_on_the_cpu(optimizer: Any) -> None:
    update = Update(table_model(), TrainConfig(optimizer=optimizer), steps=1)
    assert not fits(update, torch.device("cpu"), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "rmsprop"])
def test_a_recorded_step_trains_as_one_launched_kernel_by_kernel(optimizer: Any, tmp_path: Path) -> None:
    finals = []
    for compile_ in ("off", "auto"):
        config = TrainConfig.model_validate({"epochs": 3, "batch_size": 16, "optimizer": optimizer, "compile": compile_})
        model, rows = image_model().cuda(), image_rows(200)
        rows.inputs, rows.target = (rows.inputs[0].cuda(),), rows.target.cuda()
        train(model, rows, config.model_copy(update={"precision": "float32"}), tmp_path / compile_)
        finals.append({name: value.cpu() for name, value in weights(model).items()})
    assert largest_difference(*finals) < 1e-4
