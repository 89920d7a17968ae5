"""Pictures over HTTP: a file as the body, a file as base64, and files that are meant to harm."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import numpy as np
import pytest

from bentos.app import INLINE_BYTES, PredictionApp
from bentos.models.onnx_model import OnnxModel
from bentos.protocols.images import weight_of
from headrace.runtime import http
from headrace.runtime.contract import Contract
from tests.bentos.app_requests import PREDICT, ask, assert_refused
from tests.bentos.protocols.image_files import file_of
from tests.tiny_models import image_model, table_model

UPPER = np.repeat(np.array([255, 255, 0, 0], np.uint8), 4).reshape(4, 4)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = image_model(tmp_path_factory.mktemp("looking"))
    contract = Contract.read(folder / "contract.json")
    taken = contract.inputs[0].model_copy(update={"accepts": ["array", "base64", "image/png", "image/jpeg"]})
    contract.model_copy(update={"inputs": [taken]}).write(folder / "contract.json")
    return OnnxModel(folder)


@pytest.fixture
def app(looking: OnnxModel) -> PredictionApp:
    app = PredictionApp()
    app.model = looking
    return app


def show(app: PredictionApp, body: bytes, kind: str = "image/png", **headers: str) -> httpx.Response:
    return ask(app, "POST", PREDICT, content=body, headers={"content-type": kind, **headers})


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("PNG", "image/jpeg; q=1")])
def test_a_file_alone_is_an_instance(app: PredictionApp, kind: str, media_type: str) -> None:
    large = np.kron(UPPER, np.ones((60, 80), np.uint8))
    response = show(app, file_of(large, kind), media_type, **{"x-request-id": "look-1"})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["id"] == f"halves@{body['version']}:look-1"
    (answer,) = body["predictions"]
    (array,) = ask(app, "POST", PREDICT, json={"pixels": UPPER.tolist()}).json()["predictions"]
    assert answer["label"] == array["label"] == "upper"
    assert answer["probabilities"]["upper"] == pytest.approx(array["probabilities"]["upper"], abs=0.01)


def test_files_and_arrays_can_be_mixed_in_json(app: PredictionApp) -> None:
    rows = [{"pixels": base64.b64encode(file_of(UPPER)).decode()}, {"pixels": UPPER[::-1].tolist()}]
    labels = [row["label"] for row in ask(app, "POST", PREDICT, json={"instances": rows}).json()["predictions"]]
    assert labels == ["upper", "lower"]


@pytest.mark.parametrize(
    ("body", "path", "said"),
    [
        (b"", "body", "0 bytes"),
        (b"GIF89a", "body", "a GIF file"),
        (UPPER.tobytes(), "body", "16 bytes of another format"),
        (file_of(UPPER)[:50], "instances.0.pixels", "damaged"),
    ],
)
def test_a_file_that_is_not_a_picture_is_refused_with_what_was_expected(
    app: PredictionApp, body: bytes, path: str, said: str
) -> None:
    error = assert_refused(show(app, body), 422, "contract_violation")
    assert error["path"] == path and "PNG or JPEG" in error["expected"] and said in error["got"]


def test_a_picture_for_a_model_of_fields_is_refused(tmp_path: Path) -> None:
    app = PredictionApp()
    app.model = OnnxModel(table_model(tmp_path))
    response = ask(app, "POST", "/v1/models/trips/predict", content=file_of(UPPER), headers={"content-type": "image/png"})
    assert "application/json" in assert_refused(response, 415, "unsupported_media_type")["message"]


def test_other_pictures_and_compressed_ones_are_refused(app: PredictionApp) -> None:
    assert_refused(show(app, b"GIF89a", "image/gif"), 415, "unsupported_media_type")
    assert_refused(show(app, file_of(UPPER), **{"content-encoding": "gzip"}), 415, "unsupported_media_type")


def test_a_large_picture_is_refused_unread(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_LIMIT_BYTES", 20)
    assert_refused(show(app, file_of(UPPER)), 413, "too_large")


def test_files_that_may_decode_to_large_pictures_are_decoded_in_a_thread() -> None:
    for kind in ("PNG", "JPEG"):
        body = b'{"pixels": "' + base64.b64encode(file_of(UPPER, kind)) + b'"}'
        assert len(body) < INLINE_BYTES < weight_of(body)
        assert weight_of(body.translate(bytes.maketrans(b"+/", b"-_"))) > INLINE_BYTES, "in the alphabet for URLs"
    assert weight_of(b'{"pixels": [[1, 2]]}') == 20
