"""Delivers the events of the outbox: `python -m headrace.services.events.deliver`, which the watchdog starts when one is due.

Each receiver has a thread, and gets events in their order, one at a time. One that fails is tried again after 10 s, 20 s, 40 s
and so on up to 6 hours, each with jitter, and holds up no other one. An event whose age is beyond the limit of the receiver is
dropped, which is logged and shown by `headrace webhooks`. The process ends when nothing is due.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence

from filelock import FileLock, Timeout

from headrace.console import log
from headrace.errors import HeadraceError
from headrace.events import outbox
from headrace.events.event import Event
from headrace.events.outbox import ReceiverState
from headrace.processes import die_with_parent
from headrace.project import Project, find_project
from headrace.services.events import dead_runs, from_journal
from headrace.services.events.receivers import NotDelivered, Receiver, receivers

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 6 * 3600.0
FEWEST_FAILURES = 6
"""An event is dropped only after this many failures in a row: a clock that jumps forward drops nothing."""
LINGER_SECONDS = 2.0
"""The process waits for what is due this soon instead of ending."""
POLL_SECONDS = 0.1


class Deliveries:
    """The deliveries of one project."""

    def __init__(
        self,
        project: Project,
        wanted: Sequence[Receiver] | None = None,
        clock: Callable[[], float] = time.time,
        first_seconds: float = FIRST_SECONDS,
    ) -> None:
        """
        Args:
            wanted: by default the receivers of the settings.
            first_seconds: the wait after a first failure.
        """
        self._project, self._clock, self._first_seconds = project, clock, first_seconds
        self._receivers = {one.key: one for one in (receivers(project) if wanted is None else wanted)}
        self._threads: dict[str, threading.Thread] = {}
        self._last_error = ""

    def run(self) -> None:
        """Delivers until nothing is due."""
        self.register()
        while True:
            self.collect()
            is_busy = self._start_due()
            if not is_busy and not self._is_due_soon():
                break
            time.sleep(POLL_SECONDS)
        with outbox.opened(self._project) as connection:
            outbox.prune(connection, self._clock())

    def register(self) -> None:
        """Makes the receivers of the outbox those of the settings."""
        with outbox.opened(self._project) as connection:
            outbox.register(connection, [(one.key, one.label, one.events) for one in self._receivers.values()])

    def collect(self) -> None:
        """Takes new events from the journal; a journal that cannot be read is logged, and other events are delivered."""
        with outbox.opened(self._project) as connection:
            try:
                from_journal.take_new_entries(connection, self._project, self._clock())
            except HeadraceError as error:
                if str(error) != self._last_error:
                    log(f"events: {error}")
                self._last_error = str(error)
            for state in outbox.receivers(connection):
                if state.gone:
                    outbox.drop_all(connection, state, "it answered 410 Gone")

    def deliver_to(self, key: str) -> None:
        """Delivers what is due to one receiver."""
        receiver = self._receivers[key]
        with outbox.opened(self._project) as connection:
            while (found := self._next(connection, key)) is not None:
                if not self._attempt(connection, receiver, *found):
                    return

    def _attempt(self, connection: sqlite3.Connection, receiver: Receiver, state: ReceiverState, event: Event) -> bool:
        """Sends an event once; returns whether the next one can follow."""
        now = self._clock()
        try:
            receiver.send(event)
        except NotDelivered as error:
            return self._record_failure(connection, receiver, state, event, error)
        outbox.record_delivery(connection, state, event, now)
        return True

    def _record_failure(
        self, connection: sqlite3.Connection, receiver: Receiver, state: ReceiverState, event: Event, error: NotDelivered
    ) -> bool:
        now, why = self._clock(), str(error)
        if state.error != why or error.gone:
            log(f"events: {receiver.label} did not get {event.type} of {event.model}: {why}")
        wait = max(self._wait(state.failures), error.retry_after or 0.0)
        outbox.record_failure(connection, state, why, now, now + wait, error.gone)
        if state.failures + 1 < FEWEST_FAILURES or now - event.at < receiver.give_up_seconds:
            return False
        outbox.record_dropped(connection, state, event, why)
        log(f"events: {event.type} of {event.model} from {event.time} is dropped for {receiver.label}: {why}")
        return False

    def _wait(self, failures: int) -> float:
        """Seconds until the next attempt: doubled with each failure, between half of that and all of it at random."""
        return min(LONGEST_SECONDS, self._first_seconds * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)

    def _next(self, connection: sqlite3.Connection, key: str) -> tuple[ReceiverState, Event] | None:
        """The state of a receiver and the event that is due for it."""
        state = next((one for one in outbox.receivers(connection) if one.key == key), None)
        if state is None or state.gone or outbox.wait_of(state, self._clock()):
            return None
        event = outbox.next_event(connection, state)
        return None if event is None else (state, event)

    def _start_due(self) -> bool:
        """Starts a thread for each receiver for which something is due, and returns whether any is running."""
        with outbox.opened(self._project) as connection:
            due = [key for key in self._receivers if self._next(connection, key) is not None]
        for key in due:
            if key not in self._threads or not self._threads[key].is_alive():
                self._threads[key] = threading.Thread(target=self._deliver_in_thread, args=(key,), daemon=True)
                self._threads[key].start()
        return any(thread.is_alive() for thread in self._threads.values())

    def _deliver_in_thread(self, key: str) -> None:
        try:
            self.deliver_to(key)
        except (HeadraceError, sqlite3.Error, OSError) as error:
            log(f"events: {self._receivers[key].label}: {error}")
            time.sleep(LINGER_SECONDS)

    def _is_due_soon(self) -> bool:
        with outbox.opened(self._project) as connection:
            wait = outbox.due_in(connection, self._clock())
        return wait is not None and wait <= LINGER_SECONDS


def look_for_dead_runs(project: Project) -> None:
    """Publishes and closes runs that were killed; one that was to release an approved version is made again."""
    try:
        closed = dead_runs.publish_dead_runs(project)
        dead_runs.publish_new_ended_runs(project)
        if closed:
            project.remove_partial_files()
        if any(run.flow == "approval" for run in closed):
            from headrace.services.approvals import synchronise  # it imports much

            synchronise(project, log)  # at once: the watchdog looks at what waits every few minutes
    except (HeadraceError, sqlite3.Error, OSError) as error:
        log(f"events: {error}")


def main() -> int:
    """Publishes what became of killed runs, then delivers all that is due."""
    die_with_parent()
    project = find_project()
    project.locks.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(Timeout), FileLock(project.locks / "events.lock", timeout=0):
            # Prefect may hang: then the deliveries do not wait.
            looking = threading.Thread(target=look_for_dead_runs, args=(project,), daemon=True)
            looking.start()
            Deliveries(project).run()
            looking.join()
            Deliveries(project).run()
    except (HeadraceError, sqlite3.Error, OSError) as error:
        log(f"events: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
