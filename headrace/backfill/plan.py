"""What a backfill does, written before its first chunk; and the files of one that is not complete."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from headrace.errors import DamagedFile
from headrace.files import read_json, write_text
from headrace.scoring.rows import Others

Cell = str | int | None


class SourceFile(BaseModel):
    """A file with rows to score, as it was when the backfill began."""

    model_config = ConfigDict(frozen=True)
    path: str
    sha256: str
    size: int
    mtime_ns: int
    rows: int = 0
    partitions: dict[str, Cell] = {}
    """Columns in the names of its folders, as `month=1`."""


class Chunk(BaseModel):
    """Rows of one file that are scored together, and written to one part."""

    model_config = ConfigDict(frozen=True)
    index: int
    file: int
    """Index of the file."""
    first: int
    """The first row in the file."""
    rows: int
    row: int
    """The number of the first row in all files."""

    @property
    def described(self) -> str:
        return f"rows {self.first:,} to {self.first + self.rows - 1:,}"


class Plan(BaseModel):
    """A backfill: one version, the files, and how they are divided."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = 1
    model: str
    version: str
    run_id: str
    content_sha256: str
    """The content hash of the version's files."""
    data: str
    """The address of the data, without a password."""
    selection: str | None = None
    """The query or the table of a database."""
    out: str
    is_folder: bool
    ending: str
    """How the names of the parts end, for example `.csv`."""
    answers_only: bool
    chunk_rows: int
    group_rows: int
    """Rows that the model answers in one run."""
    files: list[SourceFile]
    project: str
    started: str

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def others(self) -> Others:
        return "ignore" if self.answers_only else "keep"

    @property
    def data_sha256(self) -> str:
        """The hash of the file, or of the hashes of several ones in order."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()

    @property
    def answer_id(self) -> str:
        """The `id` of all answers: the same version and rows give the same."""
        digest = hashlib.sha256(f"{self.content_sha256} {self.data_sha256} {self.answers_only}".encode()).hexdigest()
        return f"{self.name}:backfill-{digest[:16]}"

    def chunks(self) -> Iterator[Chunk]:
        """Yields the chunks in the order of the result; none has rows of two files."""
        index = row = 0
        for number, file in enumerate(self.files):
            for first in range(0, file.rows, self.chunk_rows):
                rows = min(self.chunk_rows, file.rows - first)
                yield Chunk(index=index, file=number, first=first, rows=rows, row=row)
                index, row = index + 1, row + rows


class Manifest(BaseModel):
    """What is known of a part that is complete."""

    model_config = ConfigDict(frozen=True)
    index: int
    rows: int
    sha256: str
    size: int
    header: int
    """Bytes of the part before its first row."""
    refusals: list[dict[str, Any]]
    """As `headrace.scoring.refusals` counts them."""
    warnings: dict[str, int]

    @property
    def refused(self) -> int:
        return sum(int(one["count"]) for one in self.refusals)


@dataclass(frozen=True)
class Work:
    """The folder of a backfill that is not complete, and the record of one that is; both are beside the result."""

    out: Path

    @property
    def root(self) -> Path:
        return self.out.with_name(f"{self.out.name}.backfill")

    @property
    def record(self) -> Path:
        return self.out.with_name(f"{self.out.name}.backfill.json")

    @property
    def plan_file(self) -> Path:
        return self.root / "plan.json"

    @property
    def model(self) -> Path:
        """A copy of the version's files."""
        return self.root / "model"

    @property
    def source(self) -> Path:
        """What was fetched of a source that is not on this machine."""
        return self.root / "source"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def moving(self) -> Path:
        """Exists from when the folder of the parts is complete and becomes the result."""
        return self.root / "moving"

    @property
    def is_moved(self) -> bool:
        return self.moving.exists() and not self.parts.exists() and self.out.is_dir()

    def part(self, chunk: int, ending: str) -> Path:
        return self.parts / f"part-{chunk:06d}{ending}"

    def manifest_file(self, chunk: int) -> Path:
        return self.manifests / f"{chunk:06d}.json"

    def read_plan(self) -> Plan | None:
        """
        Raises:
            DamagedFile: it is there and cannot be read.
        """
        found: Plan | None = self._read(self.plan_file, Plan)
        return found

    def write_plan(self, plan: Plan) -> None:
        write_text(self.plan_file, plan.model_dump_json(indent=1) + "\n")

    def manifest(self, chunk: int, ending: str) -> Manifest | None:
        """The manifest of a part that is complete; None if the chunk has to be scored."""
        try:
            found: Manifest | None = self._read(self.manifest_file(chunk), Manifest)
            part = (self.out if self.is_moved else self.parts) / self.part(chunk, ending).name
            is_complete = found is not None and part.stat().st_size == found.size
        except (DamagedFile, FileNotFoundError):
            return None
        return found if is_complete else None

    def remove_leftovers(self) -> None:
        """Removes what killed processes left half-written."""
        if self.is_moved:
            return
        for folder in (self.parts, self.manifests):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*"):
                left.unlink(missing_ok=True)

    def _read(self, path: Path, kind: type[Any]) -> Any:
        hint = "start again: add --restart to the same command"
        if (found := read_json(path, hint)) is None:
            return None
        try:
            return kind.model_validate(found)
        except ValueError as error:
            message = f"damaged file: {str(error).splitlines()[0]}"
            raise DamagedFile(message, where=str(path), hint=hint) from None
