"""Quotas in rows and in tokens, counted exactly across all replicas: in Redis, or in a folder that the replicas of a machine
share.

What is granted in one UTC day, or in one minute of the clock, never exceeds the quota, and a refused request takes nothing
from it.
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
from typing import Any, Literal, Protocol

from headrace.runtime.http import Refused
from headrace.runtime.token_verifier import Caller

logger = logging.getLogger("headrace.quota")
Unit = Literal["rows", "tokens", "tokens-by-minute"]
"""What is counted: each has counts of its own for each tenant and period."""
DAY_SECONDS, MINUTE_SECONDS = 86_400, 60
KEPT_PERIODS = 2
KEPT_FILES = 10
"""Periods that a folder keeps: a clock that jumps ahead and back makes files of later days, and must not remove today's."""
OPEN_FILES = 12
"""Periods whose files a process has open: a request returns what it has not used to the minute in which it began."""
NO_LIMIT = 2**53
STORE_SECONDS = 0.5
"""Timeout of a store."""
RETRY_SECONDS = 1.0
"""After a timeout the store is not asked again for so long, so that requests do not wait for it."""


class StoreDown(Exception):
    """The store does not answer."""


class Store(Protocol):
    """Counts rows or tokens by tenant and period."""

    async def take(
        self, tenant: str, period: str, amount: int, limit: int, least: int | None = None, unit: Unit = "rows"
    ) -> int:
        """Adds to a count as much of `amount` as keeps it within `limit`, but at least `least` or nothing; by default all of
        it or nothing. Returns what was added. A negative `amount` is returned to the quota.

        Raises:
            StoreDown: the store does not answer.
        """
        ...


class Quotas:
    """Enforces quotas, also while the store is down."""

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
        granted = await self.grant("rows", caller.tenant, day, caller.rows_per_day, rows)
        if granted is None:
            return True
        if granted and spent is not None:
            spent[day] = spent.get(day, 0) + rows
        return bool(granted)

    async def grant(
        self, unit: Unit, tenant: str, period: str, limit: int, amount: int, least: int | None = None
    ) -> int | None:
        """Takes from a quota as `Store.take`, and returns what was granted; None if the store is down and requests are served.

        Raises:
            Refused: 503, the store does not answer, and requests are refused in this case (HEADRACE_QUOTA_WHEN_DOWN).
        """
        try:
            return await self._ask(tenant, period, amount, limit, least, unit)
        except StoreDown as reason:
            self._mark_down(reason)
        if not self._serves_when_down:
            message = "the quota store does not answer; try again"
            raise Refused(503, "quota_unavailable", message, {"retry-after": "1"})
        self._count_unchecked()
        return None

    async def give_back(self, caller: Caller, spent: dict[str, int], unit: Unit = "rows") -> None:
        """Returns rows or tokens that a request has taken and not used, to the periods that they were taken from; negative
        ones were used beyond what was taken."""
        with contextlib.suppress(StoreDown):
            for period, amount in spent.items():
                if amount:
                    await self._ask(caller.tenant, period, -amount, NO_LIMIT, None, unit)

    async def _ask(self, tenant: str, period: str, amount: int, limit: int, least: int | None, unit: Unit) -> int:
        if self._store is None:
            raise StoreDown("HEADRACE_QUOTAS is not set")
        if time.monotonic() < self._down_until:
            raise StoreDown("it did not answer a moment ago")
        found = await self._store.take(tenant, period, amount, limit, least, unit)
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
    local amount, limit, least = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    if amount > 0 and used + amount > limit then
        amount = limit - used
        if amount < least then return 0 end
    end
    redis.call('set', KEYS[1], math.max(0, used + amount), 'ex', ARGV[4])
    return amount
    """

    def __init__(self, address: str, project: str = "") -> None:
        """
        Args:
            project: distinguishes the tenants of projects that share a Redis.
        """
        from limits.aio.storage.redis import RedisStorage

        self._address, self._prefix = address, f"headrace:{project}" if project else "headrace"
        # It connects with the first request, not now.
        bridge: Any = RedisStorage(f"async+{address}", implementation="redispy", key_prefix="headrace").bridge
        self._script = bridge.get_connection().register_script(self.TAKE)

    async def take(
        self, tenant: str, period: str, amount: int, limit: int, least: int | None = None, unit: Unit = "rows"
    ) -> int:
        kept = KEPT_PERIODS * (MINUTE_SECONDS if unit == "tokens-by-minute" else DAY_SECONDS)
        arguments = [amount, limit, amount if least is None else least, kept]
        try:
            async with asyncio.timeout(STORE_SECONDS):
                return int(await self._script(keys=[f"{self._prefix}:{unit}:{period}:{tenant}"], args=arguments))
        except TimeoutError:
            raise StoreDown(f"{_without_password(self._address)} did not answer within {STORE_SECONDS:g} s") from None
        except Exception as error:  # of the client library's many kinds, each means that nothing was granted
            raise StoreDown(f"{_without_password(self._address)}: {type(error).__name__}") from error


class LocalStore:
    """Counts in files that the processes of a machine share: 5 microseconds per request; Redis takes 100."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[tuple[Unit, str], CountFile] = {}

    async def take(
        self, tenant: str, period: str, amount: int, limit: int, least: int | None = None, unit: Unit = "rows"
    ) -> int:
        try:
            counts = self._open.get((unit, period)) or self._open_file(unit, period)
            return await counts.take(tenant, amount, limit, amount if least is None else least)
        except (OSError, struct.error) as error:  # the latter if the file was cut under this process
            if broken := self._open.pop((unit, period), None):  # opens it again: it may have been replaced
                broken.close()
            reason = error.strerror or error if isinstance(error, OSError) else "the file was cut short"
            raise StoreDown(f"{self._folder}: {reason}") from error

    def _open_file(self, unit: Unit, period: str) -> CountFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        counts = self._open[unit, period] = CountFile(self._folder / f"{unit}-{period}.bin")
        for old in sorted(self._folder.glob(f"{unit}-[0-9]*.bin"))[:-KEPT_FILES]:
            with contextlib.suppress(OSError):
                old.unlink()
        while len(self._open) > OPEN_FILES:
            self._open.pop(next(iter(self._open))).close()
        return counts


class CountFile:
    """The counts of one unit in one period: a file in which processes lock single records.

    A record is a count of 8 bytes and the tenant's name. It is locked while it is read and changed; the kernel releases the
    lock of a process that dies.
    """

    RECORD = 256
    COUNT = struct.Struct("<Q")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):
            os.fchmod(self._file, 0o666)  # replicas in containers run as another user; the parent folder is private
        self._places: dict[str, int] = {}

    def close(self) -> None:
        os.close(self._file)

    async def take(self, tenant: str, amount: int, limit: int, least: int) -> int:
        """Takes as `Store.take`.

        Raises:
            OSError, struct.error: the file cannot be read or written.
        """
        place = self._places.get(tenant)
        if place is None:
            place = self._places[tenant] = await self._find(tenant.encode()[: self.RECORD - self.COUNT.size])
        await self._lock(place, self.COUNT.size)
        try:
            (used,) = self.COUNT.unpack(os.pread(self._file, self.COUNT.size, place))
            if amount > 0 and used + amount > limit:
                amount = limit - used
                if amount < least:
                    return 0
            os.pwrite(self._file, self.COUNT.pack(max(0, used + amount)), place)
            return amount
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, self.COUNT.size, place)

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
                hint = f"remove {self._path.name} to count from 0"
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


def this_minute() -> str:
    """Returns the UTC minute, as `2026-11-24T09:42`."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M")


def seconds_to_next_day() -> int:
    return int(DAY_SECONDS - time.time() % DAY_SECONDS) + 1


def _without_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
