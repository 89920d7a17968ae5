"""Tests of the training benchmark: it runs from start to end, and its loops train the same model."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import training as benchmark
from benchmarks import training_models as models
from benchmarks.training_loops import LOOPS
from benchmarks.training_models import Machine, Workload
from benchmarks.training_report import DeviceResult, targets

HERE = [name for name in LOOPS if name != "Lightning"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture(scope="module")
def workloads() -> list[Workload]:
    return models.workloads()


def test_quick_benchmark_shows_speed_ratio_and_minimum_time_of_every_model(tmp_path: Path, workloads: list[Workload]) -> None:
    report = tmp_path / "training.md"
    text = benchmark.main(["--quick", "--threads", "1", "--device", "cpu", "--out", str(report)])
    assert report.read_text(encoding="utf-8") == text
    for title in ("Rows per second on", "Speed of Headrace relative to the others on", "Minimum time on"):
        part = text.split(f"## {title} the CPU with 1 thread\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| ([^|]+?) \|", part, re.MULTILINE)[2:] == [workload.name for workload in workloads]
    assert "| within 10 % of the best loop on every model | the CPU with 1 thread |" in text
    words = " ".join(text.split())
    assert f"torch {torch.__version__}" in words and "Without Lightning." in words


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("index", range(6), ids=["MLP", "embeddings", "CNN", "LSTM", "encoder", "GCN"])
def test_a_round_trains_every_parameter(name: str, index: int, workloads: list[Workload]) -> None:
    workload = workloads[index].part(8)
    model = workload.model().train()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    assert LOOPS[name](workload, model, CPU)() > 0
    assert [key for key, value in model.named_parameters() if torch.equal(before[key], value)] == []
    assert not model.is_preprocessed and not torch.are_deterministic_algorithms_enabled()


def test_loops_start_from_the_same_weights_and_take_as_many_steps(workloads: list[Workload]) -> None:
    """With identical rows the order does not matter, so loops without a schedule end with equal weights."""
    full = workloads[1]
    workload = Workload(
        "", "", full.model, tuple(part[:1].repeat(600, 1) for part in full.inputs), torch.zeros(600).long(), 256
    )
    ends = []
    for name in ("DataLoader loop", "tuned by hand"):
        model = workload.model().train()
        LOOPS[name](workload, model, CPU)()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=0)


def test_minimum_time_is_that_of_operations_or_bytes_whichever_takes_longer(workloads: list[Workload]) -> None:
    """By hand: a dense network takes 6 operations per weight and row, and 4 in the first layer, which has no gradient of its
    input; AdamW moves 8 numbers per parameter and step."""
    mlp = workloads[0].part(256)
    first, others = 784 * 128, 128 * 128 + 128 * 10
    assert models.floor(mlp, Machine(operations=1.0, bandwidth=1e30)) == 256 * (4 * first + 6 * others)
    parameters = first + others + 128 + 128 + 10
    moved = 2 * 8 * 4 * parameters + 256 * (784 + 8)
    assert models.floor(mlp, Machine(operations=1e30, bandwidth=1.0)) == moved


def device_result(**seconds: list[float]) -> DeviceResult:
    return DeviceResult(CPU, Machine(1.0, 1.0), [], {}, {"MLP": seconds})


def test_targets_use_the_ratio_within_each_round() -> None:
    text = targets(
        [device_result(**{"Headrace": [1.0, 2.0, 1.0], "Lightning": [1.6, 3.0, 1.4], "tuned by hand": [0.8, 1.6, 5.0]})]
    )
    assert re.search(r"within 10 %.*\| 0\.80× \(MLP\) \| not met \|", text)
    assert re.search(r"\| 1\.5× Lightning, MLP \| .* \| 1\.50× \| met \|", text)


def test_benchmark_runs_without_lightning_when_it_cannot_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "LIGHTNING", "0.0.0")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert benchmark.install_lightning(tmp_path) is False
    assert "skipping Lightning" in capsys.readouterr().err
