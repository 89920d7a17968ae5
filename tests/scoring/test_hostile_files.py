"""Files that are made to use up the memory end with an error, or are read, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import json
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.runtime.contract import Contract
from headrace.runtime.images import MEDIA_TYPES
from headrace.runtime.input_field import InputField
from tests.paths import ROOT
from tests.scoring.scored import score

MEMORY_BYTES = 1 << 30
MEBIBYTE = b"a" * (1 << 20)
SCRIPT = """
import json, sys
from pathlib import Path
from headrace.scoring.rows import BadFile
from tests.scoring.scored import score
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        lines = score(path)[1]
        found = [(line.get("error") or {}).get("message") for line in lines[:3]]
    except BadFile as error:
        found = error.message
    print(json.dumps([path.name, found]))
"""


def large_cell(handle: Any, mebibytes: int = 40) -> None:
    for _ in range(mebibytes):
        handle.write(MEBIBYTE)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each file, in one process that may use a gibibyte."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = b"price,store\n" + b"1,3\n" * (1 << 18)
    with gzip.open(folder / "bomb.csv", "wb") as handle:
        handle.write(rows)
        for _ in range(80):
            handle.write(b"1,3\n" * (1 << 18))
    bomb = (folder / "bomb.csv").read_bytes()
    (folder / "bomb_bz2").write_bytes(bz2.compress(rows + MEBIBYTE * 80))
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("r.csv", "w") as member:
        large_cell(member, 80)
    assert len(bomb) < 3_000_000
    with (folder / "cell.csv").open("wb") as handle:
        handle.write(b"price,store\n1,3\n2,")
        large_cell(handle, 100)
        handle.write(b"\n3,17\n")
    with (folder / "quoted.csv").open("wb") as handle:
        handle.write(b'price,store\n1,3\n2,"')
        for _ in range(40):
            handle.write(MEBIBYTE + b"\n")
    with (folder / "line.jsonl").open("wb") as handle:
        handle.write(b'{"price": 1, "store": 3}\n{"price": "')
        large_cell(handle)
        handle.write(b'"}\n{"price": 3, "store": 17}\n')
    with (folder / "header.csv").open("wb") as handle:
        large_cell(handle)
    (folder / "nuls.csv").write_bytes(b"price,store\n1,3\x00\n\x00,17\n")
    (folder / "only_nuls").write_bytes(bytes(40 << 20))
    wide = ",".join(f"c{i}" for i in range(10_000))
    (folder / "wide.csv").write_text(f"{wide},price,store\n" + f"{',' * 10_000}1,3\n" * 3)
    text = pa.array(["a" * (100 << 20)]).dictionary_encode()
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), text.dictionary)
    table = pa.table({"price": pa.array([1.0] * 500), "store": ["3"] * 500, "note": cells})
    pq.write_table(table, folder / "cells.parquet", compression="zstd")
    pq.write_table(table, folder / "plain.parquet", compression="zstd", store_schema=False)  # read as 500 texts
    assert (folder / "cells.parquet").stat().st_size < 1_000_000

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))

    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bomb.csv", "the file unpacks to more than 500 times its size"),
        ("bomb_bz2", "the file unpacks to more than 500 times its size"),
        ("bomb.zip", "the file unpacks to more than 500 times its size"),
        ("cell.csv", "line 3: a row of more than 16,777,216 characters"),
        ("quoted.csv", "line 3: a row of more than 16,777,216 characters; a quote may not be closed"),
        ("header.csv", "line 1: a row of more than 16,777,216 characters"),
        ("only_nuls", "line 1: a row of more than 16,777,216 characters"),
        ("cells.parquet", "the result needs too much memory: "),
        ("plain.parquet", "the rest of the file cannot be read: "),
    ],
)
def test_a_file_that_would_use_up_the_memory_is_refused(outcomes: dict[str, Any], name: str, message: str) -> None:
    assert str(outcomes[name]).startswith(message)


def test_what_is_only_unusual_is_read(outcomes: dict[str, Any]) -> None:
    assert outcomes["wide.csv"] == [None, None, None]
    assert outcomes["line.jsonl"] == [None, "the line exceeds 16777216 bytes", None]
    assert outcomes["nuls.csv"] == [None, "row.price: expected a number, got str '\\x00'"]


def test_a_picture_of_ten_thousand_million_pixels_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    picture = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("huge.png", picture)
        archive.writestr("long.png", bytes(9 << 20))
        archive.writestr("__MACOSX/._huge.png", b"x")
    field = InputField(name="image", dtype="uint8", shape=(2, 2), accepts=["array", "base64", *MEDIA_TYPES])
    contract = Contract(
        model="m", task="t", output="probabilities", labels=["no", "yes"], target="y", inputs=[field], sample={}
    )
    found = score(tmp_path / "pictures.zip", contract=contract)[0].decode().splitlines()
    assert found[0].startswith("file,prediction,probability,")
    assert found[1].startswith("huge.png,,,,,") and "pixels" in found[1]
    assert found[2].startswith("long.png,,,,,") and "exceeds 8,388,608 bytes" in found[2]
    assert len(found) == 3
