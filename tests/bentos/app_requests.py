"""Requests to an app in this process, and the form of its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from bentos.app import PredictionApp

PREDICT = "/v1/models/halves/predict"


def ask(app: PredictionApp, method: str, path: str, **arguments: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **arguments)

    return asyncio.run(once())


def assert_refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The one shape of every error; gives its `error` object."""
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()
    assert body.keys() == {"error", "request_id"}
    assert body["error"]["code"] == code
    assert body["request_id"] == response.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error
