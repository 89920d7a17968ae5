"""Places for requests that generate texts, shared fairly by tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.runtime.http import Refused
from headrace.runtime.token_verifier import OPEN_ACCESS

FREE_FOR_ALL = 0.75
"""Share of the places that any tenant may take. The others are for tenants with less than an equal share of all."""


class TenantSlots:
    """Limits the requests that generate texts at once; a further one gets 503, and the load balancer tries another replica."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._active: Counter[str] = Counter()
        """Requests that generate texts, by tenant."""

    @property
    def active(self) -> int:
        return self._active.total()

    @contextmanager
    def take(self, tenant: str) -> Iterator[None]:
        """Takes a place for as long as the context lasts.

        Raises:
            Refused: 503, there is none for this tenant.
        """
        if not self._has_room(tenant):
            raise Refused(503, "overloaded", "too many texts are being generated; try again", {"retry-after": "1"})
        self._active[tenant] += 1
        try:
            yield
        finally:
            self._active[tenant] -= 1
            if not self._active[tenant]:
                del self._active[tenant]

    def _has_room(self, tenant: str) -> bool:
        """Whether a tenant may begin a request, so that there is room for one more tenant with an equal share.

        With open access all callers are one tenant, and none other can come.
        """
        active = self.active
        if active < (1.0 if tenant == OPEN_ACCESS.tenant else FREE_FOR_ALL) * self.limit:
            return True
        share = self.limit / (len(self._active.keys() | {tenant}) + 1)
        return active < self.limit and self._active[tenant] + 1 <= max(1, share)
