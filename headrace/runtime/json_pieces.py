"""Decodes large JSON in pieces, because a decoder holds the GIL, and so delays every other request, until it is done.

A body of 15 MB took 175 ms as a whole. Here other threads can run after each piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Any

import msgspec

PIECE_BYTES = 64 * 1024
"""Size of a piece, which takes less than a millisecond. A smaller body is decoded as a whole."""
MAX_ELEMENTS = 65_536
"""A list of more objects or lists is decoded as a whole: its elements are too small to be rows."""


class _Object(msgspec.Struct, gc=False):
    """Any JSON object; its fields are skipped."""


class _List(msgspec.Struct, array_like=True, gc=False):
    """Any JSON list; its elements are skipped."""


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_counters: dict[bytes, Callable[[bytes], Sized]] = {
    b"{": msgspec.json.Decoder(list[_Object]).decode,
    b"[": msgspec.json.Decoder(list[_List]).decode,
}
"""Decoders that count elements, by an element's first byte; each fails at the first element of another type."""


def decode(body: bytes) -> Any:
    """Decodes a body into plain values, with the result of `msgspec.json.decode`.

    Raises:
        msgspec.MsgspecError, UnicodeDecodeError: the JSON is invalid.
        RecursionError: it is nested too deeply.
    """
    if len(body) > PIECE_BYTES:
        with suppress(msgspec.ValidationError, UnicodeDecodeError):  # not an object, or an error, which is raised below
            return {name: decode_value(raw) for name, raw in _fields(body).items()}
    return msgspec.json.decode(body)


def decode_value(raw: msgspec.Raw) -> Any:
    """Decodes a raw value that a decoder has checked already; a long list is decoded in pieces.

    Raises:
        msgspec.ValidationError: a number exceeds float64.
        UnicodeDecodeError: a text is not UTF-8.
    """
    text = memoryview(raw)
    if len(text) <= PIECE_BYTES or text[0] != ord("["):
        return msgspec.json.decode(raw)
    found: list[Any] = []
    for piece in _pieces(bytes(text)):
        found += msgspec.json.decode(piece)
    return found


def _pieces(text: bytes) -> Iterator[bytes]:
    """Splits a list into shorter lists."""
    if all(text.find(mark, 1) < 0 for mark in (b"[", b"{", b'"')):
        return _split_numbers(text)
    count = _counters.get(text[1:PIECE_BYTES].lstrip()[:1])
    # Count first: an object for each element of a hostile list would take thirty times its bytes.
    if count is None or len(count(text)) > MAX_ELEMENTS:
        return iter((text,))
    return _split_elements(text)


def _split_numbers(text: bytes) -> Iterator[bytes]:
    """Splits a list of numbers, booleans and nulls at its commas."""
    start, last = 1, len(text) - 1
    while start < last:
        end = text.find(b",", start + PIECE_BYTES, last)
        end = last if end < 0 else end
        yield b"[" + text[start:end] + b"]"
        start = end + 1


def _split_elements(text: bytes) -> Iterator[bytes]:
    elements = _elements(text)
    step = max(1, PIECE_BYTES * len(elements) // len(text))
    for start in range(0, len(elements), step):
        yield b"[" + b",".join(elements[start : start + step]) + b"]"
