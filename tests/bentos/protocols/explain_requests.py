"""Requests for explanations to an app in this process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from bentos.app import PredictionApp


def send(app: PredictionApp, body: bytes) -> httpx.Response:
    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            path = f"/v1/models/{app.model.name}/explain"
            return await client.post(path, content=body, headers={"content-type": "application/json"})

    return asyncio.run(once())


def ask(app: PredictionApp, **fields: Any) -> dict[str, Any]:
    response = send(app, json.dumps(fields).encode())
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found
