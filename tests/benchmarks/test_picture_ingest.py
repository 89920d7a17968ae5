"""The benchmark of many pictures runs from start to end and compares all ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import picture_ingest


def test_pictures_differ_and_are_in_folders_of_classes(tmp_path: Path) -> None:
    size = picture_ingest.draw(tmp_path / "photos", 30)
    files = [path.read_bytes() for path in (tmp_path / "photos").glob("class-*/*.jpg")]
    assert len(files) == len(set(files)) == 30 == picture_ingest.files_in(tmp_path / "photos")
    assert sum(map(len, files)) == size


@pytest.mark.exhaustive
def test_all_ways_are_compared_and_the_ingest_writes_few_files(tmp_path: Path) -> None:
    text = picture_ingest.main(["--pictures", "60", "--disk", str(tmp_path), "--out", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == text
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")
    }
    assert rows[picture_ingest.INGEST][-1] == "2" and rows["dvc add of the folder"][-1] == "61"
    assert rows["cp -r"][-1] == "60" and picture_ingest.AGAIN in rows
