"""The benchmark of models of tables: a quick run on a small recipe, and its page."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import trees
from headrace.project import Project


@pytest.mark.exhaustive
def test_a_quick_run_trains_each_model_on_the_same_rows(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_ROOT", str(project.root))
    assert trees.main(["tiny", "--quick", "--out", str(tmp_path / "trees.md")]) == 0
    page = (tmp_path / "trees.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")][2:]
    assert "## `tiny`, auc (higher is better)" in page and [row[0] for row in rows] == ["mlp", "lightgbm", "xgboost"]
    for _, metric, interval, _, rounds, _ in rows:
        low, high = (float(one) for one in interval.split(" to "))
        assert low <= float(metric) <= high and rounds == "1"
    parts = ("train.parquet", "validation.parquet", "test.parquet")
    folders = [project.state / "benchmarks" / "tiny" / "artifacts" / f"tiny-{row[0]}" / "prepared" for row in rows]
    assert all(len({(folder / part).read_bytes() for folder in folders}) == 1 for part in parts)
    assert not (project.artifacts("tiny") / "train").exists()
