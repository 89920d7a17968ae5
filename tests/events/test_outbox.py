"""The outbox keeps events in order, through kills and with a bounded size; what is published is harmless to show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import DamagedFile
from headrace.events import outbox
from headrace.events.event import MAX_BYTES, Event, clean
from headrace.events.publish import keep_silent, publish
from headrace.project import Project

CHILD = """
import sys
from headrace.events.publish import publish
from headrace.project import Project
project = Project(__import__("pathlib").Path(sys.argv[1]))
for number in range(100_000):
    assert publish(project, "released", "tiny", {"version": str(number)})
    print(number, flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def pending(project: Project, key: str = "one") -> list[Event]:
    """All that a receiver has still to get, taken from the outbox."""
    found = []
    with outbox.opened(project) as connection:
        while event := outbox.next_event(connection, state_of(project, key)):
            found.append(event)
            outbox.record_delivery(connection, state_of(project, key), event, 0.0)
    return found


def state_of(project: Project, key: str) -> outbox.ReceiverState:
    with outbox.opened(project) as connection:
        return next(state for state in outbox.receivers(connection) if state.key == key)


def register(project: Project, *keys: str) -> None:
    with outbox.opened(project) as connection:
        outbox.register(connection, [(key, f"receiver {key}", ("released", "alarm")) for key in keys])


def test_a_receiver_gets_its_events_in_their_order_and_one_of_a_key_once(project: Project) -> None:
    for version in ("1", "2"):
        assert publish(project, "released", "tiny", {"version": version}, key=f"release {version}")
    publish(project, "data-added", "tiny", {})
    publish(project, "released", "tiny", {"version": "1"}, key="release 1")
    register(project, "one")
    assert [(event.name, event.data["version"], event.seq) for event in pending(project)] == [
        ("released", "1", 1),
        ("released", "2", 2),
    ]


def test_a_later_receiver_gets_what_follows_and_one_that_is_removed_is_forgotten(project: Project) -> None:
    register(project, "one")
    publish(project, "alarm", "tiny", {"version": "1"})
    register(project, "one", "two")
    publish(project, "alarm", "tiny", {"version": "2"})
    assert [event.data["version"] for event in pending(project, "two")] == ["2"]
    assert len(pending(project, "one")) == 2
    register(project, "two")
    with outbox.opened(project) as connection:
        assert [state.key for state in outbox.receivers(connection)] == ["two"]


def test_what_was_published_survives_a_kill(project: Project) -> None:
    command = [sys.executable, "-c", CHILD, str(project.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        while int(child.stdout.readline()) < 20:
            pass
        os.kill(child.pid, signal.SIGKILL)
        last = max(map(int, ["20", *child.stdout.read().split()]))
    register(project, "one")
    versions = [int(event.data["version"]) for event in pending(project)]
    assert versions == list(range(len(versions))) and len(versions) > last


def test_the_outbox_is_bounded_and_counts_what_it_drops(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_EVENTS", 3)
    register(project, "one")
    for version in range(5):
        publish(project, "released", "tiny", {"version": str(version)})
    state = state_of(project, "one")
    assert state.dropped == 2 and "headrace.released tiny: the outbox held 3 events" in state.dropped_last
    assert [event.data["version"] for event in pending(project)] == ["2", "3", "4"]


def test_an_event_that_is_known_otherwise_is_kept_silent(project: Project) -> None:
    keep_silent(project, "end of run 7")
    publish(project, "alarm", "tiny", {}, key="end of run 7")
    register(project, "one")
    assert pending(project) == []


def test_hostile_text_becomes_harmless(project: Project) -> None:
    hostile = "a\x1b[31mred\x00\u202egnp.exe\ud800\r\nBcc: all@example.org" + "x" * 5000
    register(project, "one")
    publish(project, "alarm", "tiny", {"reasons": [hostile] * 200, hostile: {"deep": [[[[[[hostile]]]]]]}, "nan": float("nan")})
    (event,) = pending(project)
    text = event.data_json()
    assert len(text) <= MAX_BYTES and json.loads(text)["nan"] == "nan"
    assert not any(character in json.loads(text)["nan"] + clean(hostile) for character in "\x1b\x00\u202e\ud800\r")
    assert clean("a\tb\nc") == "a\tb\nc" and len(clean(hostile)) == 2000


def test_an_outbox_that_cannot_be_written_stops_nobody(project: Project) -> None:
    path = outbox.database(project)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 100)
    lines: list[str] = []
    assert not publish(project, "released", "tiny", {"version": "1"}, report=lines.append)
    assert lines[0].startswith("the event headrace.released of tiny could not be written to")
    with pytest.raises(DamagedFile, match="not a database") as caught, outbox.opened(project):
        pass
    assert "headrace down; mv" in str(caught.value.hint)
