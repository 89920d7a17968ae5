"""Options that all tasks share."""

from __future__ import annotations

from typing import Any

from prefect.cache_policies import NO_CACHE

# DVC is the cache. A Prefect cache key leaves out inputs that it cannot hash, and so would return the result of others.
PLAIN: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
HOUR = 3600.0
