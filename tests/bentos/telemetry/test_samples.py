"""Samples of requests: which rows are kept and how, never a personal field, within bounds, and never at an answer's cost."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from bentos.telemetry import sample_rows
from bentos.telemetry import samples as samples_module
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.sample_file import begin_of
from headrace.runtime.thumbnail import to_text
from tests.bentos.app_requests import ask
from tests.tiny_models import image_model, language_model, table_model

PNG_SIZE = (7, 9)
Serve = Callable[..., PredictionApp]


@pytest.fixture
def usage(tmp_path: Path) -> Path:
    return tmp_path / "usage"


@pytest.fixture
def serve(usage: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Makes an app of the model in a folder that samples as its variables say, and writes when it is asked to."""
    monkeypatch.setattr(samples_module, "WRITE_SECONDS", 3600.0)

    def make(folder: Path, rows: int = 100, personal: list[str] | None = None, **variables: str) -> PredictionApp:
        if personal is not None:
            path = folder / "contract.json"
            Contract.read(path).model_copy(update={"personal": personal}).write(path)
        variables = {"SAMPLE_ROWS_PER_HOUR": str(rows), "USAGE": str(usage), "REPLICA": "halves-1", **variables}
        for name, value in variables.items():
            monkeypatch.setenv(f"HEADRACE_{name}", value)
        app = PredictionApp()
        app.model = load(folder)
        return app

    return make


def read(app: PredictionApp, usage: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line and the rows of the only file of a replica's samples."""
    app.close()
    (file,) = usage.glob("samples-*.jsonl")
    head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return head, sorted(rows, key=lambda row: row["at"])  # rows of the same millisecond stay in their order


def predict(app: PredictionApp, instances: list[Any], **headers: str) -> Any:
    response = ask(app, "POST", f"/v1/models/{app.model.name}/predict", json={"instances": instances}, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def flight(distance: float | None, carrier: str = "AA") -> dict[str, Any]:
    return {"distance": distance, "carrier": carrier}


def test_a_row_has_its_request_inputs_answer_and_the_sample_its_counts(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"))
    predict(app, [flight(1.5), flight(2, "ZZ")], **{"x-request-id": "order-7"})
    head, rows = read(app, usage)
    assert head | {"hour": ""} == {
        "schema_version": 1,
        "model": "trips",
        "version": "0",
        "replica": "halves-1",
        "hour": "",
        "seen": 2,
        "kept": 2,
        "left_out": 0,
    }
    assert begin_of(next(usage.glob("samples-*.jsonl"))) is not None
    assert [(row["id"], row["row"], row["tenant"]) for row in rows] == [("order-7", 0, "open"), ("order-7", 1, "open")]
    assert rows[0]["inputs"] == {"distance": 1.5, "carrier": "AA"}
    assert [row["answer"] for row in rows] == [13.0, 4.0]
    assert [row["confidence"] for row in rows] == [None, None]


def test_a_classifier_keeps_its_top_probability_and_a_picture_becomes_a_summary(
    serve: Serve, usage: Path, tmp_path: Path
) -> None:
    app = serve(image_model(tmp_path / "model"))
    file = io.BytesIO()
    Image.new("L", PNG_SIZE, 255).save(file, "PNG")
    (answer,) = predict(app, [{"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}])["predictions"]
    predict(app, [{"pixels": base64.b64encode(file.getvalue()).decode()}])
    sent = ask(app, "POST", "/v1/models/halves/predict", content=file.getvalue(), headers={"content-type": "image/png"})
    assert sent.status_code == 200
    _, (pixels, in_json, as_body) = read(app, usage)
    halves = to_text(np.repeat([255, 0], 8).astype(np.uint8))
    summary = {"brightness": 127.5, "contrast": 127.5, "width": 4, "height": 4, "thumbnail": halves}
    assert pixels["inputs"] == {"pixels": summary}
    assert pixels["probabilities"] == list(answer["probabilities"].values())
    assert (pixels["answer"], pixels["confidence"]) == ("upper", answer["probabilities"]["upper"])
    white = {"brightness": 255.0, "contrast": 0.0, "width": 7, "height": 9, "thumbnail": to_text(np.full(16, 255, np.uint8))}
    assert in_json["inputs"] == as_body["inputs"] == {"pixels": white}


def test_both_protocols_keep_the_same(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(image_model(tmp_path / "model"))
    pixels = np.arange(32).reshape(2, 4, 4).tolist()
    predict(app, [{"pixels": row} for row in pixels])
    tensor = {"name": "pixels", "shape": [2, 4, 4], "datatype": "UINT8", "data": pixels}
    assert ask(app, "POST", "/v2/models/halves/infer", json={"inputs": [tensor]}).status_code == 200
    _, rows = read(app, usage)
    first, second = ([{**row, "at": 0, "id": ""} for row in part] for part in (rows[:2], rows[2:]))
    assert first == second and len(first) == 2


def test_prompts_and_texts_are_kept_of_all_protocols_and_of_a_stream_the_prompt(
    serve: Serve, usage: Path, tmp_path: Path
) -> None:
    app = serve(language_model(tmp_path / "model"))
    name = app.model.name
    prompt = app.model.contract.sample["prompt"]
    (answer,) = predict(app, [{"prompt": prompt, "max_tokens": 2, "temperature": 0}])["predictions"]
    asked = {"model": name, "prompt": prompt, "max_tokens": 2, "temperature": 0}
    assert ask(app, "POST", "/v1/completions", json=asked).status_code == 200
    streamed = {"prompt": prompt, "max_tokens": 2, "stream": True}
    assert ask(app, "POST", f"/v1/models/{name}/predict", json=streamed).status_code == 200
    _, rows = read(app, usage)
    assert [row["inputs"]["prompt"] for row in rows] == [{"text": prompt, "characters": len(prompt)}] * 3
    text = {"text": answer["text"], "characters": len(answer["text"])}
    assert [row["answer"] for row in rows] == [text, text, None]


def test_a_personal_field_is_never_kept(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"), personal=["carrier"])
    predict(app, [flight(1, "Ada Lovelace")])
    _, (row,) = read(app, usage)
    assert row["inputs"] == {"distance": 1.0}
    assert all(b"Lovelace" not in path.read_bytes() for path in usage.glob("samples-*"))


def test_of_a_personal_prompt_only_the_length_of_the_answer_is_kept(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(language_model(tmp_path / "model"), personal=["prompt"])
    prompt = app.model.contract.sample["prompt"]
    (answer,) = predict(app, [{"prompt": prompt, "max_tokens": 2}])["predictions"]
    _, (row,) = read(app, usage)
    assert "prompt" not in row["inputs"] and row["answer"] == {"characters": len(answer["text"])}


def test_long_texts_are_cut_and_rows_that_are_too_large_are_left_out(
    serve: Serve, usage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_rows, "ROW_BYTES", 480)
    monkeypatch.setattr(sample_rows, "TEXT_CHARACTERS", 100)
    folder = table_model(tmp_path / "model")
    contract = Contract.read(folder / "contract.json")
    notes = InputField(name="notes", dtype="string")
    sample = {**contract.sample, "notes": ""}
    contract.model_copy(update={"inputs": [*contract.inputs, notes], "sample": sample}).write(folder / "contract.json")
    app = serve(folder)
    predict(app, [{**flight(1, "y" * 5000), "notes": "x" * 100_000}, {**flight(2, "é" * 100), "notes": "é" * 200}])
    head, (short,) = read(app, usage)
    assert short["inputs"]["notes"] == {"text": "x" * 100, "characters": 100_000}
    assert short["inputs"]["carrier"] == "y" * 100
    assert (head["seen"], head["kept"], head["left_out"]) == (2, 1, 1)


def test_a_reservoir_keeps_at_most_its_rows_and_counts_all(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"), rows=5)
    for start in range(0, 400, 100):
        predict(app, [flight(start + place) for place in range(100)])
    head, rows = read(app, usage)
    assert (head["seen"], head["kept"], len(rows)) == (400, 5, 5)
    assert all(row["answer"] == 2 * row["inputs"]["distance"] + 10 for row in rows)
    assert any(row["inputs"]["distance"] >= 100 for row in rows)


def test_a_share_of_the_requests_is_eligible_and_all_rows_are_counted(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"), rows=1000, SAMPLE_SHARE="0.25")
    for place in range(200):
        predict(app, [flight(place)])
    head, rows = read(app, usage)
    assert head["seen"] == 200 and 20 < len(rows) < 85


def test_nothing_is_kept_without_a_number_of_rows_and_by_a_shadow(serve: Serve, usage: Path, tmp_path: Path) -> None:
    for app in (serve(table_model(tmp_path / "a"), rows=0), serve(table_model(tmp_path / "b"), SHADOW="1")):
        predict(app, [flight(1)])
        app.close()
    assert not list(usage.glob("samples-*"))


def test_each_hour_has_a_file_also_when_the_clock_is_set_back(
    serve: Serve, usage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = serve(table_model(tmp_path / "model"))
    now = 1_795_485_600.0
    for seconds in (now, now + 10, now + 3600, now - 7200, now):
        monkeypatch.setattr(time, "time", lambda at=seconds: at)
        predict(app, [flight(1)])
    app.close()
    found = sorted((path.name[:21], len(path.read_text().splitlines()) - 1) for path in usage.glob("samples-*"))
    assert found == [
        ("samples-2026-11-24T00", 1),
        ("samples-2026-11-24T02", 1),
        ("samples-2026-11-24T02", 2),
        ("samples-2026-11-24T03", 1),
    ]


def test_a_full_disk_loses_samples_and_no_answer_and_one_line_is_logged(
    serve: Serve, usage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = serve(table_model(tmp_path / "model"))
    assert app.metering.samples is not None
    predict(app, [flight(1)])
    (usage / "samples-in-the-way").mkdir()
    usage.chmod(0o700)
    moved = usage.rename(tmp_path / "moved")
    usage.write_text("in the way")
    for _ in range(3):
        predict(app, [flight(2)])
        app.metering.samples.write()
    assert len([line for line in caplog.records if "samples cannot be written" in line.message]) == 1
    usage.unlink()
    moved.rename(usage)
    head, rows = read(app, usage)
    assert (head["seen"], len(rows)) == (4, 4)
    assert not list(usage.glob(".samples-*"))


def test_large_rows_lower_the_number_that_is_kept(
    serve: Serve, usage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "HOUR_BYTES", 20_000)
    app = serve(table_model(tmp_path / "model"), rows=1000)
    assert app.metering.samples is not None
    for _ in range(20):
        predict(app, [flight(place, "x" * 500) for place in range(50)])
        app.metering.samples.write()
    head, rows = read(app, usage)
    (file,) = usage.glob("samples-*.jsonl")
    assert head["seen"] == 1000 and 5 <= head["kept"] == len(rows) < 40
    assert file.stat().st_size < 21_000


def test_rows_wait_within_their_bound(serve: Serve, usage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_module, "PENDING_BYTES", 20_000)
    app = serve(table_model(tmp_path / "model"), rows=1000)
    samples = app.metering.samples
    assert samples is not None
    with samples._writing:  # the thread cannot take them
        predict(app, [flight(place, "x" * 900) for place in range(50)])
        assert samples._sample is not None and samples._sample.pending_bytes < 23_000
    head, rows = read(app, usage)
    assert head["kept"] == len(rows) < 15 and head["left_out"] == 50 - len(rows)


def test_old_files_and_those_beyond_the_size_of_all_are_removed(
    serve: Serve, usage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage.mkdir()
    app = serve(table_model(tmp_path / "model"), SAMPLE_DAYS="2")
    predict(app, [flight(1)])
    app.close()
    (new,) = usage.glob("samples-*.jsonl")
    hours = [path for hour in ("2020-01-01T00", "2026-11-22T01") if (path := usage / f"samples-{hour}-aa.jsonl")]
    begins = [begin_of(path) for path in hours]
    assert begins[1] is not None
    for path in hours:
        path.write_text("x" * 100)
    samples = app.metering.samples
    assert samples is not None
    samples._remove_old(begins[1] + 7200)
    assert not hours[0].exists() and hours[1].exists() and new.exists()
    monkeypatch.setattr(samples_module, "TOTAL_BYTES", new.stat().st_size + 50)
    samples._remove_old(begins[1] + 7200)
    assert not hours[1].exists() and new.exists(), "the oldest goes first"


def test_a_row_that_cannot_be_read_is_left_out_and_its_client_is_answered(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"))
    samples = app.metering.samples
    assert samples is not None
    predict(app, [flight(1)])
    assert samples._sample is not None
    taken = next(iter(samples._sample.pending.values()))
    samples._sample.pending[1] = taken._replace(row=7)
    head, rows = read(app, usage)
    assert (len(rows), head["left_out"]) == (1, 1)


def test_rows_that_come_during_writes_are_complete(serve: Serve, usage: Path, tmp_path: Path) -> None:
    app = serve(table_model(tmp_path / "model"), rows=50)
    samples = app.metering.samples
    assert samples is not None

    def send() -> None:
        for place in range(300):
            predict(app, [flight(place)])

    sending = threading.Thread(target=send)
    sending.start()
    while sending.is_alive():
        samples.write()
    head, rows = read(app, usage)
    assert (head["seen"], len(rows), len({row["id"] for row in rows})) == (300, 50, 50)
