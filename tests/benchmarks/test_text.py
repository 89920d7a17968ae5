"""Tests of the text benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import text
from tests.paths import ROOT


@pytest.mark.exhaustive  # one benchmark of serving is enough
def test_a_quick_run_has_a_row_for_each_number_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    report = text.main(["--quick", "--out", str(tmp_path / "text.md")])
    assert (tmp_path / "text.md").read_text() == report and "onnxruntime" in report
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.splitlines() if line.startswith("| ")][2:]
    assert [int(row[0]) for row in rows] == list(text.STREAMS)
    for _, loop, together, ratio, *_ in rows:
        one, other = (float(rate.replace(",", "")) for rate in (loop, together))
        assert float(ratio) == pytest.approx(other / one, abs=0.02)
