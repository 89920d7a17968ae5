"""The Open Inference Protocol, checked with Triton's own client; invalid requests are refused and are never a server error."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from bentos.app import PredictionApp
from bentos.protocols.server import MAX_INSTANCES
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from tests.bentos.live_app import live_app
from tests.bentos.models.word_counter import word_counter
from tests.tiny_models import image_model, language_model, table_model

UPPER = np.array([[[255] * 4, [255] * 4, [0] * 4, [0] * 4]], np.uint8)
INFER = "/v2/models/halves/infer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def halves(folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    model = image_model(folder / "halves")
    (model / "identity.json").write_text(json.dumps({"version": "3"}))
    with live_app(model) as live:
        yield live


@pytest.fixture(scope="module")
def trips(folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    model = table_model(folder / "trips")
    contract = Contract.read(model / "contract.json")
    distance, carrier = contract.inputs
    limited = [distance.model_copy(update={"minimum": 0.0}), carrier.model_copy(update={"longest": 8, "nullable": True})]
    contract.model_copy(update={"inputs": limited}).write(model / "contract.json")
    with live_app(model) as live:
        yield live


@pytest.fixture(scope="module")
def letters(folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    with live_app(language_model(folder / "letters")) as live:
        yield live


def tensor(name: str, values: np.ndarray[Any, Any], datatype: str, binary: bool = True) -> triton.InferInput:
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values, binary_data=binary)
    return found


# -- Triton's client ---------------------------------------------------------------------------------------------------------


def test_the_client_finds_server_and_model_ready(halves: tuple[PredictionApp, str]) -> None:
    client = triton.InferenceServerClient(halves[1])
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("halves") and client.is_model_ready("halves", "3")
    assert not client.is_model_ready("halves", "4")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


def test_metadata_shows_the_contract(halves: tuple[PredictionApp, str], trips: tuple[PredictionApp, str]) -> None:
    metadata = triton.InferenceServerClient(halves[1]).get_model_metadata("halves", "3")
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 4, 4]}]
    assert metadata["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
    ]
    metadata = triton.InferenceServerClient(trips[1]).get_model_metadata("trips")
    assert [one["datatype"] for one in metadata["inputs"]] == ["FP32", "BYTES"]
    assert metadata["outputs"] == [{"name": "minutes", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_an_image_is_answered_as_v1_answers_it(
    halves: tuple[PredictionApp, str], binary_in: bool, binary_out: bool | None
) -> None:
    app, address = halves
    images = np.concatenate([UPPER, UPPER[:, ::-1], UPPER // 2])
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "label")]
    result = triton.InferenceServerClient(address).infer(
        "halves", [tensor("pixels", images, "UINT8", binary_in)], outputs=outputs, request_id="mine", priority=1
    )
    wanted = app.model.predict([{"pixels": image.tolist()} for image in images])
    probabilities = [[row["probabilities"]["upper"], row["probabilities"]["lower"]] for row in wanted]
    assert result.as_numpy("probabilities") == pytest.approx(np.array(probabilities), abs=1e-6)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").tolist()]
    assert labels == ["upper", "lower", "upper"]
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("mine", "halves", "3")


@pytest.mark.parametrize("binary", [True, False])
def test_a_table_is_a_tensor_for_each_field(trips: tuple[PredictionApp, str], binary: bool) -> None:
    client = triton.InferenceServerClient(trips[1])
    distance = np.array([1.5, 2, 1e6], np.float32)
    carrier = np.array(["AA", "żółw", ""], dtype=object)
    result = client.infer("trips", [tensor("carrier", carrier, "BYTES", binary), tensor("distance", distance, "FP32", binary)])
    assert result.as_numpy("minutes").tolist() == [13, 4, 2e6]
    one_column = [tensor("distance", distance[:, None], "FP32", binary), tensor("carrier", carrier[:, None], "BYTES", binary)]
    assert client.infer("trips", one_column).as_numpy("minutes").tolist() == [13, 4, 2e6]
    assert client.infer("trips", [tensor("distance", distance, "FP32", binary)]).as_numpy("minutes").tolist() == [3, 4, 2e6]


def test_a_frame_as_mlserver_encodes_it_is_answered_and_null_is_for_fields_that_may_be_missing(
    trips: tuple[PredictionApp, str],
) -> None:
    """The form of MLServer's `PandasCodec.encode_request`: a column a tensor of shape [rows, 1], whole numbers as INT64."""

    def ask(distance: list[Any], carrier: list[Any]) -> httpx.Response:
        as_text = {"parameters": {"content_type": "str"}}
        inputs = [
            {"name": "distance", "shape": [2, 1], "datatype": "INT64", "data": distance},
            {"name": "carrier", "shape": [2, 1], "datatype": "BYTES", "data": carrier, **as_text},
        ]
        body = {"id": "a", "parameters": {"content_type": "pd", "headers": {"x": "y"}}, "inputs": inputs, "outputs": []}
        return httpx.post(f"http://{trips[1]}/v2/models/trips/infer", json=body)

    assert ask([1, 2], ["AA", "BB"]).json()["outputs"][0]["data"] == [12, 24]
    assert ask([1, 2], ["AA", None]).json()["outputs"][0]["data"] == [12, 4]
    refused = ask([1, None], ["AA", "BB"])
    assert refused.status_code == 422 and "distance" in refused.json()["error"] and "null" in refused.json()["error"]


def test_only_requested_outputs_are_returned(halves: tuple[PredictionApp, str]) -> None:
    client = triton.InferenceServerClient(halves[1])
    result = client.infer(
        "halves", [tensor("pixels", UPPER, "UINT8")], outputs=[triton.InferRequestedOutput("label", binary_data=True)]
    )
    assert result.as_numpy("label").tolist() == [b"upper"] and result.as_numpy("probabilities") is None


def test_texts_are_answered(folder: Path) -> None:
    with live_app(word_counter(folder / "moods")) as (_, address):
        client = triton.InferenceServerClient(address)
        texts = np.array(["good plane", "bad 👍"], dtype=object)
        result = client.infer("moods", [tensor("text", texts, "BYTES")])
        assert result.as_numpy("label").tolist() == [b"up", b"down"]
        with pytest.raises(triton.InferenceServerException, match=r"rows\.0\.text: expected at most 1000 characters"):
            client.infer("moods", [tensor("text", np.array(["x" * 1001], dtype=object), "BYTES")])


def test_a_language_model_generates_text(letters: tuple[PredictionApp, str]) -> None:
    client = triton.InferenceServerClient(letters[1])
    assert {one["name"]: one["datatype"] for one in client.get_model_metadata("letters")["outputs"]} == {
        "text": "BYTES",
        "finish_reason": "BYTES",
        "tokens": "INT64",
    }
    result = client.infer(
        "letters",
        [
            tensor("prompt", np.array(["a", "b"], dtype=object), "BYTES"),
            tensor("temperature", np.zeros(2, np.float32), "FP32"),
            tensor("max_tokens", np.array([20, 1]), "INT64"),
        ],
    )
    assert result.as_numpy("text").tolist() == [b"bc ", b"c"]
    assert result.as_numpy("finish_reason").tolist() == [b"stop", b"length"]
    assert result.as_numpy("tokens").tolist() == [4, 1]


def test_a_picture_file_is_an_element(folder: Path) -> None:
    from tests.bentos.protocols.image_files import file_of

    model = image_model(folder / "pictures")
    contract = Contract.read(model / "contract.json")
    field = contract.inputs[0].model_copy(update={"accepts": ["array", "base64", "image/png", "image/jpeg"]})
    contract.model_copy(update={"inputs": [field]}).write(model / "contract.json")
    with live_app(model) as (_, address):
        client = triton.InferenceServerClient(address)
        files = np.array([file_of(UPPER[0]), file_of(UPPER[0, ::-1])], dtype=object)
        assert client.infer("halves", [tensor("pixels", files, "BYTES")]).as_numpy("label").tolist() == [b"upper", b"lower"]
        with pytest.raises(triton.InferenceServerException, match="PNG or JPEG"):
            client.infer("halves", [tensor("pixels", np.array([b"GIF89a"], dtype=object), "BYTES")])


def test_a_graph_is_sent_to_the_route_that_takes_it(folder: Path) -> None:
    from bentos.models.graphs import GraphModel
    from bentos.protocols.v2 import ModelTensors
    from headrace.runtime.http import Refused

    with pytest.raises(Refused, match="use POST /v1/models/molecules/predict") as caught:
        ModelTensors(_unloaded(GraphModel, "molecules"))
    assert caught.value.status == 422


def _unloaded(kind: Any, name: str) -> Any:
    model = kind.__new__(kind)
    model.name = name
    return model


@pytest.mark.parametrize(
    ("name", "values", "datatype", "said"),
    [
        ("pixels", UPPER.astype(np.float32), "FP32", "inputs.pixels.datatype: expected UINT8"),
        ("pixels", UPPER[:, :3], "UINT8", r"inputs.pixels.shape: expected \[rows, 4, 4\], got \[1, 3, 4\]"),
        ("pixels", UPPER[0], "UINT8", "inputs.pixels.shape"),
        ("pixel", UPPER, "UINT8", "did you mean 'pixels'"),
        ("pixels", np.zeros((MAX_INSTANCES + 1, 4, 4), np.uint8), "UINT8", "exceed the limit"),
    ],
)
def test_a_wrong_tensor_is_refused_with_what_was_expected(
    halves: tuple[PredictionApp, str], name: str, values: np.ndarray[Any, Any], datatype: str, said: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=said):
        triton.InferenceServerClient(halves[1]).infer("halves", [tensor(name, values, datatype)])


@pytest.mark.parametrize("bad", [-1, np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_value_that_breaks_the_contract_names_its_row(trips: tuple[PredictionApp, str], bad: float, rows: int) -> None:
    distance = np.ones(rows, np.float32)
    distance[-1] = bad
    inputs = [tensor("distance", distance, "FP32"), tensor("carrier", np.array(["AA"] * rows, dtype=object), "BYTES")]
    with pytest.raises(triton.InferenceServerException, match=rf"rows\.{rows - 1}\.distance: expected") as caught:
        triton.InferenceServerClient(trips[1]).infer("trips", inputs)
    assert caught.value.status() == "422"


# -- hostile bodies ----------------------------------------------------------------------------------------------------------


def send(address: str, body: bytes, json_bytes: str | None = None, path: str = INFER) -> httpx.Response:
    headers = {} if json_bytes is None else {"inference-header-content-length": json_bytes}
    return httpx.post(f"http://{address}{path}", content=body, headers=headers)


def request(shape: Any = (1, 4, 4), size: Any = 16, **more: Any) -> bytes:
    parameters = {"parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [{"name": "pixels", "shape": shape, "datatype": "UINT8", **parameters}], **more}).encode()


def test_a_plain_http_request_is_answered(halves: tuple[PredictionApp, str]) -> None:
    head = request(parameters={"binary_data_output": True})
    response = send(halves[1], head + UPPER.tobytes(), str(len(head)))
    assert response.status_code == 200
    json_bytes = int(response.headers["inference-header-content-length"])
    outputs = json.loads(response.content[:json_bytes])["outputs"]
    assert [one["parameters"]["binary_data_size"] for one in outputs] == [9, 8]
    assert response.content[json_bytes : json_bytes + 9] == struct.pack("<I", 5) + b"upper"
    probabilities = np.frombuffer(response.content[json_bytes + 9 :], "<f4")
    assert probabilities.sum() == pytest.approx(1) and probabilities[0] > 0.99
    assert json.loads(response.content[:json_bytes])["id"] == response.headers["x-request-id"]


DATA = {"name": "pixels", "shape": [1, 4, 4], "datatype": "UINT8", "data": UPPER.tolist()}


@pytest.mark.parametrize(
    ("head", "behind", "json_bytes"),
    [
        (request(), 15, None),
        (request(), 17, None),
        (request(size=17), 17, None),
        (request(size=-1), 16, None),
        (request(size=True), 16, None),
        (request(size="16"), 16, None),
        (request(size=2**70), 16, None),
        (request(shape=[2**62, 4, 4]), 16, None),
        (request(shape=[2**64, 2**64, 2**64]), 16, None),
        (request(shape=[10**400, 4, 4]), 16, None),
        (request(shape=[-1, 4, 4]), 16, None),
        (request(shape=[1, -4, -4]), 16, None),
        (request(shape=[0, 4, 4], size=0), 0, None),
        (request(shape=[]), 16, None),
        (request(shape=[1.5, 4, 4]), 16, None),
        (request(shape="1,4,4"), 16, None),
        (request(shape=[1] * 10_000), 16, None),
        (request(), 16, "0"),
        (request(), 16, "-1"),
        (request(), 16, "1e2"),
        (request(), 16, "9" * 400),
        (request(), 16, "²"),
        (request(), 16, str(len(request()) + 16)),
        (request(), 16, str(len(request()) - 1)),
        (request(outputs=[{"name": "nothing"}]), 16, None),
        (request(outputs=[{"name": "label", "parameters": {"classification": 2}}]), 16, None),
        (request(outputs=7), 16, None),
        (request(id=7), 16, None),
        (b"{}", 0, None),
        (b'{"inputs": []}', 0, None),
        (b'{"inputs": {}}', 0, None),
        (b"[]", 0, None),
        (b"", 0, None),
        (b"\xff\xfe", 0, None),
        (b'{"inputs": ' + b"[" * 10_000, 0, None),
        (b'{"inputs": [{"name": "pixels", "shape": [1, 4, 4], "datatype": "UINT8", "data": ' + b"[" * 10_000, 0, None),
        (json.dumps({"inputs": [DATA, DATA]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": [1] * 15}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": [[1], [2, 3]]}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": ["1"] * 16}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": [256] * 16}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": [10**400] * 16}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": [float("nan")] * 16}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "data": None}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "datatype": "INT7"}]}).encode(), 0, None),
        (json.dumps({"inputs": [{**DATA, "parameters": {"shared_memory_region": "x"}, "data": None}]}).encode(), 0, None),
    ],
)
def test_a_body_that_disagrees_with_itself_is_refused(
    halves: tuple[PredictionApp, str], head: bytes, behind: int, json_bytes: str | None
) -> None:
    declared = str(len(head)) if json_bytes is None else json_bytes
    response = httpx.post(
        f"http://{halves[1]}{INFER}",
        content=head + b"\1" * behind,
        headers=[(b"inference-header-content-length", declared.encode("latin-1"))],
    )
    assert response.status_code in (400, 413, 422), response.text
    body = response.json()
    assert body.keys() == {"error"} and len(body["error"]) > 10


@pytest.mark.parametrize(
    "elements",
    [
        struct.pack("<I", 3) + b"AA",
        struct.pack("<I", 2**32 - 1) + b"AA",
        struct.pack("<I", 1) + b"AA",
        struct.pack("<I", 2) + b"\xff\xfe",
        struct.pack("<I", 9) + b"A" * 9,
        b"\1\0",
        b"",
    ],
)
def test_text_lengths_beyond_the_end_of_the_data_are_refused(trips: tuple[PredictionApp, str], elements: bytes) -> None:
    inputs = [
        {"name": "carrier", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(elements)}},
        {"name": "distance", "shape": [1], "datatype": "FP32", "data": [1]},
    ]
    head = json.dumps({"inputs": inputs}).encode()
    response = send(trips[1], head + elements, str(len(head)), "/v2/models/trips/infer")
    assert response.status_code in (400, 422) and "carrier" in response.json()["error"]


@pytest.mark.parametrize("data", [[True], ["1"], [None], [[1, 2]], [10**400], [{}], "1", {}, [1, 2], []])
def test_json_data_of_the_wrong_type_is_refused(trips: tuple[PredictionApp, str], data: Any) -> None:
    inputs = [
        {"name": "distance", "shape": [1], "datatype": "FP32", "data": data},
        {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["AA"]},
    ]
    response = send(trips[1], json.dumps({"inputs": inputs}).encode(), path="/v2/models/trips/infer")
    assert response.status_code == 422 and "distance" in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/halves/infer", 405),
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/halves/versions/9/infer", 404),
        ("GET", "/v2/models/halves/versions/9/ready", 404),
    ],
)
def test_an_unknown_model_or_version_is_reported(
    halves: tuple[PredictionApp, str], method: str, path: str, status: int
) -> None:
    response = httpx.request(method, f"http://{halves[1]}{path}")
    assert response.status_code == status and response.json()["error"]


def test_a_compressed_body_is_refused(halves: tuple[PredictionApp, str]) -> None:
    response = httpx.post(f"http://{halves[1]}{INFER}", content=b"x", headers={"content-encoding": "gzip"})
    assert response.status_code == 415


def test_parameters_of_an_input_are_kept() -> None:
    """A boolean is a number to the graph, and 0 or 1 on the wire."""
    from bentos.protocols.tensors import TensorReader, parse
    from headrace.runtime.violations import ContractViolation

    field = InputField(name="late", dtype="float32", boolean=True, nullable=True)
    contract = Contract(model="m", task="t", inputs=[field], output="value", target="y", sample={"late": True})
    reader = TensorReader(contract)

    def read(values: list[float]) -> np.ndarray[Any, Any]:
        raw = np.array(values, "<f4").tobytes()
        asked = {"name": "late", "shape": [len(values)], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [asked]}).encode()
        return reader.read(*parse(head + raw, str(len(head)))[:1], head + raw, len(head))["late"]

    assert np.isnan(read([1, 0, np.nan])).tolist() == [False, False, True]
    with pytest.raises(ContractViolation, match=r"rows\.1\.late: expected true or false"):
        read([1, 0.5])
