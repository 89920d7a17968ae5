"""What Headrace prints: steps and bars on standard error, results on standard output."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

Report = Callable[[str], None]
BAR_SECONDS = 0.1


@cache
def err() -> Console:
    """Standard error, where progress goes, so that standard output stays clean for `--json`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


@cache
def out() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def program() -> str:
    """What a shell calls this program by: its name where PATH leads to it, else where it lies (`make run` needs no PATH)."""
    lies = Path(sys.executable).with_name("headrace")
    found = shutil.which("headrace")
    if not lies.exists() or (found is not None and Path(found).samefile(lies)):
        return "headrace"
    return shlex.quote(str(lies.relative_to(Path.cwd()) if lies.is_relative_to(Path.cwd()) else lies))


def report(line: str) -> None:
    """One line of detail below the step under way."""
    err().print(f"  [dim]{_escaped(line)}[/dim]")


def step(name: str, detail: str = "") -> None:
    """Announces a step."""
    err().print(f"[bold cyan]▸[/bold cyan] [bold]{name}[/bold]  {_escaped(detail)}".rstrip())


def error(text: str) -> None:
    """An error on standard error, its hint on a line of its own."""
    head, *rest = text.split("\n")
    err().print(f"[bold red]error[/bold red] {_escaped(head)}")
    for line in rest:
        err().print(f"[bold]{_escaped(line)}[/bold]" if line.startswith("  hint:") else f"      {_escaped(line)}")


class Bar:
    """A progress bar; without a terminal it prints a line at each `say` instead."""

    def __init__(self, name: str, total: int, progress: Progress | None) -> None:
        self._name, self._total, self._progress = name, total, progress
        self._task: TaskID | None = progress.add_task(name, total=total, said="") if progress else None
        self._moved = 0.0

    @property
    def is_drawn(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self._progress is not None

    def move(self, done: int) -> None:
        if self._progress is None or self._task is None or time.monotonic() - self._moved < BAR_SECONDS:
            return  # a tenth of a second is smooth enough; drawing each step would slow small models
        self._moved = time.monotonic()
        self._progress.update(self._task, completed=done)

    def say(self, text: str) -> None:
        if self._progress is None or self._task is None:
            report(text)
        else:
            self._progress.update(self._task, said=text)


@contextmanager
def bar(name: str, total: int) -> Iterator[Bar]:
    """A bar of `total` steps on standard error."""
    if not sys.stderr.isatty():
        yield Bar(name, total, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=err(), transient=True) as progress:
        yield Bar(name, total, progress)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
