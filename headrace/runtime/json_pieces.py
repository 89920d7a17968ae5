"""Large JSON, decoded piece by piece: a decoder keeps Python's lock, and with it every other request, until it is done.

A body of 15 MB took 175 ms at once. Here other threads get their turn after each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any

import msgspec

PIECE_BYTES = 64 * 1024
"""Take less than a millisecond. What is no larger is decoded as a whole."""
MOST_ELEMENTS = 65_536
"""A list of more objects or lists is decoded as a whole: they are too small to be rows."""


class _Object(msgspec.Struct, gc=False):
    """Any object, of which nothing is kept."""


class _List(msgspec.Struct, array_like=True, gc=False):
    """Any list, of which nothing is kept."""


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_counters: dict[bytes, Callable[[bytes], Sized]] = {
    b"{": msgspec.json.Decoder(list[_Object]).decode,
    b"[": msgspec.json.Decoder(list[_List]).decode,
}
"""By an element's first byte; it refuses a list of other elements at the first that it meets."""


def decode(body: bytes) -> Any:
    """Plain values, as `msgspec.json.decode` gives them.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    if len(body) > PIECE_BYTES:
        with suppress(msgspec.ValidationError, UnicodeDecodeError):  # no object, or a fault told by its place in the whole
            return {name: decode_value(raw) for name, raw in _fields(body).items()}
    return msgspec.json.decode(body)


def decode_value(raw: msgspec.Raw) -> Any:
    """The same of what a decoder has looked at and left as it is: a long list comes in pieces of its elements.

    Raises:
        msgspec.ValidationError: a number that no float64 holds.
        UnicodeDecodeError: a text that is not UTF-8.
    """
    text = memoryview(raw)
    if len(text) <= PIECE_BYTES or text[0] != ord("["):
        return msgspec.json.decode(raw)
    found: list[Any] = []
    for piece in _pieces(bytes(text)):
        found += msgspec.json.decode(piece)
    return found


def _pieces(text: bytes) -> Iterator[bytes]:
    """A list as shorter lists, one after another."""
    if all(text.find(mark, 1) < 0 for mark in (b"[", b"{", b'"')):
        return _of_numbers(text)
    count = _counters.get(text[1:PIECE_BYTES].lstrip()[:1])
    # Counted first: an object for each element of a hostile list would take thirty times its bytes.
    if count is None or len(count(text)) > MOST_ELEMENTS:
        return iter((text,))
    return _of_elements(text)


def _of_numbers(text: bytes) -> Iterator[bytes]:
    """A list of numbers, true, false and null alone is cut at its commas."""
    start, last = 1, len(text) - 1
    while start < last:
        end = text.find(b",", start + PIECE_BYTES, last)
        end = last if end < 0 else end
        yield b"[" + text[start:end] + b"]"
        start = end + 1


def _of_elements(text: bytes) -> Iterator[bytes]:
    elements = _elements(text)
    step = max(1, PIECE_BYTES * len(elements) // len(text))
    for start in range(0, len(elements), step):
        yield b"[" + b",".join(elements[start : start + step]) + b"]"
