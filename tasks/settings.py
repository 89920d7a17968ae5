"""What every task shares."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

# DVC is the cache: a Prefect cache key that drops an input it cannot hash would bring back another input's result.
PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
HOUR = 3600.0
