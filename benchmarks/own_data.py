"""Measures the way from a user's file to an answer of the served model: `python -m benchmarks.own_data`.

For each of ten kinds of data it runs the commands of a user, `headrace new`, `headrace run` and `headrace predict`, in a
temporary clone whose services run, and writes docs/benchmarks/own-data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.own_data_sources import EXAM, KINDS, PICTURES, ROWS, TEXTS, Source, is_right, postgres_query, sqlite_query
from benchmarks.progress import exit_code_of, report
from benchmarks.release_clone import CHECKOUT, Clone, CompletedCommand, commit, temporary_clone
from benchmarks.report import hardware, markdown, wrap
from headrace.errors import HeadraceError
from headrace.files import write_text

PAGE = CHECKOUT / "docs" / "benchmarks" / "own-data.md"
FOLDER = "sources"
"""Folder of the project with the files of the user."""
AIM_SECONDS = 180.0
QUICK = {"rows": 150, "pictures": 60}
HEADER = ("source", "`new`, s", "`run`, s", "first answer, s", "total, s", "answer right", "of 20 new ones right")


@dataclass
class Measured:
    """One kind of data: seconds of each command, and whether the answers are right."""

    source: Source
    seconds: dict[str, float] = field(default_factory=dict)
    right: bool = False
    exam: int = 0
    """Number of right answers for the rows of the exam."""
    transcript: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and cleans up, also after Ctrl-C (exit code 130); exits with 1 if a kind failed or answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_data", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rows: a check of the code, not a result")
    parser.add_argument("--only", default="", help="measure these only, by the names of their recipes, separated by commas")
    parser.add_argument("--transcripts", type=Path, help="folder for what each command printed")
    parser.add_argument("--out", type=Path, help="page to write (default: docs/benchmarks/own-data.md, or none with --quick)")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _measured(options))


def _measured(options: argparse.Namespace) -> int:
    only = [name for name in options.only.split(",") if name]
    text, worked = measure(options.quick, only, options.transcripts)
    print(text)
    if out := options.out or (None if options.quick or only else PAGE):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    return 0 if worked else 1


def measure(quick: bool, only: Sequence[str], transcripts: Path | None) -> tuple[str, bool]:
    """Measures every kind in one clone; returns the page, and whether all answered rightly."""
    load, measured = os.getloadavg()[0], commit()  # later commits are not in the clone
    found = []
    with temporary_clone() as clone, _database() as database:
        folder = clone.root / FOLDER
        folder.mkdir()
        sources = list(write_sources(folder, quick, database))
        up = clone.headrace("up").seconds
        report(f"services: {up:.1f} s")
        for source in sources:
            if not only or source.name in only:
                found.append(measure_one(source, clone))
                _report_one(found[-1], transcripts)
    return page(found, up, (load, os.getloadavg()[0]), measured), all(one.error is None and one.right for one in found)


def write_sources(folder: Path, quick: bool, database: tuple[str, str] | None) -> Iterator[Source]:
    """Writes every kind into `folder`; a query is of PostgreSQL if there is a `database` (address, password)."""
    for writer, count in KINDS.items():
        rows = min(count, QUICK["pictures" if writer.__name__.startswith("picture") else "rows"]) if quick else count
        yield _query(folder, rows, database) if writer is sqlite_query else writer(folder, rows)


def _query(folder: Path, rows: int, database: tuple[str, str] | None) -> Source:
    return sqlite_query(folder, rows) if database is None else postgres_query(folder, rows, *database)


@contextmanager
def _database() -> Iterator[tuple[str, str] | None]:
    """Starts the PostgreSQL server of the tests, if it and its driver are installed; its password is in the environment."""
    from importlib.util import find_spec

    from tests import postgres

    if postgres.programs() is None or find_spec("psycopg") is None:
        yield None
        return
    with postgres.server() as address:
        os.environ["PGPASSWORD"] = postgres.PASSWORD
        try:
            yield address, postgres.PASSWORD
        finally:
            del os.environ["PGPASSWORD"]


def measure_one(source: Source, clone: Clone) -> Measured:
    """Runs the commands of a user for one kind of data."""
    measured = Measured(source)
    target = ["--target", source.target] if source.target else []
    name = source.name
    commands = {
        "new": ["new", name, "--data", source.data, *target, *source.options],
        "run": ["run", name],
        "first answer": ["predict", name, *source.ask, "--json"],
    }
    try:
        for step, arguments in commands.items():
            ran = _run(clone, arguments, measured)
            measured.seconds[step] = ran.seconds
        measured.right = is_right(answers(ran.stdout, source.target)[0], source.truth[0])
        scored = _run(clone, ["predict", name, "--file", source.exam, "--json"], measured)
        predicted = answers(scored.stdout, source.target)
        measured.exam = sum(is_right(one, true) for one, true in zip(predicted, source.truth, strict=True))
    except HeadraceError as error:
        measured.error = error.message
        measured.transcript.append(error.message)
    return measured


def _run(clone: Clone, arguments: list[str], measured: Measured) -> CompletedCommand:
    measured.transcript.append(f"$ headrace {shlex.join(arguments)}")
    ran = clone.headrace(*arguments)
    measured.transcript += [ran.stderr, ran.stdout]
    return ran


def answers(stdout: str, target: str | None) -> list[Any]:
    """Returns the label or the number of each prediction that `headrace predict --json` printed; None where it was refused."""
    return [one and one.get("label", one.get(target)) for one in json.loads(stdout)["predictions"]]


def page(found: Sequence[Measured], up: float, load: tuple[float, float], measured: str) -> str:
    """Returns the page."""
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("prefect", "dvc", "mlflow", "great-expectations", "bentoml"))
    within = sum(one.error is None and one.total <= AIM_SECONDS for one in found)
    head = f"""
Written by `python -m benchmarks.own_data` on {time.strftime("%Y-%m-%d")}, commit {measured}, on {hardware()}, {versions}; load
of the machine before {load[0]:.1f}, after {load[1]:.1f}."""
    about = f"""
For each kind of data a user gives three commands: `headrace new NAME --data X --target Y`, `headrace run NAME` with the recipe
as it was written, and `headrace predict NAME …`, which is a request to the gateway. The data are drawn with a seed and written
as files: {_counts()}. The services run ({up:.0f} s for `headrace up` in a new project, once).

The aim is {AIM_SECONDS / 60:.0f} minutes from the file to the first answer: reached by {within} of {len(found)}. The last
columns say whether the first answer is right, and how many of {EXAM} rows, pictures or texts that were not in the data are
answered rightly by `headrace predict NAME --file FILE`; a number is right if it is within 25 % of the true one."""
    failures = "".join(f"\n\n`{one.source.name}` failed: {one.error.splitlines()[0]}" for one in found if one.error)
    table = markdown(HEADER, [_row(one) for one in found])
    return f"# Your own data: from a file to an answer\n\n{wrap(head)}\n\n{wrap(about)}\n\n{table}{failures}\n"


def _counts() -> str:
    return f"tables of {ROWS:,} rows, {PICTURES:,} pictures, {TEXTS:,} texts"


def _row(one: Measured) -> list[str]:
    seconds = [f"{one.seconds[step]:.1f}" if step in one.seconds else "–" for step in ("new", "run", "first answer")]
    if one.error is not None:
        return [one.source.title, *seconds, "–", "failed", "–"]
    return [one.source.title, *seconds, f"{one.total:.1f}", "yes" if one.right else "no", f"{one.exam} of {EXAM}"]


def _report_one(one: Measured, transcripts: Path | None) -> None:
    said = one.error or f"{one.total:.1f} s, {'right' if one.right else 'wrong'}, {one.exam} of {EXAM}"
    report(f"{one.source.title}: {said}")
    if transcripts is not None:
        transcripts.mkdir(parents=True, exist_ok=True)
        write_text(transcripts / f"{one.source.name}.txt", "\n".join(one.transcript))


if __name__ == "__main__":
    sys.exit(main())
