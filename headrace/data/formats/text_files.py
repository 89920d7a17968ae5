"""Many files as one table: a row a text, or a row a documented function of Python source, which is parsed and never run."""

from __future__ import annotations

import ast
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.data.formats.delimited import as_utf8
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SUMMARY_WORDS = (3, 20)
"""A docstring whose first paragraph has fewer or more words is no pair of a summary and a body."""
BODY_WORDS = 15
"""Nor is one with less text below."""
TESTS = {"tests"}
"""Folders whose code documents nothing for a reader."""


def read_texts(path: Path, reading: ReadOptions) -> pa.Table:
    """One row a file of the zip `path`: `file`, `text`, with line ends as `\\n`.

    Raises:
        DataError: a file is no text in its encoding.
    """
    import pyarrow as pa

    rows = [(name, text) for name, text in _texts(path, reading.encoding)]
    return pa.table({"file": pa.array([n for n, _ in rows], pa.string()), "text": pa.array([t for _, t in rows], pa.string())})


def read_lines(raw: bytes, path: Path, reading: ReadOptions) -> pa.Table:
    """One row a line that is not blank: `text`.

    Raises:
        DataError: the file is no text in its encoding.
    """
    import pyarrow as pa

    lines = [line for line in decoded(raw, reading.encoding, path).split("\n") if line.strip()]
    return pa.table({"text": pa.array(lines, pa.string())})


def read_docstrings(path: Path, reading: ReadOptions) -> pa.Table:
    """One row a class or function whose docstring has a summary and a body: `file`, `name`, `body`, `summary`.

    The summary is the first paragraph on one line (PEP 257), the body all that follows. Kept are summaries of 3 to 20 words
    that begin with a letter, over bodies of at least 15 words. Tests, and files that this Python cannot parse, are left out.

    Raises:
        DataError: a file is no text in its encoding, or no docstring is kept.
    """
    import pyarrow as pa

    if zipfile.is_zipfile(path):
        texts = _texts(path, reading.encoding)
    else:
        texts = iter([(path.name, decoded(path.read_bytes(), reading.encoding, path))])
    rows = [(name, *found) for name, source in texts if not TESTS & set(name.split("/")) for found in _pairs(source)]
    if not rows:
        raise DataError(
            "no docstring there has a summary and a body", where=str(path), hint="name packages with documented functions"
        )
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(("file", "name", "body", "summary"), columns, strict=True)})


def _texts(path: Path, encoding: str) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(path) as files:
            for name in files.namelist():
                yield name, decoded(files.read(name), encoding, Path(name))
    except zipfile.BadZipFile as error:
        raise DataError(f"the zip is cut or damaged: {error}", where=str(path), hint="fetch it again") from None


def decoded(raw: bytes, encoding: str, path: Path) -> str:
    """`raw` as text, with line ends as `\\n`.

    Raises:
        DataError: it is no text in `encoding`; it says in which line.
    """
    try:
        text = as_utf8(raw, encoding, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"not UTF-8 text: {raw[error.start : error.start + 40]!r}",
            where=f"{path}, line {line}",
            hint="name its encoding (data.encoding), such as cp1252",
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pairs(source: str) -> Iterator[tuple[str, str, str]]:
    """Name, body and summary of each docstring that is kept, in the order of the source."""
    if not ('"""' in source or "'''" in source):
        return  # no docstring of several lines: parsing takes most of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a strange escape in a text is not our business
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    yield from _below(tree, "")


def _below(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name = prefix + child.name
        first, _, body = (ast.get_docstring(child) or "").partition("\n\n")
        summary, body = " ".join(first.split()), body.strip()
        if _is_pair(summary, body):
            yield name, body, summary
        yield from _below(child, f"{name}.")


def _is_pair(summary: str, body: str) -> bool:
    least, most = SUMMARY_WORDS
    return summary[:1].isalpha() and least <= len(summary.split()) <= most and len(body.split()) >= BODY_WORDS
