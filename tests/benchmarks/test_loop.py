"""Tests of the benchmark of the loop: it measures a real release, its table has the six figures, and its pages are replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import loop
from benchmarks.gate import RETRAINS, series_with_false_promotion
from benchmarks.loop_drift import _alarm
from benchmarks.release_clone import CHECKOUT, Clone
from headrace.errors import HeadraceError
from headrace.files import write_json
from headrace.services.monitoring.report import MonitorReport, Quality, folder_of

SECONDS = {"median": 2.0, "min": 1.5, "max": 2.5, "n": 3}
FOUND: dict[str, Any] = {
    "commit": "4271f0e",
    "hardware": "2 cores",
    "minutes": 12.0,
    "recipe": "digits",
    "unchanged": {"headrace run": SECONDS, "dvc repro": {**SECONDS, "median": 4.0}},
    "commit_to_served": {"seconds": SECONDS, "failed": 0, "requests": 1000},
    "rollback": {"seconds": SECONDS, "failed": 1, "requests": 500},
    "swaps": {"seconds": SECONDS, "failed": 0, "requests": 300},
    "drift": {
        "seconds": 180.0,
        "noticed": 70.0,
        "answers": 1_200,
        "error": 10.9,
        "reference": 7.5,
        "requests": 200,
        "failed": 0,
        "month": "May",
        "schedule_days": 15.2,
    },
    "wrong_promotions": {"gate": "2.4 % (1.7 to 3.1)", "naive": "90.9 % (89.6 to 92.1)", "series": 2000},
}


def test_the_table_has_six_figures_and_adds_up_what_was_lost() -> None:
    lines = loop.table(FOUND).splitlines()[2:]
    assert len(lines) == 6
    assert "2.00 s" in lines[0] and "0.50 times as long" in lines[0]
    assert "180 s" in lines[2] and "70 s of it until the alarm" in lines[2]
    assert "1 of 2,000" in lines[4]
    assert "not measured" in loop.table({**FOUND, "drift": None})
    assert "10.9 minutes of error instead of 7.5" in loop.page(FOUND)


def test_an_alarm_is_read_from_the_report_of_a_look(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "token", {})
    assert _alarm(clone) is None
    quality = Quality(metric="mae", rows=200, all_rows=400, value=10.8, low=8.0, high=15.0, reference=7.5, has_fallen=False)
    report = MonitorReport(model="flights", version="1", at="2026-12-01", new_hours=0, rows=400, quality=[quality])
    worse = report.model_copy(update={"worse": ["mae: the error 10.8 is more than 5% above the reference"]})
    for written, expected in ((report, None), (worse, {"error": 10.8, "reference": 7.5})):
        write_json(folder_of("flights", clone.project) / "report.json", written.model_dump(mode="json"))
        assert _alarm(clone) == expected


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{loop.BEGIN}\nold\n{loop.END}\nafter\n")
    loop.write_between(readme, "new")
    assert readme.read_text() == f"before\n{loop.BEGIN}\n\nnew\n\n{loop.END}\nafter\n"
    readme.write_text("no marks\n")
    with pytest.raises(HeadraceError, match="marks"):
        loop.write_between(readme, "new")
    assert loop.BEGIN in loop.README.read_text() and loop.END in loop.README.read_text()


def test_the_gate_has_fewer_series_with_a_wrong_promotion_than_the_naive_rule() -> None:
    gate, naive = series_with_false_promotion(np.random.default_rng(3), 1_000, RETRAINS, 60)
    assert gate.shape == naive.shape == (60,)
    assert gate.sum() < naive.sum() / 3


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (CHECKOUT / ".git").exists(), reason="needs a git checkout")
def test_a_quick_run_measures_a_real_loop() -> None:
    command = [sys.executable, "-m", "benchmarks.loop", "--quick", "--json"]
    done = subprocess.run(command, cwd=CHECKOUT, env=dict(os.environ), capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["commit_to_served"]["failed"] == found["rollback"]["failed"] == found["swaps"]["failed"] == 0
    assert found["rollback"]["seconds"]["n"] == 1
