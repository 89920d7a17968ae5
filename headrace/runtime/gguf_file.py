"""Reads what a GGUF file, llama.cpp's format of language models, says about itself: metadata, vocabulary, sizes. Light.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_ENTRIES = 1 << 24
"""More metadata entries, tensors or elements of an array than any model has: a sign of damage."""
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata values by struct's letters."""
TEXT, ARRAY = 8, 9
BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18)},
}
"""By the type of a tensor: the elements of a block, and its bytes. Types that are not listed are not measured."""
CONTROL_TYPES = (2, 3)
"""Types of tokens that are not text: unknown and control."""
KV_BYTES = 2
"""Bytes of a number in the memory of keys and values (16-bit floats)."""


class InvalidGGUF(ValueError):
    """A file that is not a complete GGUF file; the message says why."""


@dataclass(frozen=True)
class GGUFFile:
    """A model in GGUF."""

    size_bytes: int
    metadata: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def licence(self) -> str | None:
        found = self.metadata.get("general.license") or self.metadata.get("general.license.link")
        return str(found) if found else None

    @property
    def context(self) -> int:
        """The tokens that the model was trained to read at most; 0 if the file does not say it."""
        return self._number("context_length")

    @property
    def chat_template(self) -> str | None:
        found = self.metadata.get("tokenizer.chat_template")
        return str(found) if found else None

    @property
    def control_tokens(self) -> list[str]:
        """Tokens that are not text, such as the end of a message."""
        tokens = self.metadata.get("tokenizer.ggml.tokens") or []
        kinds = self.metadata.get("tokenizer.ggml.token_type") or []
        return [token for token, kind in zip(tokens, kinds, strict=False) if kind in CONTROL_TYPES]

    def state_bytes(self, tokens: int) -> int:
        """Returns the memory for keys and values of `tokens` tokens, as far as the file tells it."""
        layers, width = self._number("block_count"), self._number("embedding_length")
        heads = max(1, self._number("attention.head_count"))
        groups = self._number("attention.head_count_kv") or heads
        key = self._number("attention.key_length") or width // heads
        value = self._number("attention.value_length") or width // heads
        return tokens * layers * groups * (key + value) * KV_BYTES

    def _number(self, name: str) -> int:
        found = self.metadata.get(f"{self.architecture}.{name}", 0)
        found = max(found, default=0) if isinstance(found, list) else found  # one for each layer
        return int(found) if isinstance(found, int | float) else 0


def read_gguf(path: Path) -> GGUFFile:
    """Reads the metadata, and compares the file's size with that of its tensors.

    Raises:
        InvalidGGUF: it is not a GGUF file, of an unknown version, damaged, or truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise InvalidGGUF("it does not begin with GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _read(content, size)
            except (struct.error, OverflowError, UnicodeDecodeError, KeyError):
                raise InvalidGGUF(f"its metadata is cut short or damaged; it has {size:,} bytes") from None


def _read(content: mmap.mmap, size: int) -> GGUFFile:
    reader = _Reader(content)
    reader.position = len(MAGIC)
    version = reader.number("I")
    if version not in VERSIONS:
        raise InvalidGGUF(f"it has version {version} of the format, and {' and '.join(map(str, VERSIONS))} are known")
    tensors, entries = reader.count(), reader.count()
    metadata = {}
    for _ in range(entries):
        name = reader.text()
        metadata[name] = reader.value(int(reader.number("I")))
    end = max((reader.tensor_end() for _ in range(tensors)), default=0)
    alignment = int(metadata.get("general.alignment", 32)) or 32
    needed = -(-reader.position // alignment) * alignment + end
    if not tensors:
        raise InvalidGGUF("it has no weights")
    if needed > size:
        raise InvalidGGUF(f"it is truncated: {size:,} of at least {needed:,} bytes")
    return GGUFFile(size, metadata)


class _Reader:
    """Reads values one after another."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.position = 0

    def number(self, letter: str) -> Any:
        (found,) = struct.unpack_from(f"<{letter}", self._content, self.position)
        self.position += struct.calcsize(f"<{letter}")
        return found

    def count(self) -> int:
        found = int(self.number("Q"))
        if found > MAX_ENTRIES:
            raise InvalidGGUF(f"its metadata is damaged: it counts {found:,} entries")
        return found

    def text(self) -> str:
        length = int(self.number("Q"))
        if self.position + length > len(self._content):
            raise struct.error
        found = self._content[self.position : self.position + length]
        self.position += length
        return found.decode(errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == TEXT:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        if depth > 1:
            raise InvalidGGUF("its metadata is damaged: arrays within arrays")
        inner, count = int(self.number("I")), self.count()
        if inner in (TEXT, ARRAY):
            return [self.value(inner, depth + 1) for _ in range(count)]
        form = f"<{count}{NUMBERS[inner]}"
        found = list(struct.unpack_from(form, self._content, self.position))
        self.position += struct.calcsize(form)
        return found

    def tensor_end(self) -> int:
        """Reads the description of a tensor, and returns the end of its data, counted from where data begins."""
        self.text()
        dimensions = int(self.number("I"))
        if dimensions > MAX_DIMENSIONS:
            raise InvalidGGUF(f"its metadata is damaged: a tensor has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= int(self.number("Q"))
        kind, offset = int(self.number("I")), int(self.number("Q"))
        block, size = BLOCKS.get(kind, (1, 0))
        return offset + -(-elements // block) * size
