"""Requests that run together: each gets its own answer, and nobody else's mistake."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bentos.app import PredictionApp
from bentos.models.onnx_model import InvalidOutput, OnnxModel
from bentos.scheduling.batching import Batcher
from headrace.runtime.contract import Feeds
from tests.tiny_models import image_model, table_model


class Doubles:
    """Stands for a model: twice each row, and a mistake for a negative one."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, feeds: Feeds) -> NDArray[Any]:
        self.batches.append(len(feeds["x"]))
        if (feeds["x"] < 0).any():
            raise InvalidOutput("negative")
        return feeds["x"] * 2


def together(model: Any, max_rows: int, *rows: list[float]) -> list[Any]:
    """The answers, or errors, to requests that come at once."""

    async def scenario() -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(model, thread, max_rows, 0.0, counted.append)
            asks = (batcher.run({"x": np.array(values)}, len(values)) for values in rows)
            return list(await asyncio.gather(*asks, return_exceptions=True))

    counted: list[int] = []
    found = asyncio.run(scenario())
    assert counted == model.batches
    return found


def test_each_request_of_a_batch_gets_its_own_rows() -> None:
    model = Doubles()
    found = together(model, 8, [1], [2, 3], [4], [5, 6])
    assert [answer.tolist() for answer in found] == [[2], [4, 6], [8], [10, 12]]
    assert model.batches == [6]


def test_a_batch_respects_its_row_limit_and_a_larger_request_runs_alone() -> None:
    model = Doubles()
    found = together(model, 3, [1, 2], [3, 4], [5, 6, 7, 8, 9], [1])
    assert [len(answer) for answer in found] == [2, 2, 5, 1]
    assert model.batches == [2, 2, 5, 1]


def test_one_failing_request_does_not_fail_the_others_in_its_batch() -> None:
    found = together(Doubles(), 8, [1], [-1], [3])
    assert isinstance(found[1], InvalidOutput)
    assert [found[0].tolist(), found[2].tolist()] == [[2], [6]]


def test_a_cancelled_request_leaves_the_queue() -> None:
    model = Doubles()

    async def scenario() -> list[float]:
        with ThreadPoolExecutor(1) as thread:
            batcher = Batcher(model, thread, 8, 0.0, lambda rows: None)  # type: ignore[arg-type]
            given_up = asyncio.create_task(batcher.run({"x": np.array([1.0])}, 1))
            kept = asyncio.create_task(batcher.run({"x": np.array([2.0, 3.0])}, 2))
            await asyncio.sleep(0)
            assert batcher.queued_rows == 3
            given_up.cancel()
            answer: list[float] = (await kept).tolist()
            return answer

    assert asyncio.run(scenario()) == [4.0, 6.0]
    assert model.batches == [2]


def test_a_bento_with_batching_runs_requests_together_and_reports_it(tmp_path: Path) -> None:
    folder = image_model(tmp_path)
    (folder / "serving.json").write_text(json.dumps({"batching": {"max_rows": 4, "wait_seconds": 0.0}}))
    app = PredictionApp()
    app.model = OnnxModel(folder)

    async def scenario() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            uppers = [{"pixels": [[255 * (i % 2)] * 4] * 2 + [[255 * (1 - i % 2)] * 4] * 2} for i in range(8)]
            asks = [client.post("/v1/models/halves/predict", json=body) for body in [*uppers, {"pixels": "broken"}]]
            return [*await asyncio.gather(*asks), await client.get("/metrics"), await client.get("/v1/models/halves")]

    *answers, broken, metrics, description = asyncio.run(scenario())
    assert [answer.json()["predictions"][0]["label"] for answer in answers] == ["lower", "upper"] * 4
    assert broken.status_code == 422
    assert 'headrace_batch_rows_count{model="halves",version="0"} 2.0' in metrics.text
    assert 'headrace_batch_rows_sum{model="halves",version="0"} 8.0' in metrics.text
    assert description.json()["batching"] == {"max_rows": 4, "wait_seconds": 0.0}


class Slow(OnnxModel):
    """A real model that takes too long for the event loop, and as long as `goes_on` says."""

    def __init__(self, folder: Path) -> None:
        self.runs, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()
        super().__init__(folder)

    def run(self, feeds: Feeds) -> NDArray[Any]:
        self.runs.set()
        time.sleep(0.005)
        assert self.goes_on.wait(20)
        return super().run(feeds)


@pytest.mark.parametrize("path", ["/v1/models/halves/predict", "/v2/models/halves/infer"])
def test_requests_that_arrive_during_a_run_form_the_next_batch(tmp_path: Path, path: str) -> None:
    folder = image_model(tmp_path)
    (folder / "serving.json").write_text(json.dumps({"batching": {"max_rows": 32, "wait_seconds": 0.0}}))
    app, model = PredictionApp(), Slow(folder)
    app.model = model
    pixels = [[255] * 4] * 2 + [[0] * 4] * 2
    tensor = {"name": "pixels", "shape": [1, 4, 4], "datatype": "UINT8", "data": [pixels]}
    body = {"pixels": pixels} if path.startswith("/v1") else {"inputs": [tensor]}

    async def scenario() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            model.runs.clear()
            model.goes_on.clear()
            first = asyncio.create_task(client.post(path, json=body))
            assert await asyncio.to_thread(model.runs.wait, 10)
            rest = [asyncio.create_task(client.post(path, json=body)) for _ in range(16)]
            async with asyncio.timeout(10):
                while app.metrics.queue_rows() < 16:
                    await asyncio.sleep(0.01)
            model.goes_on.set()
            assert {answer.status_code for answer in await asyncio.gather(first, *rest)} == {200}
            return (await client.get("/metrics")).text

    assert 'headrace_batch_rows_count{model="halves",version="0"} 2.0' in asyncio.run(scenario())


@pytest.mark.parametrize("said", [None, {"batching": None}])
def test_by_default_requests_run_alone(tmp_path: Path, said: dict[str, Any] | None) -> None:
    folder = table_model(tmp_path)
    if said is not None:
        (folder / "serving.json").write_text(json.dumps(said))
    app = PredictionApp()
    app.model = OnnxModel(folder)
    assert not app.is_batching
