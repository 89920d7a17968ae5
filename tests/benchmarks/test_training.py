"""The training benchmark runs from start to end, and its loops really train the same thing."""

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
from benchmarks.training_report import Found, aims

HERE = [name for name in LOOPS if name != "Lightning"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


@pytest.fixture(scope="module")
def workloads() -> list[Workload]:
    return models.workloads()


def test_the_quick_benchmark_tells_speeds_ratios_and_the_floor_of_every_model(
    tmp_path: Path, workloads: list[Workload]
) -> None:
    report = tmp_path / "training.md"
    text = benchmark.main(["--quick", "--threads", "1", "--device", "cpu", "--out", str(report)])
    assert report.read_text(encoding="utf-8") == text
    for title in ("Rows a second on", "How many times as fast Headrace is, on", "The floor on"):
        part = text.split(f"## {title} the CPU with 1 thread\n")[1].split("\n## ")[0]
        assert re.findall(r"^\| ([^|]+?) \|", part, re.MULTILINE)[2:] == [workload.name for workload in workloads]
    assert "| within 10 % of the best loop on every model | the CPU with 1 thread |" in text
    assert f"torch {torch.__version__}" in text and "Without Lightning." in text


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("place", range(6), ids=["MLP", "embeddings", "CNN", "LSTM", "encoder", "GCN"])
def test_a_round_trains_every_parameter(name: str, place: int, workloads: list[Workload]) -> None:
    workload = workloads[place].part(8)
    model = workload.model().train()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    assert LOOPS[name](workload, model, CPU)() > 0
    assert [key for key, value in model.named_parameters() if torch.equal(before[key], value)] == []
    assert not model.is_preprocessed and not torch.are_deterministic_algorithms_enabled()


def test_loops_start_from_the_same_weights_and_take_as_many_steps(workloads: list[Workload]) -> None:
    """On rows that are all alike no order matters, and all loops but Headrace's schedule and decay end alike."""
    whole = workloads[1]
    workload = Workload(
        "", "", whole.model, tuple(part[:1].repeat(600, 1) for part in whole.inputs), torch.zeros(600).long(), 256
    )
    ends = []
    for name in ("DataLoader loop", "tuned by hand"):
        model = workload.model().train()
        LOOPS[name](workload, model, CPU)()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=0)


def test_the_floor_is_operations_or_bytes_whichever_takes_longer(workloads: list[Workload]) -> None:
    """By hand: a dense network of weights W takes 6 operations a weight and row, but for the first layer, which passes nothing
    back (4); AdamW moves 8 numbers a parameter and step."""
    mlp = workloads[0].part(256)
    first, others = 784 * 128, 128 * 128 + 128 * 10
    assert models.floor(mlp, Machine(operations=1.0, bandwidth=1e30)) == 256 * (4 * first + 6 * others)
    parameters = first + others + 128 + 128 + 10
    moved = 2 * 8 * 4 * parameters + 256 * (784 + 8)
    assert models.floor(mlp, Machine(operations=1e30, bandwidth=1.0)) == moved


def found(**seconds: list[float]) -> Found:
    return Found(CPU, Machine(1.0, 1.0), [], {}, {"MLP": seconds})


def test_aims_are_judged_by_the_ratio_within_each_round() -> None:
    text = aims([found(**{"Headrace": [1.0, 2.0, 1.0], "Lightning": [1.6, 3.0, 1.4], "tuned by hand": [0.8, 1.6, 5.0]})])
    assert re.search(r"within 10 %.*\| 0\.80× \(MLP\) \| not met \|", text)
    assert re.search(r"\| 1\.5× Lightning, MLP \| .* \| 1\.50× \| met \|", text)


def test_where_lightning_cannot_be_had_the_benchmark_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "LIGHTNING", "0.0.0")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert benchmark.bring_lightning(tmp_path) is False
    assert "without Lightning" in capsys.readouterr().err
