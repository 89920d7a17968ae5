"""Writes small workbooks: xlsx, xlsb, xls and ods, also with cells far apart."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAIN, RELATED = "http://schemas.openxmlformats.org/spreadsheetml/2006/main", "http://schemas.openxmlformats.org"
OFFICE = f"{RELATED}/officeDocument/2006/relationships"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
OPEN = "urn:oasis:names:tc:opendocument:xmlns"
SECTOR = 512

Cells = Sequence[tuple[int, int, float]]
"""Row, column and number."""


def xlsx(path: Path, rows: list[list[Any]]) -> None:
    """Writes an xlsx with two sheets; the rows are on the second one, named `Orders`."""

    def cell(value: Any) -> str:
        if value is None:
            return "<c/>"
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    write_xlsx(path, "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows))


def write_xlsx(path: Path, body: str) -> None:
    """Writes an xlsx with these rows of XML on its second sheet."""
    sheet = f'<worksheet xmlns="{MAIN}"><sheetData>{{}}</sheetData></worksheet>'
    parts = "".join(f'<Override PartName="/xl/worksheets/s{i}.xml" ContentType="{KIND}.worksheet+xml"/>' for i in (1, 2))
    types = f'<Override PartName="/xl/workbook.xml" ContentType="{KIND}.sheet.main+xml"/>{parts}'
    sheets = '<sheet name="Notes" sheetId="1" r:id="r1"/><sheet name="Orders" sheetId="2" r:id="r2"/>'
    xml = '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    xml += '<Default Extension="xml" ContentType="application/xml"/>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{RELATED}/package/2006/content-types">{xml}{types}</Types>')
        archive.writestr("_rels/.rels", _relations({"r1": ("officeDocument", "xl/workbook.xml")}))
        archive.writestr("xl/workbook.xml", f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}"><sheets>{sheets}</sheets></workbook>')
        rels = {f"r{i}": ("worksheet", f"worksheets/s{i}.xml") for i in (1, 2)}
        archive.writestr("xl/_rels/workbook.xml.rels", _relations(rels))
        archive.writestr("xl/worksheets/s1.xml", sheet.format("<row><c><v>1</v></c></row>"))
        archive.writestr("xl/worksheets/s2.xml", sheet.format(body))


def _relations(found: dict[str, tuple[str, str]]) -> str:
    each = "".join(f'<Relationship Id="{i}" Type="{OFFICE}/{kind}" Target="{to}"/>' for i, (kind, to) in found.items())
    return f'<Relationships xmlns="{RELATED}/package/2006/relationships">{each}</Relationships>'


def xlsb(path: Path, cells: Cells) -> None:
    """Writes an xlsb with one sheet of numbers ([MS-XLSB] 2.1.4)."""
    name, relation = "S".encode("utf-16-le"), "r1".encode("utf-16-le")
    sheet = struct.pack("<II", 0, 1) + struct.pack("<I", 2) + relation + struct.pack("<I", 1) + name
    rows = b"".join(
        _record(0, struct.pack("<IIHHBI", row, 0, 300, 0, 0, 0)) + _record(5, struct.pack("<IId", column, 0, number))
        for row, column, number in cells
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_rels/.rels", _relations({"r1": ("officeDocument", "xl/workbook.bin")}))
        archive.writestr("xl/_rels/workbook.bin.rels", _relations({"r1": ("worksheet", "worksheets/sheet1.bin")}))
        archive.writestr("xl/workbook.bin", _record(131) + _record(143) + _record(156, sheet) + _record(144) + _record(132))
        far = struct.pack("<IIII", 0, max(row for row, _, _ in cells), 0, max(column for _, column, _ in cells))
        content = _record(129) + _record(148, far) + _record(145) + rows + _record(146) + _record(130)
        archive.writestr("xl/worksheets/sheet1.bin", content)


def _record(number: int, data: bytes = b"") -> bytes:
    head = bytes([number]) if number < 128 else bytes([number & 0x7F | 0x80, number >> 7])
    return head + bytes([len(data)]) + data


def xls(path: Path, cells: Cells, sheets: int = 1) -> None:
    """Writes an xls with sheets of the same numbers ([MS-XLS] 2.1, in a compound file of [MS-CFB])."""

    def record(number: int, data: bytes = b"") -> bytes:
        return struct.pack("<HH", number, len(data)) + data

    begin, end = struct.pack("<HHHHII", 0x0600, 0, 0x0DBB, 0x07CC, 0, 6), record(0x000A)
    body = b"".join(record(0x0203, struct.pack("<HHHd", row, column, 0, number)) for row, column, number in cells)
    sheet = record(0x0809, begin[:2] + b"\x10\x00" + begin[4:]) + body + end
    bounds = [record(0x0085, struct.pack("<IBBBB", 0, 0, 0, 2, 0) + f"{i:02}".encode()) for i in range(sheets)]
    head = record(0x0809, begin[:2] + b"\x05\x00" + begin[4:])
    start = len(head) + sum(map(len, bounds)) + len(end)
    bounds = [
        record(0x0085, struct.pack("<IBBBB", start + i * len(sheet), 0, 0, 2, 0) + f"{i:02}".encode()) for i in range(sheets)
    ]
    path.write_bytes(_compound(head + b"".join(bounds) + end + sheet * sheets))


def _compound(stream: bytes) -> bytes:
    """Returns a compound file with the one stream `Workbook`: header, table of sectors, directory, stream."""
    stream = stream.ljust(max(8 * SECTOR, -(-len(stream) // SECTOR) * SECTOR), b"\0")
    count = len(stream) // SECTOR
    table = [0xFFFFFFFD, 0xFFFFFFFE, *range(3, count + 2), 0xFFFFFFFE]
    table += [0xFFFFFFFF] * (SECTOR // 4 - len(table))
    fixed = struct.pack("<HHHHH6sIIIIIIIII", 0x3E, 3, 0xFFFE, 9, 6, b"", 0, 1, 1, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0)
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + fixed + struct.pack("<109I", 0, *[0xFFFFFFFF] * 108)

    def entry(name: str, kind: int, child: int, start: int, size: int) -> bytes:
        text = name.encode("utf-16-le") + b"\0\0"
        links = struct.pack("<BBIII", kind, 1, 0xFFFFFFFF, 0xFFFFFFFF, child)
        rest = struct.pack("<IIQ", start, size, 0)[:8] + bytes(4)
        return text.ljust(64, b"\0") + struct.pack("<H", len(text)) + links + bytes(36) + rest

    directory = entry("Root Entry", 5, 1, 0xFFFFFFFE, 0) + entry("Workbook", 2, 0xFFFFFFFF, 2, len(stream))
    return header + struct.pack(f"<{SECTOR // 4}I", *table) + directory.ljust(SECTOR, b"\0") + stream


def ods(path: Path, rows: str) -> None:
    """Writes an OpenDocument sheet with these rows of XML."""
    names = " ".join(f'xmlns:{name}="{OPEN}:{name}:1.0"' for name in ("office", "table", "text"))
    table = f'<table:table table:name="S">{rows}</table:table>'
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = f'<m:file-entry m:full-path="/" m:media-type="{kind}"/>'
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", kind)
        archive.writestr("META-INF/manifest.xml", f'<m:manifest xmlns:m="{OPEN}:manifest:1.0">{entry}</m:manifest>')
        body = f"<office:body><office:spreadsheet>{table}</office:spreadsheet></office:body>"
        archive.writestr("content.xml", f"<office:document-content {names}>{body}</office:document-content>")


def ods_cell(number: float, columns: int = 1) -> str:
    """Returns a cell, repeated in this many columns."""
    return (
        f'<table:table-cell office:value-type="float" office:value="{number}" table:number-columns-repeated="{columns}">'
        f"<text:p>{number}</text:p></table:table-cell>"
    )
