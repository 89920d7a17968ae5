"""Tests of the neighbours benchmark, with real servers."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvicorn
from starlette.responses import Response

from benchmarks import neighbours as benchmark
from benchmarks.neighbours import RoundResult
from benchmarks.serving_systems import JSON
from headrace.errors import HeadraceError
from tests.benchmarks.tiny_model import write_tiny_model
from tests.bentos.live_app import listening


@pytest.mark.exhaustive
def test_a_quick_run_measures_small_requests_alone_and_beside_large_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_model(folder)

    monkeypatch.setattr(benchmark, "write_model", write)
    out = tmp_path / "neighbours.md"
    benchmark.main(["--rounds", "1", "--seconds", "1", "--rows", "200", "--out", str(out)])
    rows = [line.strip("| ").split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == list(benchmark.SERVERS)
    assert rows[2][3] == "1.0"
    assert all(float(row[4]) > 0 for row in rows[2:])


def test_the_round_with_the_median_p99_counts() -> None:
    rounds = [RoundResult((0.5, 1.0), (1.0, p99), 2.0) for p99 in (90.0, 10.0, 50.0)]
    assert benchmark.median_round(rounds).beside[1] == 50.0


def test_a_refused_small_request_is_an_error() -> None:
    with (
        listening(uvicorn.Config(Response("busy", 503), log_level="warning")) as address,
        pytest.raises(HeadraceError, match="503"),
    ):
        benchmark.send_small(f"http://{address}/predict", JSON, 1.0)
