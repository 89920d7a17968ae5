"""What a replica holds on to after it has answered: nothing of a request, also where no collection ever runs."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bentos.live_app import live_app
from tests.exhaustive import exhaustive
from tests.tiny_models import image_model, language_model

MEBIBYTES = 4
LARGE = "A" * (MEBIBYTES << 20)


@pytest.fixture(scope="module", params=["halves", "letters"])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A model's name, and where it is served."""
    build = {"halves": image_model, "letters": language_model}[request.param]
    with live_app(build(tmp_path_factory.mktemp(request.param))) as (_, address):
        yield request.param, address


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """As good as in a replica, which collects its oldest objects after millions of new ones."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()
        gc.enable()


def ask(address: str, path: str, body: bytes, patience: float = 30.0) -> int:
    connection = http.client.HTTPConnection(address, timeout=patience)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def mebibytes_kept(address: str, path: str, body: bytes, status: int) -> float:
    """After five requests, beyond what there was after one."""
    assert ask(address, path, body) == status
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        assert ask(address, path, body) == status
    deadline = time.monotonic() + 5
    while (kept := (tracemalloc.get_traced_memory()[0] - before) / (1 << 20)) > MEBIBYTES and time.monotonic() < deadline:
        time.sleep(0.05)
    return kept


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("v1", {"pixels": LARGE, "prompt": LARGE}),
        exhaustive("v1", [LARGE]),
        ("v2", {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [LARGE]}]}),
        ("openai", {"model": "letters", "prompt": LARGE}),
        exhaustive("openai", {"model": "halves", "prompt": LARGE}),
        exhaustive("openai", {"model": "letters", "prompt": LARGE, "n": 99}),
    ],
)
def test_a_refused_request_leaves_no_memory_behind(live: tuple[str, str], protocol: str, body: object) -> None:
    model, address = live
    path = {"v1": f"/v1/models/{model}/predict", "v2": f"/v2/models/{model}/infer", "openai": "/v1/completions"}[protocol]
    content = json.dumps(body).encode()
    with without_collections():
        status = ask(address, path, content)
        assert 400 <= status < 500
        assert mebibytes_kept(address, path, content, status) < MEBIBYTES


def test_a_broken_body_leaves_no_memory_behind(live: tuple[str, str]) -> None:
    model, address = live
    with without_collections():
        assert mebibytes_kept(address, f"/v1/models/{model}/predict", b'{"pixels": "' + LARGE.encode(), 400) < MEBIBYTES


def test_an_answered_request_leaves_no_memory_behind(tmp_path: Path) -> None:
    image = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}
    content = json.dumps({"instances": [image] * 10_000}).encode()
    with live_app(image_model(tmp_path)) as (_, address), without_collections():
        assert mebibytes_kept(address, "/v1/models/halves/predict", content, 200) < MEBIBYTES
