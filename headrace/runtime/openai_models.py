"""A model as OpenAI's clients list it and look it up."""

from __future__ import annotations

from typing import Any


def card(name: str, loaded_at: int) -> dict[str, Any]:
    """Of a model that writes; `loaded_at` is when a replica of it was ready, in seconds since 1970."""
    return {"id": name, "object": "model", "created": loaded_at, "owned_by": "headrace"}


def listing(models: list[dict[str, Any]], cards: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer of `GET /v1/models`: Headrace's own list, and beside it OpenAI's."""
    return {"models": models, "object": "list", "data": cards}
