"""Finds the table that `headrace new --data` names, and reads a sample of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.files import ENDINGS
from headrace.data.formats.partitions import text_partitions, with_partitions
from headrace.data.sources.addresses import is_local, local_files, redacted, scheme_of, with_lower_scheme
from headrace.data.sources.archives import is_pattern
from headrace.data.sources.databases import export, is_database, without_password
from headrace.data.sources.fetch import fetch_all
from headrace.errors import DataError, near_miss
from headrace.files import visible_names
from headrace.project import Project
from headrace.recipe.read import ReadConfig
from headrace.runtime.values import ValueRule
from headrace.scaffold.sample import SAMPLE_ROWS, Sample, read_sample, with_rules

if TYPE_CHECKING:
    import pyarrow as pa

MORE_FILES = 4
"""This many files are sampled besides the first one of a pattern."""
TABLE_FORMATS = tuple(e for kind in ("csv", "tsv", "jsonl", "parquet", "arrow", "excel") for e in ENDINGS[kind])


@dataclass(frozen=True)
class Located:
    """A table, the address that the recipe gets, and a sample."""

    source: str
    shown: str
    """The address for messages, without credentials."""
    sample: Sample
    read_again: Callable[[Sample], pa.Table]
    """Reads the sample's rows again, as its rules say."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """How the user wants files to be read."""

    given: dict[str, Any] = field(default_factory=dict)
    """Fields of `data.read`."""
    header: bool | None = None
    format: str | None = None
    labels: tuple[str, ...] = ()
    """Columns that may hold lists of labels."""

    def sample(self, path: Path) -> Sample:
        return read_sample(path, self.given, self.header, self.format, labels=self.labels)

    def again(self, path: Path, sample: Sample) -> Sample:
        """Reads a file as another one, or the same, was read before."""
        fixed = sample.read.model_dump() if sample.read else {}
        return read_sample(path, fixed, sample.header, sample.format, sample.rules, self.labels)


def locate(data: str, project: Project, reading: Reading) -> Located:
    """Returns a sample of the table in `data`: a file, a pattern of files, a folder of files, an address, or a database.

    Raises:
        SourceError, DataError: it does not exist, or cannot be read.
    """
    data = with_lower_scheme(data)
    if "://" in data and is_database(data):
        return _database(data, project, reading.given)
    if "://" in data and not is_local(data):
        return _remote(data, project, reading)
    path = Path(data).expanduser()
    if is_pattern(data) or path.is_dir():
        return _several(path, project, reading)
    if not path.exists():
        names = visible_names(path.parent)
        raise DataError(
            f"no such file; {near_miss(path.name, names)}" if names else "no such file",
            where=data,
            hint="correct the path, or copy the file there",
        )
    sample = reading.sample(path)
    source = source_of(path, project)
    notes = [outside_note(source)] if Path(source).is_absolute() else []
    return Located(source, source, sample, lambda one: _again(path, one, reading), notes)


def _database(uri: str, project: Project, given: dict[str, Any]) -> Located:
    read = ReadConfig(**given)
    source, variable = without_password(uri)
    if scheme_of(uri) == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        source = f"sqlite:///{source_of(file if file.is_absolute() else Path.cwd() / file, project)}"
        uri = source
    project.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=project.state) as folder:
        path = Path(folder) / "sample.parquet"
        is_whole = export(uri, read, path, project.root, SAMPLE_ROWS)
        sample = read_sample(path, {}, None)
    what = "query" if read.query else f"table {read.table}"
    sample = replace(sample, read=read, is_whole=is_whole and sample.is_whole, recognised=[what])
    notes = [] if variable is None else [f"the password is not written to the recipe: set {variable} where it runs"]
    table = sample.table
    return Located(source, redacted(source), sample, lambda one: with_rules(table, one.rules, Path("sample")), notes)


def _remote(uri: str, project: Project, reading: Reading) -> Located:
    cache, most = project.state / "cache" / "sources", project.settings.max_source_bytes
    path = fetch_all([(uri, None)], cache, project.root, limit_bytes=most)[0]
    sample = reading.sample(path)
    return Located(uri, redacted(uri), sample, lambda one: _again(path, one, reading))


def _several(path: Path, project: Project, reading: Reading) -> Located:
    """Returns a sample of the first of several files; the recipe reads all of them."""
    import pyarrow as pa

    folder = path.is_dir()
    pattern = str(path / f"*{_common_ending(path)}") if folder else str(path)
    files = local_files(pattern, Path.cwd())
    if not files:
        raise DataError(
            "no file matches", where=pattern, hint="correct the pattern; `*` matches any characters, folders included"
        )
    first, text = reading.sample(files[0]), text_partitions(files)
    tables = [with_partitions(first.table, files[0], text=text)]
    are_whole = first.is_whole
    for file in files[1 :: max(1, len(files) // MORE_FILES)][:MORE_FILES]:
        other = reading.again(file, first)
        are_whole = are_whole and other.is_whole
        tables.append(with_partitions(other.table, file, text=text))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"the files do not match: {str(error).splitlines()[0]}", where=pattern, hint="use files with the same columns"
        ) from None
    is_whole = len(files) == len(tables) and are_whole
    recognised = [f"{len(files)} files", *first.recognised]
    # With a section `read`, a column of the path such as year=2024 is a column of the table.
    # What is text by the path of one file is text in later batches too, by a rule of the recipe.
    codes = {name: ValueRule(type="text") for name in sorted(text) if name not in first.table.column_names}
    rules = replace(first.rules, rules={**codes, **first.rules.rules})
    read = first.read or ReadConfig()
    sample = replace(first, table=table, is_whole=is_whole, recognised=recognised, read=read, rules=rules)
    source = source_of(Path(pattern), project)
    notes = [outside_note(source)] if Path(source).is_absolute() else []
    return Located(source, source, sample, lambda one: with_rules(table, one.rules, Path("sample")), notes)


def _common_ending(folder: Path) -> str:
    """Returns the ending of the tables in a folder.

    Raises:
        DataError: it has no table, or tables of several formats.
    """
    found = {
        next(ending for ending in sorted(TABLE_FORMATS, key=len, reverse=True) if path.name.lower().endswith(ending))
        for path in folder.rglob("*")
        if path.is_file() and path.name.lower().endswith(TABLE_FORMATS)
    }
    if len(found) == 1:
        return found.pop()
    what = (
        f"tables of several formats: {', '.join(sorted(found))}" if found else "no table, and no folders of pictures or texts"
    )
    raise DataError(
        f"the folder has {what}",
        where=str(folder),
        hint=f"name a file in it, or a pattern: '{folder}/*.csv'",
    )


def _again(path: Path, sample: Sample, reading: Reading) -> pa.Table:
    table = reading.again(path, sample).table
    return table.select([name for name in sample.table.column_names if name in table.column_names])


def source_of(path: Path, project: Project) -> str:
    """Returns a path relative to the project for data in it, so that the recipe works in other clones."""
    absolute, root = path.expanduser().resolve(), project.root.resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else str(absolute)


def outside_note(source: str) -> str:
    return (
        f"{source} is outside of the project, so another clone will not find it: copy it into the project, or share the data "
        "with dvc push"
    )
