"""Pictures in colour over HTTP: files of any size, as the body, in base64 and as BYTES of the Open Inference Protocol."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from bentos.app import INLINE_BYTES, PredictionApp
from bentos.models.onnx_model import OnnxModel
from bentos.protocols.images import weight_of
from headrace.runtime.images import decode_picture
from tests.bentos.app_requests import ask, assert_refused
from tests.bentos.live_app import live_app
from tests.colour_model import FORMAT, colour_model
from tests.picture_files import COLOURS, KINDS, file_of, noisy

PREDICT = "/v1/models/colours/predict"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_model(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def app(folder: Path) -> PredictionApp:
    app = PredictionApp()
    app.model = OnnxModel(folder)
    return app


def picture(name: str, kind: str) -> bytes:
    return file_of(noisy(COLOURS[name], 480, 640), kind)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_file_of_any_size_gives_the_pixels_of_training(app: PredictionApp, kind: str) -> None:
    """As the body, as base64 and as the pixels that training decodes: the same probabilities to the last digit."""
    for name in COLOURS:
        raw = picture(name, kind)
        body = ask(app, "POST", PREDICT, content=raw, headers={"content-type": f"image/{kind.lower()}"})
        assert body.status_code == 200, body.text
        pixels = decode_picture(raw, FORMAT)[0].tolist()
        rows = {"instances": [{"image": base64.b64encode(raw).decode()}, {"image": pixels}]}
        answers = [*body.json()["predictions"], *ask(app, "POST", PREDICT, json=rows).json()["predictions"]]
        assert [answer["label"] for answer in answers] == [name] * 3
        assert answers[0] == answers[1] == answers[2]


def test_files_are_elements_of_bytes(folder: Path) -> None:
    with live_app(folder) as (_, address):
        client = triton.InferenceServerClient(address)
        files = np.array([picture(name, kind) for name in COLOURS for kind in KINDS], dtype=object)
        tensor = triton.InferInput("image", [len(files)], "BYTES")
        tensor.set_data_from_numpy(files)
        found = client.infer("colours", [tensor]).as_numpy("label").tolist()
        assert found == [name.encode() for name in COLOURS for _ in KINDS]
        assert client.get_model_metadata("colours")["inputs"] == [
            {"name": "image", "datatype": "UINT8", "shape": [-1, *FORMAT.shape]}
        ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (file_of(noisy(COLOURS["red"], 50, 50))[:60], "damaged"),
        (b"GIF89a", "a GIF file"),
        (b"\x00" * 71, "71 bytes of another format"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_was_expected(app: PredictionApp, value: bytes, said: str) -> None:
    rows = {"instances": [{"image": base64.b64encode(value).decode()}]}
    error = assert_refused(ask(app, "POST", PREDICT, json=rows), 422, "contract_violation")
    assert error["path"] == "instances.0.image" and "PNG, JPEG or WebP file" in error["expected"] and said in error["got"]


def test_an_array_of_another_size_says_that_a_file_may_have_any(app: PredictionApp) -> None:
    rows: dict[str, Any] = {"instances": [{"image": np.zeros((7, 7, 3), int).tolist()}]}
    error = assert_refused(ask(app, "POST", PREDICT, json=rows), 422, "contract_violation")
    assert "shape [6, 4, 3]" in error["expected"] and "or a PNG, JPEG or WebP file" in error["expected"]


def test_raw_bytes_in_base64_are_pixels(app: PredictionApp) -> None:
    pixels = np.zeros(FORMAT.shape, np.uint8)
    pixels[..., 2] = 200
    rows = {"image": base64.b64encode(pixels.tobytes()).decode()}
    assert ask(app, "POST", PREDICT, json=rows).json()["predictions"][0]["label"] == "blue"


def test_patches_of_a_picture_in_colour_are_explained(app: PredictionApp) -> None:
    raw = base64.b64encode(picture("green", "JPEG")).decode()
    found = ask(app, "POST", "/v1/models/colours/explain", json={"instance": {"image": raw}, "patch": 2}).json()
    assert (found["method"], found["target"], np.shape(found["attributions"])) == ("occlusion", "green", (3, 2))


def test_webp_files_are_decoded_in_a_thread_too() -> None:
    body = b'{"image": "' + base64.b64encode(picture("red", "WEBP")[:200]) + b'"}'
    assert len(body) < INLINE_BYTES < weight_of(body)
