"""Terminal output: steps and progress bars on standard error, results on standard output."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    """The console on standard error, for progress; standard output is for results and `--json`."""
    return _console(stderr=True)


@cache
def out() -> Console:
    """The console on standard output."""
    return _console(stderr=False)


def command_name() -> str:
    """Returns the command that starts this program: its name if it is on PATH, otherwise its path (after `make run`)."""
    path = Path(sys.executable).with_name("headrace")
    found = shutil.which("headrace")
    if not path.exists() or (found is not None and Path(found).samefile(path)):
        return "headrace"
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def report(line: str) -> None:
    """Prints one line of detail below the current step."""
    err().print(f"  [dim]{_escaped(line)}[/dim]")


def step(name: str, detail: str = "") -> None:
    """Prints the name of a step that begins."""
    err().print(f"[bold cyan]▸[/bold cyan] [bold]{name}[/bold]  {_escaped(detail)}".rstrip())


def log(line: str) -> None:
    """Writes a line with the time to standard output, which supervisord keeps; supervisord may have died."""
    with suppress(OSError):
        sys.stdout.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {line}\n")
        sys.stdout.flush()


def error(text: str) -> None:
    """Prints an error to standard error, with its hint on a separate line."""
    head, *rest = text.split("\n")
    err().print(f"[bold red]error[/bold red] {_escaped(head)}")
    for line in rest:
        err().print(f"[bold]{_escaped(line)}[/bold]" if line.startswith("  hint:") else f"      {_escaped(line)}")


class Bar:
    """A progress bar; without a terminal, `set_description` prints a line instead."""

    def __init__(self, name: str, total: int, progress: Progress | None) -> None:
        self._name, self._total, self._progress = name, total, progress
        self._task: TaskID | None = progress.add_task(name, total=total, detail="") if progress else None
        self._updated = 0.0

    @property
    def is_visible(self) -> bool:
        """Whether there is a terminal that shows the bar."""
        return self._progress is not None

    def update(self, done: int) -> None:
        """Sets the number of completed steps."""
        if self._progress is None or self._task is None or time.monotonic() - self._updated < BAR_SECONDS:
            return  # drawing each step would slow the training of small models down
        self._updated = time.monotonic()
        self._progress.update(self._task, completed=done)

    def set_description(self, text: str) -> None:
        """Sets the text after the bar."""
        if self._progress is None or self._task is None:
            report(text)
        else:
            self._progress.update(self._task, detail=text)


@contextmanager
def bar(name: str, total: int) -> Iterator[Bar]:
    """Shows a progress bar of `total` steps on standard error."""
    if not sys.stderr.isatty():
        yield Bar(name, total, None)
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=err(), transient=True) as progress:
        yield Bar(name, total, progress)


def _console(stderr: bool) -> Console:
    """Returns a console that goes on silently when nobody reads its pipe any more; rich's own ends the process."""
    from rich.console import Console

    class SilentWhenClosed(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())  # what is still in the buffer is written when the process ends
            os.close(nowhere)

    return SilentWhenClosed(stderr=stderr, highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
