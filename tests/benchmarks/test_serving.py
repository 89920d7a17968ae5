"""Tests of the serving benchmark, with real servers under load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import serving as benchmark
from benchmarks.serving_load import LoadResult
from benchmarks.serving_report import ServerResult, targets
from benchmarks.serving_systems import PINNED, SYSTEMS
from tests.benchmarks.tiny_model import write_tiny_model

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (apt install wrk)")


@needs_wrk
def test_a_quick_run_shows_every_server_and_the_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "write_model", write_tiny_model)
    monkeypatch.setattr(benchmark, "WARM_SECONDS", 1)
    out = tmp_path / "serving.md"
    systems = ["floor", "binary", "json"]
    benchmark.main(
        ["--systems", ",".join(systems), "--seconds", "1", "--rounds", "1", "--connections", "16", "--out", str(out)]
    )
    text = out.read_text(encoding="utf-8")
    assert text in capfd.readouterr().out
    for name in systems:
        row = next(
            line for line in text.split("## 16 connections")[1].splitlines() if line.startswith(f"| {SYSTEMS[name].name} ")
        )
        rate, p50, p99, cpu, failed = (float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[2:])
        assert failed == 0
        assert rate > 0 and cpu > 0
        assert 0 < p50 <= p99
    assert "| Headrace, binary ≥ 0.7 × floor: Starlette, raw bytes |" in text


def test_ratios_use_the_median_round_at_16_connections() -> None:
    def at(median: float) -> list[LoadResult]:
        return [LoadResult(16, 100, rate, 1.0, 9.0, 0, 0.1, 100.0) for rate in (median, 1.0, 1e6)]

    names = {"json": 900.0, "fastapi-tuned": 1000.0, "bentoml": 300.0}
    text = targets({name: ServerResult(SYSTEMS[name], [1.0], at(rate)) for name, rate in names.items()})
    assert "| 0.90× | met |" in text
    assert "| 3.00× | not met |" in text
    assert "| 9.00 ms | not met |" in text


def test_an_unknown_server_and_a_missing_wrk_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="hint: apt install wrk"):
        benchmark.main([])
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/wrk")
    with pytest.raises(SystemExit, match="unknown server 'fast'"):
        benchmark.main(["--systems", "fast"])


def test_peers_that_headrace_does_not_need_are_pinned() -> None:
    lines = [line for line in PINNED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert {line.partition("=")[0].partition("[")[0] for line in lines} == {"litserve", "ray"}
    assert all("==" in line for line in lines)
