"""Daily quotas in rows, counted exactly across all replicas: in Redis, or in a folder that the replicas of a machine share.

The rows granted on one UTC day never exceed the quota, and a refused request takes nothing from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
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
KEPT_FILES = 10
"""Days that a folder keeps: a clock that jumps ahead and back makes files of later days, and must not remove today's."""
STORE_SECONDS = 0.5
"""Timeout of a store."""
RETRY_SECONDS = 1.0
"""After a timeout the store is not asked again for so long, so that requests do not wait for it."""


class StoreDown(Exception):
    """The store does not answer."""


class Store(Protocol):
    """Counts rows by tenant and day."""

    async def take(self, tenant: str, day: str, rows: int, limit: int) -> bool:
        """Adds `rows` if the sum stays within `limit`, and returns whether it did; negative `rows` are returned to the quota.

        Raises:
            StoreDown: the store does not answer.
        """
        ...


class Quotas:
    """Enforces daily quotas, also while the store is down."""

    def __init__(self, store: Store | None, serves_when_down: bool, count_unchecked: Callable[[], None]) -> None:
        self._store = store
        self._serves_when_down = serves_when_down
        self._count_unchecked = count_unchecked
        self._down_until = 0.0
        self._is_down = False

    async def take(self, caller: Caller, rows: int, spent: dict[str, int] | None = None) -> bool:
        """Takes `rows` from the caller's quota for today, and returns whether enough were left.

        Args:
            spent: rows taken so far, by day; what is taken now is added.

        Raises:
            Refused: 503, the store does not answer, and requests are refused in this case (HEADRACE_QUOTA_WHEN_DOWN).
        """
        assert caller.rows_per_day is not None
        day = today()
        try:
            is_granted = await self._ask(caller, day, rows)
            if is_granted and spent is not None:
                spent[day] = spent.get(day, 0) + rows
            return is_granted
        except StoreDown as reason:
            self._mark_down(reason)
        if not self._serves_when_down:
            message = "the quota store does not answer; try again"
            raise Refused(503, "quota_unavailable", message, {"retry-after": "1"})
        self._count_unchecked()
        return True

    async def give_back(self, caller: Caller, spent: dict[str, int]) -> None:
        """Returns the rows of a request that was then refused for another reason, to the days that they were taken from."""
        with contextlib.suppress(StoreDown):
            for day, rows in spent.items():
                await self._ask(caller, day, -rows)

    async def _ask(self, caller: Caller, day: str, rows: int) -> bool:
        if self._store is None:
            raise StoreDown("HEADRACE_QUOTAS is not set")
        if time.monotonic() < self._down_until:
            raise StoreDown("it did not answer a moment ago")
        found = await self._store.take(caller.tenant, day, rows, caller.rows_per_day or 0)
        if self._is_down:
            self._is_down = False
            logger.warning("the quota store answers again")
        return found

    def _mark_down(self, reason: StoreDown) -> None:
        """Logs the failure once, not with every request."""
        if not self._is_down:
            self._is_down = True
            served = "served unchecked" if self._serves_when_down else "refused"
            logger.error("the quota store does not answer: %s; requests with a quota are %s until it does", reason, served)
        if time.monotonic() >= self._down_until:
            self._down_until = time.monotonic() + RETRY_SECONDS


class RedisStore:
    """Counts in Redis, through the storage of `limits`; one script checks and adds, so that callers cannot interfere."""

    TAKE = """
    local used = tonumber(redis.call('get', KEYS[1]) or '0')
    local rows, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
    if rows > 0 and used + rows > limit then return 0 end
    redis.call('set', KEYS[1], math.max(0, used + rows), 'ex', ARGV[3])
    return 1
    """

    def __init__(self, address: str, project: str = "") -> None:
        """
        Args:
            project: distinguishes the tenants of projects that share a Redis.
        """
        from limits.aio.storage.redis import RedisStorage

        self._address, self._prefix = address, f"headrace:{project}:rows" if project else "headrace:rows"
        # It connects with the first request, not now.
        bridge: Any = RedisStorage(f"async+{address}", implementation="redispy", key_prefix="headrace").bridge
        self._script = bridge.get_connection().register_script(self.TAKE)

    async def take(self, tenant: str, day: str, rows: int, limit: int) -> bool:
        try:
            async with asyncio.timeout(STORE_SECONDS):
                keys = [f"{self._prefix}:{day}:{tenant}"]
                return bool(await self._script(keys=keys, args=[rows, limit, KEPT_DAYS * DAY_SECONDS]))
        except TimeoutError:
            raise StoreDown(f"{_without_password(self._address)} did not answer within {STORE_SECONDS:g} s") from None
        except Exception as error:  # of the client library's many kinds, each means that nothing was granted
            raise StoreDown(f"{_without_password(self._address)}: {type(error).__name__}") from error


class LocalStore:
    """Counts in one file per day, in which processes lock single records: 5 microseconds per request; Redis takes 100.

    A record is a count of 8 bytes and the tenant's name. It is locked while it is read and changed; the kernel releases the
    lock of a process that dies.
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
                self._open(day)
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
        except (OSError, struct.error) as error:  # the latter if the file was cut under this process
            self._day = ""  # opens the file again: it may have been replaced
            reason = error.strerror or error if isinstance(error, OSError) else "the file was cut short"
            raise StoreDown(f"{self._folder}: {reason}") from error

    async def _find(self, name: bytes) -> int:
        """Returns the offset of the tenant's record, appended if new.

        The first record has the number of the others, and its first byte is the lock for appending.

        Raises:
            OSError: the file is shorter than its records, and cannot tell who has taken how much.
        """
        size = self.RECORD
        await self._lock(0, 1)
        try:
            end = os.fstat(self._file).st_size
            known = self.COUNT.unpack(os.pread(self._file, self.COUNT.size, 0))[0] if end >= self.COUNT.size else 0
            if end < (known + 1) * size and known:
                hint = f"remove rows-{self._day}.bin to count this day's rows from 0"
                raise OSError(errno.EIO, f"damaged file: {known} records do not fit {end} bytes; {hint}")
            content = os.pread(self._file, end, 0)
            last = max(size, -(-end // size) * size)  # skips a record that a kill cut short
            for place in range(size, len(content) - size + 1, size):
                if content[place + self.COUNT.size : place + size].rstrip(b"\0") == name:
                    return place
            os.pwrite(self._file, self.COUNT.pack(0) + name.ljust(size - self.COUNT.size, b"\0"), last)
            os.pwrite(self._file, self.COUNT.pack(last // size), 0)
            return last
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    async def _lock(self, start: int, length: int) -> None:
        """Waits for a lock that others hold for microseconds, unless one of them was stopped meanwhile."""
        until = time.monotonic() + STORE_SECONDS
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.0005)

    def _open(self, day: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._folder / f"rows-{day}.bin", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(file, 0o666)  # replicas in containers run as another user; the parent folder is private
        if self._file >= 0:
            os.close(self._file)
        self._day, self._file, self._places = day, file, {}
        for old in sorted(self._folder.glob("rows-*.bin"))[:-KEPT_FILES]:
            with contextlib.suppress(OSError):
                old.unlink()


def open_store(place: str) -> Store | None:
    """Opens the store at an address, for example `redis://127.0.0.1:6379#PROJECT`, or in a folder; None if `place` is empty."""
    if not place:
        return None
    if "://" not in place:
        return LocalStore(Path(place))
    address, _, project = place.partition("#")
    return RedisStore(address, project)


def today() -> str:
    """Returns the UTC day, as `2026-11-24`."""
    return datetime.now(UTC).date().isoformat()


def seconds_to_next_day() -> int:
    return int(DAY_SECONDS - time.time() % DAY_SECONDS) + 1


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
