"""`headrace predict`, `batch` and `feedback` act for the tenant of the token that is set."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headrace.services.feedback_store import joined
from tests.services.api.commands import HEADRACE, run
from tests.services.api.server import LocalService, until


def test_batches_and_feedback_belong_to_the_token_of_the_environment(service: LocalService, tmp_path: Path) -> None:
    token = service.token("acme", "trips")
    answer = json.loads(run(service, "predict", "trips", "distance=1", "carrier=AA", token=token).stdout)
    assert json.loads(run(service, "feedback", answer["id"], "11", token=token).stdout)["state"] == "joined"
    assert [one.truth for one in joined(service.project, "trips") if one.request_id == answer["request_id"]] == [11]

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"distance": 1, "carrier": "AA"}\n')
    batch = json.loads(run(service, "batch", "submit", "trips", str(rows), token=token).stdout)
    with service.client("acme", "trips") as acme:
        assert batch["id"] in [one.id for one in acme.batches("trips")]
    stranger = service.token("other", "trips")
    assert "no such batch" in run(service, "batch", "status", "trips", batch["id"], token=stranger).stdout
    assert json.loads(run(service, "batch", "status", "trips", batch["id"]).stdout)["more"]["tenant"] == "acme", "the operator"


def test_without_a_token_in_the_environment_the_operator_s_token_is_used(service: LocalService) -> None:
    for token in (None, "", " "):
        assert run(service, "predict", "halves", "--sample", token=token).returncode == 0


@pytest.mark.parametrize(
    "command", [("predict", "halves", "--sample"), ("batch", "status", "halves"), ("feedback", "halves@1:x", "1")]
)
def test_the_error_names_the_environment_variable_of_a_refused_token(service: LocalService, command: tuple[str, ...]) -> None:
    done = run(service, *command, token=service.token("acme", "trips"))
    assert done.returncode == 5
    error = json.loads(done.stdout)
    assert "does not allow this" in error["message"]
    assert "HEADRACE_TOKEN" in error["hint"]


SCORED = "prediction,prediction_error,prediction_id,prediction_row"
WARNED = ";prediction_warnings"
WARNING = "carrier: 'ZZ' is outside of the training data: known are 'AA', 'BB'"
TRIPS = "\ufeffid;distance;carrier;minutes\r\n007;1,5;AA;9\r\n\r\n008;far;AA;\r\n009;2;ZZ;\r\n"
"""With a byte order mark, decimal commas, a blank line, an id, the old target, a bad row, and an unknown carrier."""


def test_a_table_comes_back_with_the_answers_beside_its_columns(service: LocalService, tmp_path: Path) -> None:
    rows, to = tmp_path / "rows.txt", tmp_path / "scored.csv"
    rows.write_text(TRIPS, newline="")
    done = run(service, "predict", "trips", "--file", str(rows), "--output", str(to), as_json=False)
    assert done.returncode == 3, done
    assert done.stderr.splitlines()[1:4] == [
        "  3 rows: 2 answered, 1 refused",
        "  1 × distance: expected a number: line 4 (str 'far')",
        "  values that training has not seen: 1 × carrier",
    ]
    assert "1 of 3 rows were refused" in done.stderr
    lines = to.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"\ufeffid;distance;carrier;minutes;{SCORED.replace(',', ';')}{WARNED}"
    assert [line.split(";")[:5] for line in lines[1:]] == [
        ["007", "1,5", "AA", "9", "13,0"],
        ["008", "far", "AA", "", ""],
        ["009", "2", "ZZ", "", "4,0"],
    ]
    assert [line.split(";")[-1] for line in lines[1:]] == ["", "", WARNING]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []

    printed = run(service, "predict", "trips", "--file", str(rows), "--answers-only", as_json=False).stdout.splitlines()
    assert (printed[0].removeprefix("\ufeff"), len(printed)) == (f"row;{SCORED.replace(',', ';')}", 4)
    as_json = run(service, "predict", "trips", "--file", str(rows))
    found = json.loads(as_json.stdout)
    assert as_json.returncode == 3
    assert (found["answered"], found["refused"], found["predictions"][1]) == (2, 1, None)
    assert found["warnings"] == {"carrier": 1}
    assert found["refusals"][0]["rows"] == [{"row": 1, "place": "line 4", "got": "str 'far'"}]


def test_a_batch_of_a_table_comes_back_with_the_answers_beside_its_columns(service: LocalService, tmp_path: Path) -> None:
    rows, to = tmp_path / "rows.csv", tmp_path / "scored.csv"
    rows.write_text(TRIPS, newline="")
    done = run(service, "batch", "submit", "trips", str(rows), "--to", str(to), as_json=False)
    assert done.returncode == 3, done
    assert "  1 × distance: expected a number: line 4 (str 'far')" in done.stderr.splitlines()
    lines = to.read_text(encoding="utf-8").splitlines()
    assert [line.split(";")[4] for line in lines] == ["prediction", "13,0", "", "4,0"]
    assert lines[3].endswith(f";{WARNING}")
    assert "  values that training has not seen: 1 × carrier" in done.stderr.splitlines()


def test_a_folder_and_a_zip_of_pictures_give_a_row_for_each(service: LocalService, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    for name, half in (("a.png", 0), ("b/c.png", 2)):
        pixels = np.zeros((4, 4), np.uint8)
        pixels[half : half + 2] = 255
        Image.fromarray(pixels).save(folder / name)
    (folder / "d.jpg").write_bytes(b"no picture")
    (folder / "notes.md").write_text("x")
    done = run(service, "predict", "halves", "--file", str(folder), as_json=False)
    assert done.returncode == 3, done
    assert [line.split(",")[:2] for line in done.stdout.splitlines()] == [
        ["file", "prediction"],
        ["a.png", "upper"],
        ["b/c.png", "lower"],
        ["d.jpg", ""],
    ]
    assert "1 other files are left out: 'notes.md'" in done.stderr
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    to = tmp_path / "scored.csv"
    batch = run(service, "batch", "submit", "halves", packed, "--to", str(to), as_json=False)
    assert batch.returncode == 3, batch
    assert [line.split(",")[:2] for line in to.read_text().splitlines()] == [
        line.split(",")[:2] for line in done.stdout.splitlines()
    ]


def test_an_interrupted_command_leaves_nothing_and_an_earlier_result_as_it_was(service: LocalService, tmp_path: Path) -> None:
    rows, to = tmp_path / "rows.csv", tmp_path / "scored.csv"
    rows.write_text("distance,carrier\n" + "1,AA\n" * 1_000_000)
    to.write_text("earlier")
    command = [HEADRACE, "predict", "trips", "--file", str(rows), "--output", str(to)]
    process = subprocess.Popen(command, cwd=service.project.root, env=service.environment, stderr=subprocess.PIPE, text=True)
    until(lambda: any(path.stat().st_size > 1000 for path in tmp_path.glob(".scored.csv.*")))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, ": interrupted; no output file" in said, "Traceback" in said) == (130, True, False), said
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "scored.csv"}
    assert to.read_text() == "earlier"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("id,distanse,carrier\n1,2,AA\n", (), "the column 'distance' is missing"),
        ("distance,carrier\n", (), "the file has no rows"),
        ("distance,carrier\n1,AA\n", ("--output", "x.parquet"), "come as csv, not as x.parquet"),
        ("distance,carrier\n1,AA\n", ("--stream",), "only one input can be streamed"),
        ('{"distance": 1, "carrier": "AA"}', ("--answers-only",), "rows.json is one input"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused_as_a_whole(
    service: LocalService, tmp_path: Path, content: str, options: tuple[str, ...], message: str
) -> None:
    rows = tmp_path / ("rows.json" if content.startswith("{") else "rows.csv")
    rows.write_text(content)
    done = run(service, "predict", "trips", "--file", str(rows), *options)
    assert done.returncode in (2, 3) and message in json.loads(done.stdout)["message"], done
    assert json.loads(done.stdout)["hint"]
