"""Large JSON in pieces: the same values and the same errors as from a decoder that takes it whole, and other threads live."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from typing import Any

import msgspec
import numpy as np
import pytest

from bentos.protocols import tensors
from headrace.runtime import json_pieces, number_limits
from headrace.runtime.http import Refused
from headrace.runtime.number_limits import array_of

LARGE = json_pieces.PIECE_BYTES + 1


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few hundred bytes come in several."""
    monkeypatch.setattr(json_pieces, "PIECE_BYTES", 40)
    monkeypatch.setattr(number_limits, "NUMBERS_PER_CHUNK", 7)


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return draw.choice([None, True, False])
    if kind == 1:
        return draw.randrange(-(10**6), 10**6)
    if kind == 2:
        return draw.uniform(-1e9, 1e9)
    if kind in (3, 4):
        return "".join(draw.choice('ab,[]{}":\\ é\n') for _ in range(draw.randrange(12)))
    if kind == 5:
        return {str(i): value(draw, depth + 1) for i in range(draw.randrange(4))}
    return [value(draw, depth + 1) for _ in range(draw.randrange(30))]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", range(60))
def test_it_gives_what_a_decoder_gives(seed: int) -> None:
    draw = random.Random(seed)
    found = {"instances": [value(draw) for _ in range(50)], "numbers": list(range(100)), "else": value(draw)}
    body = json.dumps(found, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5).encode()
    assert json_pieces.decode(body) == msgspec.json.decode(body) == found


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"1," * LARGE + b"1]",
        b'{"a":[' + b" " * LARGE + b"]}",
        b'{"a":[' + b"[]," * LARGE + b"[]]}",
        b'{"a":[' + b"{}," * LARGE + b"1]}",
        b'{"a":"' + b"x" * LARGE + b'"}',
        b'{"a":[1],"a":[' + b"2 , " * LARGE + b"null]}",
        b'{"a":[-1.5e3,' + b"1" * 300 + b"," + b"true," * LARGE + b"false]}",
    ],
    ids=[
        "a bare list",
        "blanks",
        "empty lists",
        "empty objects and one number",
        "one text",
        "a field that is there twice",
        "a number of many digits",
    ],
)
def test_unusual_bodies_come_out_the_same(body: bytes) -> None:
    assert json_pieces.decode(body) == msgspec.json.decode(body)


@pytest.mark.parametrize("row", [b"[1e999]", b'["\xff"]', b"[01]", b"[NaN]", b"[1,]", b'{"x":1e999}', b"[1 2]"])
def test_what_is_no_json_is_told_as_if_it_were_read_whole(row: bytes) -> None:
    body = b'{"instances":[' + b"[1,2]," * LARGE + row + b"]}"
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)) as whole:
        msgspec.json.decode(body)
    with pytest.raises(whole.type) as caught:
        json_pieces.decode(body)
    assert str(caught.value) == str(whole.value)


def test_deep_nesting_stays_refused() -> None:
    with pytest.raises(RecursionError):
        json_pieces.decode(b'{"a":' + b"[" * LARGE)


def inference(*data: str) -> bytes:
    tensors = [f'{{"name":"x{i}","shape":[9],"datatype":"FP32","data":{numbers}}}' for i, numbers in enumerate(data)]
    return f'{{"inputs":[{",".join(tensors)}],"id":"mine"}}'.encode()


@pytest.mark.parametrize("data", [["[1,2.5,3]" + " " * 60], ["[[1,2],[3,4.5]]", '["a,[","b"]'], ["null", "7", '{"a":[1]}'], []])
def test_tensors_in_json_come_out_the_same(data: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensors.parse(inference(*data), "")
    monkeypatch.setattr(json_pieces, "PIECE_BYTES", 4)
    asked, end = tensors.parse(inference(*data), "")
    assert (asked.id, end, [tensor.data for tensor in asked.inputs]) == (
        "mine",
        len(inference(*data)),
        [tensor.data for tensor in whole[0].inputs],
    )


@pytest.mark.parametrize("data", ["[1,1e999]", "[1,,2]", "[01]", "[1"])
def test_tensors_that_are_no_json_are_told_the_same(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused) as whole:
        tensors.parse(inference("[1]", data), "")
    monkeypatch.setattr(json_pieces, "PIECE_BYTES", 4)
    with pytest.raises(Refused) as caught:
        tensors.parse(inference("[1]", data), "")
    assert (caught.value.status, caught.value.message) == (whole.value.status, whole.value.message)


@pytest.mark.parametrize("row", [b"[%b]", b' {"pixels":[%b]}'], ids=["lists", "objects"])
def test_other_threads_get_their_turn_amid_a_large_body(row: bytes) -> None:
    body = b'{"instances":[' + b",".join([row % b",".join([b"17"] * 500)] * 6000) + b"]}"
    numbers = [[17.5] * 500] * 6000
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    turns, over = 0, threading.Event()

    def other() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        before = turns
        json_pieces.decode(body)
        amid = turns
        array_of(numbers, 500)
        assert amid - before >= 5
        assert turns - amid >= 5
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(usual)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "values",
    [[], [1, 2.5], list(range(50)), [[i, i + 0.5] for i in range(40)], [[1, 2]] * 30 + [[2.5, 3]], ["a"] * 20, [True] * 20],
    ids=["none", "few", "whole numbers", "rows", "a fraction late", "texts", "truths"],
)
def test_arrays_come_out_as_numpys(values: list[Any]) -> None:
    found, expected = array_of(values, 2 if values and isinstance(values[0], list) else 1), np.asarray(values)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found == expected).all()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("last", [[1], [1, 2, 3], 1, [[1, 2]]])
def test_a_row_of_another_shape_is_refused_as_by_numpy(last: Any) -> None:
    with pytest.raises(ValueError):
        array_of([[1, 2]] * 30 + [last], 2)
