from __future__ import annotations

import inspect
import zipfile
from pathlib import Path

import pytest

from headrace.data.formats.files import read_file, read_packed
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError

BODY = "It has some more words, so that a reader of this text has enough of them to fill a line, and ends here."


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_each_file_of_a_corpus_is_a_row_with_unix_line_ends(tmp_path: Path) -> None:
    path = packed(tmp_path / "_.txt.zip", {"a/one.txt": b"\xef\xbb\xbfTo be,\r\nor not", "a/two.txt": "né\n".encode()})
    ((table, _),) = read_packed(path, ReadOptions())
    assert table.to_pylist() == [{"file": "a/one.txt", "text": "To be,\nor not"}, {"file": "a/two.txt", "text": "né\n"}]


def test_a_file_of_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = packed(tmp_path / "_.txt.zip", {"one.txt": b"a\n", "two.txt": "a\nb\nné\n".encode("cp1252")})
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read_packed(path, ReadOptions())
    assert caught.value.where == "two.txt, line 3" and "data.encoding" in str(caught.value.hint)
    ((table, _),) = read_packed(path, ReadOptions(encoding="cp1252"))
    assert table["text"].to_pylist() == ["a\n", "a\nb\nné\n"]


def test_a_single_text_file_has_one_row_per_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\n two\r\n")
    assert read_file(tmp_path / "t.txt").to_pydict() == {"text": ["one", " two"]}


def test_tables_of_a_pattern_are_read_one_by_one(tmp_path: Path) -> None:
    path = packed(tmp_path / "_.csv.zip", {"jan/t.csv": b"a\n1\n", "feb/t.csv": b"a\n2\n"})
    assert [(str(name), table.to_pydict()) for table, name in read_packed(path, ReadOptions())] == [
        ("jan/t.csv", {"a": [1]}),
        ("feb/t.csv", {"a": [2]}),
    ]


def documented(docstring: str) -> str:
    return f'def f():\n    """{docstring}"""\n'


SOURCE = f'''
class Mill:
    """A mill driven by the water of its headrace.

    {BODY}
    """

    async def turn(self):
        """Turn the wheel once, and tell
        how long it took.

        {BODY}

            an indented line
        """
'''


def test_docstrings_equal_those_of_inspect(tmp_path: Path) -> None:
    (tmp_path / "mill.py").write_text(SOURCE)
    found = {row["name"]: row for row in read_file(tmp_path / "mill.py").to_pylist()}
    seen: dict[str, type] = {}
    exec(SOURCE, seen)
    for name, thing in (("Mill", seen["Mill"]), ("Mill.turn", seen["Mill"].turn)):  # type: ignore[attr-defined]
        summary, body = (inspect.getdoc(thing) or "").split("\n\n", 1)
        assert (found[name]["summary"], found[name]["body"]) == (" ".join(summary.split()), body)
    assert found.keys() == {"Mill", "Mill.turn"} and "\n    an indented line" in found["Mill.turn"]["body"]


@pytest.mark.parametrize(
    "source",
    [
        documented("Too short.\n\n    Nothing much below."),
        documented(f"Short.\n\n    {BODY}"),
        documented(" ".join(["word"] * 21) + f"\n\n    {BODY}"),
        documented(f"``code`` comes first here\n\n    {BODY}"),
        "def f(:\n" + documented(f"A file of another language.\n\n    {BODY}"),
    ],
)
def test_docstrings_without_summary_or_body_are_left_out(tmp_path: Path, source: str) -> None:
    path = packed(
        tmp_path / "_.py.zip", {"a.py": source.encode(), "b.py": documented(f"A pair as wanted.\n\n    {BODY}").encode()}
    )
    ((table, _),) = read_packed(path, ReadOptions())
    assert table["file"].to_pylist() == ["b.py"]


def test_source_is_never_run_and_tests_are_left_out(tmp_path: Path) -> None:
    pair = documented(f"A pair as wanted.\n\n    {BODY}")
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')\n" + pair
    path = packed(tmp_path / "_.py.zip", {"pkg/a.py": evil.encode(), "pkg/tests/b.py": pair.encode()})
    ((table, _),) = read_packed(path, ReadOptions())
    assert table["file"].to_pylist() == ["pkg/a.py"] and not (tmp_path / "ran").exists()


def test_no_docstring_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("x = 1\n")
    with pytest.raises(DataError, match="no docstring"):
        read_file(tmp_path / "t.py")
