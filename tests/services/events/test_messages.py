"""The words of a notification are one title line and plain lines, with the command that continues; hostile text stays text."""

from __future__ import annotations

import pytest

from headrace.event_names import DESCRIPTIONS, EVENT_NAMES, EventName
from headrace.events.event import Event, plain
from headrace.services.events.messages import text_of, title_of


@pytest.mark.parametrize("name", EVENT_NAMES)
def test_each_event_has_words(name: EventName) -> None:
    event = Event(name, "tiny", {"version": "3", "reasons": ["the rows differ"]})
    assert title_of(event) == f"tiny@3: {name.replace('-', ' ')}"
    assert text_of(event).splitlines()[:2] == [DESCRIPTIONS[name], "the rows differ"] and event.time in text_of(event)


def test_the_command_that_continues_is_the_last_line() -> None:
    assert text_of(Event("alarm", "tiny", {"version": "3"})).splitlines()[-1] == "headrace drift tiny"
    assert text_of(Event("awaiting-approval", "tiny", {"version": "3"})).splitlines()[-1] == "headrace approve tiny@3"
    assert text_of(Event("failed", "tiny", {"hint": "add some rows"})).splitlines()[-1] == "add some rows"


def test_a_version_with_line_breaks_adds_no_header_to_a_mail() -> None:
    hostile = plain({"version": "3\r\nBcc: all@example.org", "reason": "a\x1b]0;title\x07"})
    event = Event("released", "tiny", hostile)
    assert "\n" not in title_of(event) and "\r" not in title_of(event)
    assert "\x1b" not in text_of(event) and "\x07" not in text_of(event)
