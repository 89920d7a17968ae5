"""Recognises the encoding of a text file."""

from __future__ import annotations

import codecs
from pathlib import Path

from headrace.data.formats.opening import open_unpacked

BLOCK_BYTES = 1 << 20
LOOKED_AT_BYTES = 64 << 20
"""So much of a file is checked for bytes that are not UTF-8."""
SAMPLE_BYTES = 1 << 16
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WESTERN, CENTRAL = "cp1252", "cp1250"
CENTRAL_LETTERS = set("čČąćęłńśźżďěňřťůőűĄĆĘŁŃŚŹŻĎĚŇŘŤŮŐŰ")
"""Letters of languages of Central Europe that the Western code page has other characters for."""
AMBIGUOUS = set("õûÕÛ")
"""Hungarian letters of the central code page, read by the western one; Portuguese and French have others beside them."""
CARONS = b"\x8a\x8e\x9a\x9e"
"""Š, Ž, š and ž in both code pages, which languages of Western Europe do not use."""
COMMON = ("cp125", "koi8", "cp932", "shift", "euc_", "gb", "big5", "cp949", "cp874", "tis", "cp866", "iso2022")
"""Encodings in which tables are found today, by how their names begin; others are taken for a Windows code page."""
FEW_BYTES = 6


def recognised_encoding(path: Path) -> str:
    """Returns the encoding of a text file: by its byte order mark, UTF-8 where all bytes are, else the most likely one."""
    with open_unpacked(path) as file:
        head = file.read(4)
        for mark, name in MARKS.items():
            if head.startswith(mark):
                return name
        sample = head + file.read(BLOCK_BYTES)
        if (wide := _without_mark(sample)) is not None:
            return wide
        decoder, done, block = codecs.getincrementaldecoder("utf-8")(), 0, sample
        while block and done < LOOKED_AT_BYTES:
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return _likely(block[max(0, error.start - SAMPLE_BYTES // 2) : error.start + SAMPLE_BYTES])
            done += len(block)
            block = file.read(BLOCK_BYTES)
    return "utf-8"


def _without_mark(sample: bytes) -> str | None:
    """Returns the encoding of UTF-16 without a byte order mark, in which every other byte of common text is zero."""
    if not sample.count(b"\0"):
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) < len(sample) // 8:
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _likely(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    found = from_bytes(sample).best()
    if found is None:
        return WESTERN
    is_common = found.encoding.startswith(COMMON) and sum(byte > 127 for byte in sample) >= FEW_BYTES
    if found.encoding in (CENTRAL, WESTERN) or WESTERN in found.could_be_from_charset or not is_common:
        return _western_or_central(sample)
    return found.encoding


def _western_or_central(sample: bytes) -> str:
    """Distinguishes the two code pages of Windows for Latin letters, which agree on the letters of German."""
    if not _decodes(sample, WESTERN):
        return CENTRAL if _decodes(sample, CENTRAL) else "latin-1"
    pairs = [(bytes([b]).decode(WESTERN, "ignore"), bytes([b]).decode(CENTRAL, "ignore")) for b in sample if b > 127]
    differing = [(western, central) for western, central in pairs if western != central]
    if not differing or not _decodes(sample, CENTRAL):
        return WESTERN
    central = sum(letter in CENTRAL_LETTERS for _, letter in differing)
    western = sum(letter.isalpha() for letter, _ in differing)
    is_hungarian = {letter for letter, _ in differing} <= AMBIGUOUS
    return CENTRAL if central > western or (central and any(b in CARONS for b in sample)) or is_hungarian else WESTERN


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        sample.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
