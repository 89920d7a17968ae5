"""The reader of samples: rows of a span of time with their weights, whatever files are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.project import Project
from headrace.runtime.sample_file import SampleHead, file_name, hour_of
from headrace.services.feedback_store import FeedbackStore, Truth
from headrace.services.sampled_truths import truths_of_window
from headrace.serving.samples import RowKey, read_samples, read_window, sampled_versions

BEGIN = 1_795_485_600.0
"""The beginning of an hour."""
HOUR = 3600.0
END = BEGIN + 24 * HOUR


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def write(
    project: Project,
    rows: list[dict[str, Any]],
    *,
    begin: float = BEGIN,
    seen: int | None = None,
    replica: str = "delays-1",
    unique: str = "aa",
    **head: Any,
) -> Path:
    """A file as a replica writes it, of rows with these inputs."""
    seen = len(rows) if seen is None else seen
    first = SampleHead("delays", "3", replica, hour_of(begin), seen, len(rows), 0).to_json() | head
    lines = [
        {
            "at": begin + place,
            "id": f"r{place}",
            "row": 0,
            "tenant": "acme",
            "inputs": inputs,
            "answer": 1.5,
            "confidence": None,
        }
        for place, inputs in enumerate(rows)
    ]
    path = project.usage / replica / file_name(hour_of(begin), unique)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines]))
    return path


def test_rows_of_all_replicas_have_the_weights_of_their_hours(project: Project) -> None:
    write(project, [{"distance": 1.0}, {"distance": 2.0}], seen=10)
    write(project, [{"distance": 3.0}], seen=7, replica="delays-2")
    write(project, [{"distance": 4.0}], begin=BEGIN + HOUR)
    write(project, [{"distance": 5.0}], replica="other", model="other")
    window = read_window(project, "delays", "3", BEGIN, END)
    assert window.inputs["distance"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert window.weights.tolist() == [5.0, 5.0, 7.0, 1.0]
    assert window.answers["answer"].tolist() == [1.5] * 4 and np.isnan(window.confidences).all()
    assert window.keys[0] == RowKey("acme", "r0", 0) and len(window) == 4
    assert sampled_versions(project, "delays", BEGIN, END) == {"3": 18}


def test_versions_and_times_are_apart(project: Project) -> None:
    write(project, [{"distance": float(place)} for place in range(5)])
    write(project, [{"distance": 9.0}], version="4", unique="bb")
    assert read_window(project, "delays", "3", BEGIN + 1, BEGIN + 3).inputs["distance"].tolist() == [1.0, 2.0]
    assert read_window(project, "delays", "4", BEGIN, END).inputs["distance"].tolist() == [9.0]
    assert sampled_versions(project, "delays", BEGIN, END) == {"3": 5, "4": 1}


def test_no_samples_are_an_empty_window(project: Project) -> None:
    window = read_window(project, "delays", "3", 0, END)
    assert len(window) == 0 and window.inputs.empty and window.answers.empty and window.weights.shape == (0,)
    assert sampled_versions(project, "delays", 0, END) == {}


def test_texts_pictures_and_several_values_become_columns(project: Project) -> None:
    picture = {"brightness": 3.5, "contrast": 0.1, "width": 7, "height": 9}
    path = write(project, [{"notes": {"text": "ab", "characters": 900}, "image": picture, "age": None}])
    path.write_text(path.read_text().replace('"answer": 1.5', '"answer": {"a": 1.0, "b": 2.0}'))
    window = read_window(project, "delays", "3", BEGIN, END)
    (row,) = window.inputs.to_dict("records")
    assert row == {"notes": "ab", "notes.characters": 900, "age": None, **{f"image.{k}": v for k, v in picture.items()}}
    assert window.answers.to_dict("records") == [{"a": 1.0, "b": 2.0}]


def test_damaged_files_and_lines_are_left_out_with_a_line_about_each(project: Project) -> None:
    good = write(project, [{"distance": 1.0}, {"distance": 2.0}], seen=10)
    cut = write(project, [{"distance": 3.0}, {"distance": 4.0}], unique="bb", seen=6)
    cut.write_bytes(cut.read_bytes()[:-30] + b"\n[1]\n")
    write(project, [], unique="cc", schema_version=99)
    for unique, content in {"dd": b"", "ee": b"\x00" * 50, "ff": b"{}\n", "ab": b"[1]\n", "ac": good.read_bytes()[:20]}.items():
        (good.parent / file_name(hour_of(BEGIN), unique)).write_bytes(content)
    (good.parent / "samples-2026-13-45T99-aa.jsonl").touch()
    lines: list[str] = []
    window = read_window(project, "delays", "3", BEGIN, END, report=lines.append)
    assert window.inputs["distance"].tolist() == [1.0, 2.0, 3.0]
    assert window.weights.tolist() == [5.0, 5.0, 6.0], "the rows that are left stand for all"
    assert sum("2 damaged lines; 1 of 2 rows are used" in line for line in lines) == 1
    assert sum("schema version 99" in line for line in lines) == 1
    assert sum("its first line is damaged" in line for line in lines) == 5
    assert sum("its name is not that of a sample" in line for line in lines) == 1


def test_more_rows_than_fit_are_thinned_and_stand_for_all(project: Project) -> None:
    for hour in range(10):
        write(project, [{"distance": float(hour)}] * 200, begin=BEGIN + hour * HOUR, seen=1000)
    window = read_window(project, "delays", "3", BEGIN, END, most_rows=500)
    assert 400 < len(window) < 600 and window.weights.sum() == pytest.approx(10_000, rel=0.15)
    assert sorted(set(window.inputs["distance"])) == [float(hour) for hour in range(10)]
    assert [len(part) for part in read_samples(project, "delays", "3", BEGIN, END)] == [200] * 10


def test_rows_are_joined_with_the_latest_truths_of_their_tenant(project: Project) -> None:
    write(project, [{"distance": 1.0}, {"distance": 2.0}])
    window = read_window(project, "delays", "3", BEGIN, END)
    assert truths_of_window(project, window).tolist() == [None, None]
    store = FeedbackStore(project, 90.0)
    for tenant, truth in (("acme", 7.0), ("other", 9.0), ("acme", 8.0)):
        store.add([Truth(tenant, "delays", "3", "r1", 0, truth)], None)
    store.close()
    assert truths_of_window(project, window).tolist() == [None, 8.0]
