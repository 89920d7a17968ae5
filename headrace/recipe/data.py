"""The recipe's data section as a typed tree: where the data comes from, what its columns mean, and how rows are divided."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from encodings.aliases import aliases
from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from headrace.errors import near_miss
from headrace.recipe.section import Section
from headrace.recipe.splits import SplitConfig

PART = "part"
"""The column that says which part of a source in parts a row came from."""
EDGES = "edges"
"""The column of a graph's table with each node's neighbours."""
SHA256 = r"[0-9a-f]{64}"

Tree = str | list[str] | dict[str, Any]
"""One address, a list of them, or parts by name."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    uri: str
    sha256: str | None
    part: str | None = None
    """Of a source that comes in parts."""
    role: Literal["table", "images", "labels", "join", "edges"] = "table"


class Arrival(Section):
    """For a source that holds a whole history: take the `first` values now, `headrace data next` brings the following."""

    column: str
    """The column whose values arrive one by one, in ascending order."""
    first: int = Field(ge=1)
    """How many values the first version of the data holds."""


class JoinConfig(Section):
    """Columns of another table, for rows with the same key: labels that came later, say."""

    source: str
    """As `data.source`; one table, with each key once."""
    sha256: str | None = Field(default=None, pattern=f"^{SHA256}$")
    key: str
    """A column of both. A column that both have is filled where it holds nothing."""


class GraphConfig(Section):
    """For graphs: a row is a node. Its neighbours land beside it in the text column `edges`: their ids, spaces between."""

    node: str
    """The column with the nodes' ids. It is no feature."""
    edges: str
    """As `data.source`: a text with the ids of two nodes a line; both directions are meant."""
    sha256: str | None = Field(default=None, pattern=f"^{SHA256}$")
    """Of the file at `edges`."""
    pack: str | None = None
    """A name: the columns but node and target hold 0 or 1, and land as one text column of this name, with the positions
    of the ones."""


class TextConfig(Section):
    """For text tasks: which column holds the text, and into which tokens it is cut."""

    column: str
    tokens: Literal["words", "pieces", "characters"] = "pieces"
    """`words`; `pieces` of words by byte-pair encoding, which know every text; or `characters`."""
    vocabulary: int = Field(default=8000, ge=8)
    """Most tokens to learn from the training rows."""
    length: int = Field(default=256, ge=1)
    """Most tokens of a text that the network reads; what is longer is cut."""
    lowercase: bool = True
    replace: dict[str, str] = {}
    """Regular expressions, and what stands for each match before a text is cut into tokens, in training and in the service."""


class DataConfig(Section):
    """Where the data comes from, and what its columns mean."""

    source: Tree
    """A path, or a URI: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://, s3://. Or a list of them; or
    parts by name, which land in a column `part`; and in place of each `{images: …, labels: …}` in IDX."""
    sha256: Tree | None = None
    """Of the file at `source`; in the same form where `source` has several. A file that differs is refused."""
    format: Literal["csv", "tsv", "parquet", "jsonl", "lines", "texts", "docstrings", "sdf"] | None = None
    """How the files are read, where their names do not say it."""
    encoding: str = "utf-8"
    """Of text files."""
    target: str
    """The column to predict."""
    header: bool = True
    """Whether the first line of a CSV names the columns."""
    skip_rows: int = Field(default=0, ge=0)
    """Rows below the names that are no data."""
    rename: dict[str, str] = {}
    """Columns' names in the source, and what they are called from then on."""
    columns: list[str] | None = None
    """Columns to keep, or all names of a CSV without header; `pixel[784]` stands for pixel_0 to pixel_783."""
    categorical: list[str] | None = None
    """Columns to treat as categories; by default those that hold text."""
    join: JoinConfig | None = None
    drop_missing: list[str] = []
    """Rows with nothing in one of these columns are left out at ingest, and counted."""
    drop_duplicates: list[str] = []
    """Rows whose value in one of these columns stood before are left out at ingest, and counted; all rows of a value that
    comes with several targets are, for nobody knows which one is right."""
    image: tuple[int, int] | None = None
    """Height and width, for image tasks: the columns but the target are its pixels, row by row."""
    text: TextConfig | None = None
    """For text tasks."""
    graph: GraphConfig | None = None
    """For graphs."""
    arrive: Arrival | None = None
    memory: ByteSize | None = Field(default=None, gt=0)
    """Most memory that the table may take, such as `512MB`; a larger one of named columns goes through every stage in chunks.
    By default a sixteenth of the memory that is free."""
    split: SplitConfig = SplitConfig()

    @field_validator("source", mode="before")
    @classmethod
    def _source_is_told(cls, source: Any) -> Any:
        for place, uri in _leaves(source):
            if not isinstance(uri, str) or not uri:
                raise ValueError(
                    f"{_spelled(place)}{uri!r} is no address; write a path, a URI, a list of them, or parts by name"
                )
            if len(place) > 2 or (len(place) == 2 and isinstance(place[0], int)):
                raise ValueError(f"{_spelled(place)}this is too deep; parts hold addresses, lists, or images with labels")
        for pair in _pairs(source):
            if wrong := sorted({"images", "labels"} ^ set(pair)):
                raise ValueError(f"images and labels come together; {near_miss(wrong[0], ['images', 'labels'])}")
        return source

    @field_validator("sha256", mode="before")
    @classmethod
    def _sums_are_sums(cls, sha256: Any) -> Any:
        for place, value in _leaves(sha256) if sha256 is not None else ():
            if not isinstance(value, str) or not re.fullmatch(SHA256, value):
                raise ValueError(f"{_spelled(place)}a sha256 has 64 characters of 0 to 9 and a to f")
        return sha256

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
            "".encode(encoding)  # some codecs are of bytes, not of text
        except LookupError:
            known = sorted(set(aliases.values()))
            raise ValueError(f"no encoding is called so; {near_miss(encoding.lower(), known)}") from None
        return encoding

    @field_validator("columns")
    @classmethod
    def _expand(cls, columns: list[str] | None) -> list[str] | None:
        if columns is None:
            return None
        found = [name for column in columns for name in _expand_column(column)]
        if twice := {name for name in found if found.count(name) > 1} if len(found) < 500 else None:
            raise ValueError(f"{sorted(twice)} stand there twice")
        return found

    @model_validator(mode="after")
    def _columns_exist(self) -> DataConfig:
        if not self.header and self.columns is None:
            raise ValueError("`header: false` needs `columns`, the names of the columns in order")
        if not self.header and self.rename:
            raise ValueError("rename: with `header: false` the names under `columns` are yours already")
        if self.columns is not None:
            named = {
                "target": [self.target],
                "categorical": self.categorical or [],
                "drop_missing": self.drop_missing,
                "drop_duplicates": self.drop_duplicates,
                "text.column": [self.text.column] if self.text else [],
                "graph.node": [self.graph.node] if self.graph else [],
                "split.given.column": [self.split.given.column] if self.split.given else [],
                "split.group.column": [self.split.group.column] if self.split.group else [],
            }
            known = [*self.columns, *([PART] if self.parts else [])]
            for field, names in named.items():
                for name in names:
                    if name not in known:
                        raise ValueError(f"{field} {name!r} is not among columns; {near_miss(name, known)}")
        return self

    @model_validator(mode="after")
    def _sums_fit_the_source(self) -> DataConfig:
        if self.sha256 is not None:
            wanted, given = ([place for place, _ in _leaves(tree)] for tree in (self.source, self.sha256))
            if wanted != given:
                odd = next(iter([*(p for p in wanted if p not in given), *(p for p in given if p not in wanted)]))
                raise ValueError(f"sha256: {_spelled(odd)}source and sha256 have to have the same form, one sha256 a file")
        return self

    @model_validator(mode="after")
    def _parts_exist(self) -> DataConfig:
        given = self.split.given
        if given is not None and self.parts and given.column == PART and given.test not in self.parts:
            raise ValueError(f"split.given.test: {given.test!r} is no part of source; {near_miss(str(given.test), self.parts)}")
        return self

    @property
    def parts(self) -> list[str]:
        """Names of the parts in which the source comes."""
        return list(dict.fromkeys(file.part for file in self.files if file.part is not None))

    @property
    def files(self) -> list[SourceFile]:
        """Every file that has to be fetched, in the order in which their rows land."""
        sums = dict(_leaves(self.sha256)) if self.sha256 is not None else {}
        found = [_source_file(place, uri, sums.get(place)) for place, uri in _leaves(self.source)]
        if self.join is not None:
            found.append(SourceFile(self.join.source, self.join.sha256, role="join"))
        if self.graph is not None:
            found.append(SourceFile(self.graph.edges, self.graph.sha256, role="edges"))
        return found

    @property
    def landed(self) -> list[str] | None:
        """Columns of the table as it lands, where the recipe names them all."""
        if self.columns is None:
            return None
        found = self.columns + ([PART] if self.parts and PART not in self.columns else [])
        if self.graph is None:
            return found
        if self.graph.pack is not None:
            features = set(self.features(found))
            found = [name for name in found if name not in features and name != self.target]
            found = [*found, self.graph.pack, self.target]
        return [*found, EDGES]

    @property
    def origin(self) -> str:
        """The source in one line, for messages."""
        uris = [file.uri for file in self.files]
        return uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"

    def features(self, columns: Iterable[str]) -> list[str]:
        """Those of `columns` that may be inputs: not the target, nor what names or divides rows."""
        split = self.split
        others = {self.target, *split.columns, *([PART] if self.parts else [])}
        if self.graph is not None:
            others |= {self.graph.node, EDGES}
        return [column for column in columns if column not in others]


def _leaves(tree: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*place, str(key)))
    elif isinstance(tree, list) and tree:
        for i, value in enumerate(tree):
            yield from _leaves(value, (*place, i))
    else:
        yield place, tree


def _pairs(source: Any) -> list[dict[str, Any]]:
    """Mappings that mean images with labels."""
    found = [source, *source.values()] if isinstance(source, dict) else []
    return [one for one in found if isinstance(one, dict) and {"images", "labels"} & set(one)]


def _source_file(place: tuple[str | int, ...], uri: str, sha256: str | None) -> SourceFile:
    role: Literal["images", "labels", "table"] = "images" if place[-1:] == ("images",) else "table"
    role = "labels" if place[-1:] == ("labels",) else role
    named = place if role == "table" else place[:-1]
    return SourceFile(uri, sha256, str(named[0]) if named and isinstance(named[0], str) else None, role)


def _spelled(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place)) + ": " if place else ""


def _expand_column(column: str) -> list[str]:
    found = re.fullmatch(r"(.+)\[(\d+)\]", column)
    return [f"{found[1]}_{i}" for i in range(int(found[2]))] if found else [column]
