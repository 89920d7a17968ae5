"""Tests of the gate benchmark: it runs from start to end, and its shortcuts agree with the gate."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate as benchmark
from headrace.evaluation.gate import compare
from headrace.recipe.gate import BeatChampion


@pytest.mark.exhaustive
def test_quick_benchmark_shows_few_false_promotions_by_the_gate_and_many_by_the_naive_rule(tmp_path: Path) -> None:
    report = tmp_path / "gate.md"
    text = benchmark.main(["--quick", "--out", str(report)])
    assert report.read_text(encoding="utf-8") == text
    equal = text.split("## Equal models, simulated")[1].split("##")[0]
    shares = re.findall(r"\| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \| ([\d.]+) %", equal)
    assert len(shares) == 12
    # 400 trials at a true rate of at most 5 % exceed 9.3 % once in 10,000 times
    assert max(float(gate) for gate, *_ in shares) < 9.3
    assert min(float(naive) for *_, naive in shares) > 20
    assert text.count("\n## ") == 7
    series = text.split("## 12 and 52 retrains in a row, simulated")[1].split("##")[0]
    found = re.findall(r"\| ([\d.]+) % \(([\d.]+) to [\d.]+\) \| ([\d.]+) %[^|]*\| ([\d.]+) %", series)
    assert len(found) == 8
    assert all(float(low) <= 5 for _, low, _, _ in found), "the budget is kept"
    assert min(float(naive) for *_, naive in found) > 60


def test_the_simulation_on_counts_agrees_with_the_gate_on_rows() -> None:
    rng = np.random.default_rng(0)
    for won, lost in rng.integers(0, 15, (60, 2)):
        right = np.repeat([[1, 1], [1, 0], [0, 1]], [30, won, lost], axis=0).T
        candidate, champion = (np.stack([0.2 + 0.6 * r, 0.8 - 0.6 * r], axis=1) for r in right)
        y = np.zeros(30 + won + lost, dtype=int)
        answer = compare(y, candidate, champion, beat=BeatChampion(metric="accuracy"), better="higher", seed=0)
        assert answer.promoted == bool(benchmark.mcnemar([won], [lost])[0])


def test_simulated_counts_have_the_requested_gain_and_disagreement() -> None:
    won, lost = benchmark.discordant(np.random.default_rng(0), 1_000, share=0.04, gain=0.01, trials=4_000)
    # four standard errors of a mean over 4,000,000 rows
    assert abs((won - lost).mean() / 1_000 - 0.01) < 4 * 0.2 / 2_000
    assert abs((won + lost).mean() / 1_000 - 0.04) < 4 * 0.2 / 2_000
