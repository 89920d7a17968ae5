"""Shared by all commands: the project, the `--json` option, and errors as text or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from headrace.errors import HeadraceError, Interrupted
from headrace.processes import as_headrace_error
from headrace.project import Project, find_project

F = TypeVar("F", bound=Callable[..., Any])
json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)


def load_project() -> Project:
    """Returns the project of the working folder, with valid settings."""
    project = find_project()
    _ = project.settings  # an invalid setting is reported before anything starts
    return project


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def report_error(error: BaseException, as_json: bool) -> int:
    """Prints an error that the user can act on and returns its exit code; raises any other one, a bug, with its traceback."""
    known = _as_known(error)
    if known is None:
        raise error
    if as_json:
        click.echo(json.dumps(known.to_dict(), ensure_ascii=False))
    else:
        from headrace import console

        console.error(str(known))
    return known.exit_code


def _as_known(error: BaseException) -> HeadraceError | None:
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted", hint=f"to continue, run the same command: headrace {' '.join(sys.argv[1:])}")
    return as_headrace_error(error) if isinstance(error, Exception) else None
