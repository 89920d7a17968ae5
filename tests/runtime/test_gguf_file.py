"""Files in GGUF: what is read of them is what the package `gguf` wrote, and a file that is damaged is never taken."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import gguf
import pytest

from headrace.runtime.gguf_file import BLOCKS, MAGIC, InvalidGGUF, read_gguf
from tests.tiny_gguf import CONTEXT, CONTROL, HEADS, LAYERS, TEMPLATE, WIDTH, write_tiny_gguf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "model.gguf")


def test_what_a_file_says_about_itself(tiny: Path) -> None:
    found = read_gguf(tiny)
    assert (found.architecture, found.licence, found.context) == ("llama", "apache-2.0", CONTEXT)
    assert found.chat_template == TEMPLATE and tuple(found.control_tokens) == CONTROL
    assert found.size_bytes == tiny.stat().st_size
    assert found.state_bytes(10) == 10 * LAYERS * HEADS * 2 * (WIDTH // HEADS) * 2
    expected = gguf.GGUFReader(tiny)
    assert found.metadata["tokenizer.ggml.tokens"] == expected.fields["tokenizer.ggml.tokens"].contents()
    assert set(found.metadata) == {name for name in expected.fields if not name.startswith("GGUF.")}


def test_sizes_of_blocks_are_those_of_the_format() -> None:
    assert {kind: tuple(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]) for kind in BLOCKS} == BLOCKS


def test_a_file_that_is_cut_short_is_refused(tiny: Path, tmp_path: Path) -> None:
    content, cut = tiny.read_bytes(), tmp_path / "cut.gguf"
    for size in [0, 3, 4, 8, 23, 24, *range(30, len(content), 1511), len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(InvalidGGUF):
            read_gguf(cut)
    cut.write_bytes(content)
    assert read_gguf(cut).architecture == "llama"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4 something else", "does not begin with GGUF"),
        (MAGIC + struct.pack("<IQQ", 1, 1, 0), "version 1"),
        (MAGIC + struct.pack(">IQQ", 3, 1, 0), "version"),
        (MAGIC + struct.pack("<IQQ", 3, 0, 0), "no weights"),
        (MAGIC + struct.pack("<IQQ", 3, 1 << 60, 0), "counts"),
        (MAGIC + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 62) + b"name", "cut short"),
        (MAGIC + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99), "cut short"),
        (MAGIC + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9), "9 dimensions"),
    ],
)
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InvalidGGUF, match=message):
        read_gguf(tmp_path / "x.gguf")


def test_random_damage_is_no_other_error(tiny: Path, tmp_path: Path) -> None:
    chance, content = random.Random(1), tiny.read_bytes()
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(8):
            damaged[chance.randrange(4, 8000)] = chance.randrange(256)
        (tmp_path / "x.gguf").write_bytes(damaged)
        with contextlib.suppress(InvalidGGUF):
            read_gguf(tmp_path / "x.gguf").state_bytes(1)
