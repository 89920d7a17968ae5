"""Daily quotas in rows, exact across all replicas: counted in Redis, or in a folder that the replicas of one machine share.

Exact means: what is granted on one UTC day never exceeds the quota, and a request that is refused takes nothing from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from headrace.runtime.http import Refused
from headrace.runtime.token_verifier import Caller

logger = logging.getLogger("headrace.quota")
DAY_SECONDS = 86_400
KEPT_DAYS = 2
STORE_SECONDS = 0.5
"""How long a store may take to answer."""
REST_SECONDS = 1.0
"""A store that did not answer is left alone for so long: nobody waits for it meanwhile."""


class StoreDown(Exception):
    """The store does not answer."""


class Store(Protocol):
    """Counts rows by tenant and day."""

    async def take(self, tenant: str, day: str, rows: int, limit: int) -> bool:
        """Adds `rows` if the sum stays within `limit`, and says whether it did; negative `rows` are given back.

        Raises:
            StoreDown: it does not answer.
        """
        ...


class Quotas:
    """What callers have left of their day."""

    def __init__(self, store: Store | None, serves_when_down: bool, count_unchecked: Callable[[], None]) -> None:
        self._store = store
        self._serves_when_down = serves_when_down
        self._count_unchecked = count_unchecked
        self._down_until = 0.0
        self._is_down = False

    async def take(self, caller: Caller, rows: int) -> bool:
        """Whether the caller's day holds `rows`, which are then taken from it.

        Raises:
            Refused: 503, the store does not answer, and requests are not to be served then.
        """
        assert caller.rows_per_day is not None
        try:
            return await self._ask(caller, rows)
        except StoreDown as reason:
            self._note(reason)
        if not self._serves_when_down:
            message = "quotas cannot be looked up at present; try again"
            raise Refused(503, "quota_unavailable", message, {"retry-after": "1"})
        self._count_unchecked()
        return True

    async def give_back(self, caller: Caller, rows: int) -> None:
        """What was taken for a request that was then refused for another reason."""
        with contextlib.suppress(StoreDown):
            await self._ask(caller, -rows)

    async def _ask(self, caller: Caller, rows: int) -> bool:
        if self._store is None:
            raise StoreDown("no HEADRACE_QUOTAS was given")
        if time.monotonic() < self._down_until:
            raise StoreDown("it did not answer a moment ago")
        day = datetime.now(UTC).date().isoformat()
        found = await self._store.take(caller.tenant, day, rows, caller.rows_per_day or 0)
        if self._is_down:
            self._is_down = False
            logger.warning("quotas can be looked up again")
        return found

    def _note(self, reason: StoreDown) -> None:
        """Says it once, not with every request."""
        if not self._is_down:
            self._is_down = True
            served = "served unchecked" if self._serves_when_down else "refused"
            logger.error("quotas cannot be looked up: %s; requests that have one are %s until they can", reason, served)
        if time.monotonic() >= self._down_until:
            self._down_until = time.monotonic() + REST_SECONDS


class RedisStore:
    """Counts in Redis, through the storage of `limits`; check and sum are one script there, so that no two callers cross."""

    TAKE = """
    local used = tonumber(redis.call('get', KEYS[1]) or '0')
    local rows, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
    if rows > 0 and used + rows > limit then return 0 end
    redis.call('set', KEYS[1], math.max(0, used + rows), 'ex', ARGV[3])
    return 1
    """

    def __init__(self, address: str) -> None:
        from limits.aio.storage.redis import RedisStorage

        self._address = address
        # It connects with the first request, not now.
        bridge: Any = RedisStorage(f"async+{address}", implementation="redispy", key_prefix="headrace").bridge
        self._script = bridge.get_connection().register_script(self.TAKE)

    async def take(self, tenant: str, day: str, rows: int, limit: int) -> bool:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                keys = [f"headrace:rows:{day}:{tenant}"]
                return bool(await self._script(keys=keys, args=[rows, limit, KEPT_DAYS * DAY_SECONDS]))
        except TimeoutError:
            raise StoreDown(f"{_without_password(self._address)} did not answer within {STORE_SECONDS:g} s") from None
        except Exception as error:  # of the client library's many kinds, each means that nothing was granted
            raise StoreDown(f"{_without_password(self._address)}: {type(error).__name__}") from error


class LocalStore:
    """Counts in one file a day, whose records processes lock one by one: 5 microseconds a request, where Redis takes 100.

    A record is a count of 8 bytes and the tenant's name. It is locked while it is looked at and changed, and the kernel takes
    the lock from a process that dies.
    """

    RECORD = 256
    COUNT = struct.Struct("<Q")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._day = ""
        self._file = -1
        self._places: dict[str, int] = {}

    async def take(self, tenant: str, day: str, rows: int, limit: int) -> bool:
        try:
            if day != self._day:
                self._turn(day)
            place = self._places.get(tenant)
            if place is None:
                place = self._places[tenant] = await self._find(tenant.encode()[: self.RECORD - self.COUNT.size])
            await self._lock(place, self.COUNT.size)
            try:
                (used,) = self.COUNT.unpack(os.pread(self._file, self.COUNT.size, place))
                if rows > 0 and used + rows > limit:
                    return False
                os.pwrite(self._file, self.COUNT.pack(max(0, used + rows)), place)
                return True
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, self.COUNT.size, place)
        except OSError as error:
            raise StoreDown(f"{self._folder}: {error.strerror or error}") from error

    async def _find(self, name: bytes) -> int:
        """Where the tenant's record lies; a new one goes to the end. The byte before all records is the lock on the list."""
        size = self.RECORD
        await self._lock(0, 1)
        try:
            end = os.fstat(self._file).st_size
            content = os.pread(self._file, end, 0)
            last = max(size, -(-end // size) * size)  # a record that a kill cut short is left behind
            for place in range(size, len(content) - size + 1, size):
                if content[place + self.COUNT.size : place + size].rstrip(b"\0") == name:
                    return place
            os.pwrite(self._file, self.COUNT.pack(0) + name.ljust(size - self.COUNT.size, b"\0"), last)
            return last
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    async def _lock(self, start: int, length: int) -> None:
        """Others hold it for microseconds, unless one of them was stopped amid that."""
        until = time.monotonic() + STORE_SECONDS
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.0005)

    def _turn(self, day: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._folder / f"rows-{day}.bin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(file, 0o666)  # replicas in containers are another user; the folder above is this one's alone
        if self._file >= 0:
            os.close(self._file)
        self._day, self._file, self._places = day, file, {}
        for old in sorted(self._folder.glob("rows-*.bin"))[:-KEPT_DAYS]:
            with contextlib.suppress(OSError):
                old.unlink()


def open_store(place: str) -> Store | None:
    """The store at an address such as `redis://127.0.0.1:6379`, or in a folder; none when `place` is empty."""
    if not place:
        return None
    return RedisStore(place) if "://" in place else LocalStore(Path(place))


def seconds_to_next_day() -> int:
    return int(DAY_SECONDS - time.time() % DAY_SECONDS) + 1


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
