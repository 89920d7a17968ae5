"""Reads many files as one table: one row per text, or per documented function of Python source (parsed, never run)."""

from __future__ import annotations

import ast
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from headrace.data.formats.encoding import decoded
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SUMMARY_WORDS = (3, 20)
"""Fewest and most words of a summary, the first paragraph of a docstring."""
BODY_WORDS = 15
"""Fewest words of a body, the text below the summary."""
ADDED = {"__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini"}
"""Names of files and folders that operating systems add to archives."""
TESTS = {"tests"}
"""Folders that are left out."""


def read_texts(path: Path, options: ReadOptions) -> pa.Table:
    """Reads one row per file of the zip or tar `path`: `file`, `text`, with line ends as `\\n`.

    Raises:
        DataError: a file is not text in its encoding.
    """
    import pyarrow as pa

    rows = [(name, text) for name, text in _texts(path, options.encoding)]
    return pa.table({"file": pa.array([n for n, _ in rows], pa.string()), "text": pa.array([t for _, t in rows], pa.string())})


def read_lines(raw: bytes, path: Path, options: ReadOptions) -> pa.Table:
    """Reads one row per line that is not blank: `text`.

    Raises:
        DataError: the file is not text in its encoding.
    """
    import pyarrow as pa

    lines = [line for line in decoded(raw, options.encoding, path).split("\n") if line.strip()]
    return pa.table({"text": pa.array(lines, pa.string())})


def read_docstrings(path: Path, options: ReadOptions) -> pa.Table:
    """Reads one row per class or function whose docstring has a summary and a body: `file`, `name`, `body`, `summary`.

    The summary is the first paragraph on one line (PEP 257), the body is the rest. A row is kept if the summary has 3 to 20
    words and begins with a letter, and the body has at least 15 words. Tests, and files that this Python cannot parse, are
    left out.

    Raises:
        DataError: a file is not text in its encoding, or no docstring is kept.
    """
    import pyarrow as pa

    if zipfile.is_zipfile(path):
        texts = _texts(path, options.encoding)
    else:
        texts = iter([(path.name, decoded(path.read_bytes(), options.encoding, path))])
    rows = [(name, *found) for name, source in texts if not TESTS & set(name.split("/")) for found in _pairs(source)]
    if not rows:
        raise DataError("no docstring has a summary and a body", where=str(path), hint="use packages with documented functions")
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(c, pa.string()) for n, c in zip(("file", "name", "body", "summary"), columns, strict=True)})


def _texts(path: Path, encoding: str) -> Iterator[tuple[str, str]]:
    """Yields name and text of each file of a zip or tar, without what an operating system adds."""
    try:
        for name, raw in _members(path):
            if not any(part in ADDED for part in PurePosixPath(name).parts):
                yield name, decoded(raw, encoding, Path(name))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"the archive is truncated or damaged: {error}", where=str(path), hint="fetch it again") from None


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if not zipfile.is_zipfile(path) and tarfile.is_tarfile(path):
        with tarfile.open(path) as packed:
            for member in packed:
                if member.isfile() and (opened := packed.extractfile(member)) is not None:  # a link could point anywhere
                    yield member.name.removeprefix("./"), opened.read()
        return
    with zipfile.ZipFile(path) as files:
        for info in files.infolist():
            if not info.is_dir():
                yield info.filename, files.read(info)


def _pairs(source: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, body and summary of each docstring that is kept, in the order of the source."""
    if not ('"""' in source or "'''" in source):
        return  # skips files without docstrings, as parsing takes most of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in literals do not matter here
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
