"""The benchmark of pictures runs from start to end and names what it compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import pictures


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


def test_quick_benchmark_compares_the_ways(tmp_path: Path) -> None:
    text = pictures.main(["--quick", "--threads", "1", "--workers", "0", "--out", str(tmp_path / "pictures.md")])
    assert (tmp_path / "pictures.md").read_text(encoding="utf-8") == text
    for way in (
        "Headrace",
        "plain script",
        "decoded once, in memory",
        "decoded once, in a mapped file",
        "decoded in each epoch",
    ):
        assert f"| {way} |" in text
    assert "times as many pictures per second as the plain script" in text and "torch 2" in text
