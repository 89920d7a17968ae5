"""Tests of the batching benchmark, with real servers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import batching as benchmark
from benchmarks.batching import Case, CaseResult
from benchmarks.serving_load import LoadResult
from benchmarks.serving_model import sample
from tests.benchmarks.tiny_model import write_tiny_model


@pytest.mark.exhaustive  # one benchmark of serving is enough
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk (apt install wrk)")
def test_a_quick_run_measures_each_mode_and_shows_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_model(folder)

    tiny = Case("A tiny network", "One layer.", write, {"pixels": sample().tolist()})
    monkeypatch.setattr(benchmark, "CASES", (tiny,))
    out = tmp_path / "batching.md"
    benchmark.main(["--rounds", "1", "--seconds", "1", "--connections", "4", "--out", str(out)])
    text = out.read_text(encoding="utf-8")
    assert "One layer. Its bento runs requests **one by one**." in text
    row = next(line for line in text.splitlines() if line.startswith("| 4 |")).strip("| ").split(" | ")
    together, alone, peer, ratio = (float(cell.replace(",", "")) for cell in row[1:5])
    assert min(together, alone, peer) > 0
    assert ratio == pytest.approx(together / alone, abs=0.01)


def test_the_round_with_the_median_rate_counts() -> None:
    rounds = [LoadResult(4, 100, rate, 1.0, 2.0, 0, 0.1, 100.0) for rate in (900.0, 100.0, 500.0)]
    assert CaseResult("together", {("together", 4): rounds}).at("together", 4).requests_per_second == 500.0
