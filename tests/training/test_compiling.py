"""torch.compile: chosen when it pays, left when it does not or cannot be, and never seen in the weights by the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.files import read_json
from headrace.models.served import LossModule
from headrace.recipe.training import TrainConfig
from headrace.training import compiling
from headrace.training.checkpoint import Checkpoints
from headrace.training.cuda_graphs import can_record
from headrace.training.loop import Trainer, TrainingRun
from headrace.training.optimizers import ScheduledOptimizer
from headrace.training.rows import Batch
from tests.training.toys import ignore, image_model, image_rows, largest_difference, table_model, table_rows, train, weights


def loss_module() -> LossModule:
    return LossModule(image_model(dropout=0.3, batch_norm=True))


def should_compile(wanted: str, batches: int, folder: Path, report: Any = ignore, fingerprint: str = "run") -> bool:
    checkpoints = Checkpoints(folder / "m.pt", fingerprint, {})
    return compiling.should_compile(wanted, loss_module(), torch.float32, batch(), batches, checkpoints, report)


def batch() -> Batch:
    return next(image_rows(16).batches(16))


def timed(monkeypatch: pytest.MonkeyPatch, eager: float, compiled: float) -> None:
    """Lets a batch take this many seconds; nothing is compiled."""
    monkeypatch.setattr(compiling, "compiled", lambda objective: torch.nn.Sequential(objective))

    def seconds(module: torch.nn.Module, precision: torch.dtype, batch: Batch, timed: int = 1) -> float:
        return compiled if isinstance(module, torch.nn.Sequential) else eager

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
    assert should_compile("auto", batches, tmp_path, said.append) == wanted
    assert bool(said) == (batches > 3000)


def test_a_measured_choice_is_made_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, eager=0.1, compiled=0.05)
    assert should_compile("auto", 10_000, tmp_path, fingerprint="one")
    timed(monkeypatch, eager=0.1, compiled=0.2)
    assert not should_compile("auto", 10_000, tmp_path, fingerprint="other")
    assert should_compile("auto", 10_000, tmp_path, fingerprint="one")
    assert read_json(tmp_path / "m.compiled.json") == {"one": True, "other": False}


def test_without_a_compiler_the_run_continues_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert not should_compile("on", 10, tmp_path, said.append)
    assert said == ["the model is not compiled: first line"]


def test_measuring_leaves_no_trace() -> None:
    module = loss_module()
    before, random = weights(module), torch.get_rng_state()
    assert compiling.seconds_per_batch(module, torch.float32, batch(), timed=2) > 0
    assert largest_difference(before, weights(module)) == 0
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_only_full_batches_go_through_the_compiled_model() -> None:
    model, rows = image_model(dropout=0.3, batch_norm=True), image_rows(40)
    trainer = Trainer(model, rows, rows, TrainConfig(batch_size=16), TrainingRun(Path("unused.pt"), "run"))
    sizes: list[int] = []

    class Compiled(torch.nn.Module):
        def forward(self, inputs: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
            sizes.append(len(target))
            loss: torch.Tensor = trainer.loss_module(inputs, target)
            return loss

    trainer.compiled = Compiled()
    for one in rows.batches(16):
        trainer.training_step(one, is_last=False)
    assert sizes == [16, 16]


def test_off_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "seconds_per_batch", None)
    assert not should_compile("off", 10**9, tmp_path, print)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_no_cuda_graph_is_recorded_on_the_cpu(optimizer: Any) -> None:
    made = ScheduledOptimizer(table_model(), TrainConfig(optimizer=optimizer), steps=1)
    assert not can_record(made, torch.device("cpu"), 1)


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
