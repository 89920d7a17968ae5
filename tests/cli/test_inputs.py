"""Fields, texts and files from the command line as instances of a contract."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import inputs
from headrace.errors import DataError, UsageError
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import ContractViolation
from headrace.scoring.open_rows import open_rows
from headrace.scoring.rows import BadFile

TABLE = Contract(
    model="trips",
    task="regression",
    inputs=[
        InputField(name="distance", dtype="float32"),
        InputField(name="delay", dtype="float32", nullable=True),
        InputField(name="carrier", dtype="string", levels=["AA", "007"]),
    ],
    output="value",
    target="minutes",
    sample={},
)
GRAPH = Contract(
    model="shapes",
    task="graph-classification",
    inputs=[
        InputField(name="nodes", dtype="float32", shape=(16,)),
        InputField(name="edges", dtype="int64", shape=(2,), nullable=True),
    ],
    output="probabilities",
    target="shape",
    sample={},
)
TEXT = Contract(
    model="moods", task="t", inputs=[InputField(name="text", dtype="string")], output="probabilities", target="m", sample={}
)
IMAGE = Contract(
    model="digits",
    task="i",
    inputs=[InputField(name="image", dtype="uint8", shape=(2, 2))],
    output="probabilities",
    target="label",
    sample={},
)


def test_fields_are_converted_to_the_types_of_the_contract() -> None:
    assert inputs.from_fields(["distance=1400", "delay=", "carrier=007"], TABLE) == [
        {"distance": 1400, "delay": None, "carrier": "007"}
    ]
    assert inputs.from_fields(["carrier=a=b"], TABLE) == [{"carrier": "a=b"}]
    renamed = InputField(name="text", column="message", dtype="string")
    text = TEXT.model_copy(update={"inputs": [renamed]})
    assert inputs.from_fields(["message=so=so"], text) == inputs.from_fields(["text=so=so"], text) == [{"text": "so=so"}]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("distnce=1", "did you mean 'distance'"),
        ("distance=far", "expected a number, got 'far'"),
        ("distance", "expected NAME=VALUE"),
    ],
)
def test_a_wrong_field_is_reported(pair: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        inputs.from_fields([pair], TABLE)


def test_a_text_is_the_value_of_the_only_text_field(tmp_path: Path) -> None:
    assert inputs.from_text("so glad", TEXT) == [{"text": "so glad"}]
    (tmp_path / "mood.txt").write_text("so glad", encoding="utf-8")
    assert inputs.from_file(tmp_path / "mood.txt", TEXT) == [{"text": "so glad"}]
    with pytest.raises(UsageError, match="digits does not take one text") as caught:
        inputs.from_text("five", IMAGE)
    assert caught.value.hint == "headrace predict digits --file IMAGE.png"


def test_an_image_is_sent_as_base64(tmp_path: Path) -> None:
    (tmp_path / "five.PNG").write_bytes(b"\x89PNG")
    assert inputs.from_file(tmp_path / "five.PNG", IMAGE) == [{"image": base64.b64encode(b"\x89PNG").decode()}]
    with pytest.raises(UsageError, match="trips does not take one image") as caught:
        inputs.from_file(tmp_path / "five.PNG", TABLE)
    assert caught.value.hint == "headrace predict trips distance=… carrier=…"


def rows_of(path: Path, contract: Contract) -> list[Any]:
    assert inputs.has_rows(path, contract)
    return [row for chunk in open_rows(path, contract, "ignore").chunks() for row in chunk.values]


def test_a_table_gives_one_instance_per_row_without_other_columns(tmp_path: Path) -> None:
    (tmp_path / "trips.csv").write_text("carrier,distance,other\n007,10.5,x\nAA,20,y\n")
    assert rows_of(tmp_path / "trips.csv", TABLE) == [
        {"distance": 10.5, "carrier": "007"},
        {"distance": 20.0, "carrier": "AA"},
    ]
    (tmp_path / "trips.csv").write_text("carier,distance\n007,10.5\n")
    with pytest.raises(BadFile, match="column 'carrier' is missing; did you mean 'carier'"):
        rows_of(tmp_path / "trips.csv", TABLE)


def test_json_lines_and_json_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"distance": 1}\n\n{"distance": 2}\n')
    (tmp_path / "two.json").write_text('[{"distance": 1}, {"distance": 2}]')
    assert not inputs.has_rows(tmp_path / "two.json", TABLE)
    assert rows_of(tmp_path / "two.jsonl", TABLE) == inputs.from_file(tmp_path / "two.json", TABLE)


@pytest.mark.parametrize(
    ("name", "content", "is_table"),
    [
        ("rows.json", '{"distance": 1}\n{"distance": 2}\n', True),
        ("one.json", '{\n "distance": 1\n}\n', False),
        ("one.jsonl", '[{"distance": 1}]', False),
        ("rows.txt", "distance;carrier\n1;AA\n", True),
        ("rows", "distance,carrier\n1,AA\n", True),
        ("rows.csv", "\x89PNG\r\n\x1a\n", False),
    ],
)
def test_the_content_of_a_file_decides_and_not_its_name(tmp_path: Path, name: str, content: str, is_table: bool) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    assert inputs.has_rows(tmp_path / name, TABLE) == is_table


def test_unsuitable_files_are_reported(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"GIF89a")
    (tmp_path / "photo").write_bytes(b"GIF89a")
    (tmp_path / "cut.json").write_text('{"distance": ')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=r"trips does not take one image"):
        inputs.from_file(tmp_path / "photo.png", TABLE)
    with pytest.raises(UsageError, match=r"photo is a GIF file"):
        inputs.from_file(tmp_path / "photo", IMAGE)
    with pytest.raises(UsageError, match="invalid JSON"):
        inputs.from_file(tmp_path / "cut.json", TABLE)
    with pytest.raises(DataError, match="not UTF-8 text at byte 3"):
        inputs.from_file(tmp_path / "latin.txt", TEXT)
    with pytest.raises(UsageError, match=r"did you mean 'cut\.json'"):
        inputs.from_file(tmp_path / "cur.json", TABLE)


def test_graphs_come_from_molecules_and_from_tables(tmp_path: Path) -> None:
    atoms = "".join(f"{0:10.4f}{0:10.4f}{0:10.4f} {atom:<3} 0  0\n" for atom in ("C", "O"))
    (tmp_path / "two.sdf").write_text(f"\n\n\n  2  1  0  0  0  0            999 V2000\n{atoms}  1  2  1  0\nM  END\n$$$$\n")
    (methanol,) = inputs.from_file(tmp_path / "two.sdf", GRAPH)
    assert (len(methanol["nodes"]), len(methanol["nodes"][0]), methanol["edges"]) == (2, 16, [[0, 1]])
    (tmp_path / "two.csv").write_text('nodes,edges\n"[[1, 2], [3, 4]]","[[0, 1]]"\n"[[5, 6]]",\n')
    first, second = rows_of(tmp_path / "two.csv", GRAPH)
    assert first == {"nodes": [[1, 2], [3, 4]], "edges": [[0, 1]]}
    assert (second["nodes"], second["edges"] or []) == ([[5, 6]], [])
    (tmp_path / "bad.csv").write_text('nodes,edges\n"[[1, 2]",\n')
    with pytest.raises(ContractViolation, match="nodes: expected a number in shape"):
        GRAPH.to_feeds(rows_of(tmp_path / "bad.csv", GRAPH))
