"""The command that writes a recipe for a user's own data."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.scaffold.parts import Scaffold
    from headrace.scaffold.write import Choices, Described, Written

WIDTH = 34
SQLITE = b"SQLite format 3\0"
"""The first bytes of a database file."""
READ_OPTIONS = (
    *("separator", "quote", "decimal", "thousands", "encoding", "skip_lines", "skip_last", "comment"),
    *("sheet", "query", "table"),
)
"""Options that are fields of `data.read`."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        [
            click.option("--data", required=True, metavar="X", help="A file, a folder or pattern, an address, a database."),
            click.option(
                "--target",
                "targets",
                multiple=True,
                metavar="COLUMN",
                help="The column to predict; several of numbers, or of true and false. Without it, possible ones are listed.",
            ),
            click.option(
                "--task",
                help="classification or regression, with text-, image- or multilabel- before it, as in docs/recipes.md.",
            ),
            click.option(
                "--model",
                metavar="NAME",
                help="mlp, lightgbm or xgboost; by default the better of the first two on the sample.",
            ),
            click.option("--text", metavar="COLUMN", help="The column with the text to learn from."),
            click.option(
                "--categorical", multiple=True, metavar="COLUMN", help="A category that looks like a number or an id."
            ),
            click.option("--drop", multiple=True, metavar="COLUMN", help="A column to leave out."),
            click.option("--time", metavar="COLUMN", help="The column of times to split by: the latest rows are for the test."),
            click.option("--missing", multiple=True, metavar="TEXT", help="A text that means a missing value."),
            click.option("--separator", metavar="CHARACTER", help="What separates columns, for example ';' or tab."),
            click.option("--quote", metavar="CHARACTER", help="The quote around values; '' for none."),
            click.option("--decimal", type=click.Choice([".", ","]), help="The decimal sign."),
            click.option("--thousands", metavar="SIGN", help="The sign between groups of three digits."),
            click.option("--encoding", help="The encoding of a text file, for example cp1252."),
            click.option("--header/--no-header", default=None, help="Whether the first line holds the names of the columns."),
            click.option("--skip-lines", type=click.IntRange(0), help="Lines above the table."),
            click.option("--skip-last", type=click.IntRange(0), help="Lines below the table."),
            click.option("--comment", metavar="CHARACTER", help="Lines that begin with it are comments."),
            click.option("--format", "known_format", help="The format, if the name of the file does not tell it."),
            click.option("--sheet", help="The sheet of a workbook."),
            click.option("--query", metavar="SQL", help="The query, for a database."),
            click.option("--table", metavar="NAME", help="The table, for a database."),
            json_option,
        ]
    ):
        command = option(command)
    return command


@click.command(short_help="Write a recipe for your own data.")
@click.argument("name")
@_options
def new(name: str, as_json: bool, data: str, targets: tuple[str, ...], **options: Any) -> None:
    """Write a recipe NAME for your own data, which `headrace run NAME` can release.

    It looks at a sample, recognises how the file is written, decides the task, and shows what it makes of each column. Every
    guess can be set by an option, or later in the recipe. A folder or an archive with a folder of pictures, or of text files,
    for each class needs no target; a table may hold paths of pictures.
    """
    project = load_project()
    from headrace.scaffold.folders import write_folder_recipe
    from headrace.scaffold.write import check_name, describe, write_recipe

    choices, data = _choices(options), _address(data)
    if (found := write_folder_recipe(name, Path(data).expanduser(), targets, project, choices.task, choices.model)) is not None:
        _show_folder(name, found, as_json)
        return
    if not targets:
        check_name(name, project)
        _choose_target(describe(data, project, choices), as_json)
        return
    written = write_recipe(name, data, targets, project, choices)
    _show(name, written, as_json)


def _address(data: str) -> str:
    """Returns the address of a file that is an SQLite database; other data as it is."""
    path = Path(data).expanduser()
    if not path.is_file():
        return data
    with path.open("rb") as file:
        return f"sqlite:///{path}" if file.read(len(SQLITE)) == SQLITE else data


def _choices(options: dict[str, Any]) -> Choices:
    from pydantic import ValidationError

    from headrace.recipe.read import ReadConfig
    from headrace.scaffold.write import Choices

    read = {field: options[field] for field in READ_OPTIONS if options[field] is not None}
    try:
        checked = ReadConfig(**read)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else "data.read"
        reason = first["msg"].removeprefix("Value error, ")
        raise UsageError(reason, where=f"--{field.replace('_', '-')}", hint="correct the option") from None
    return Choices(
        options["task"],
        options["text"],
        options["time"],
        list(options["categorical"]),
        list(options["drop"]),
        {name: getattr(checked, name) for name in read},
        list(options["missing"]),
        options["header"],
        options["known_format"],
        options["model"],
    )


def _choose_target(described: Described, as_json: bool) -> None:
    if as_json:
        facts = {"recipe": None, "targets": described.targets}
        print_json({**facts, **_facts(described)})
    else:
        _show_table(described)
        for column, task in described.targets.items():
            click.echo(f"  --target {shlex.quote(column)}   {task}")
    if described.targets:
        raise UsageError(
            f"no target: one of {len(described.targets)} columns can be predicted",
            where="--target",
            hint=f"add it to the command: --target {shlex.quote(next(reversed(described.targets)))}",
        )
    raise UsageError("no column can be predicted", where="--target", hint="use a table with a column of labels or numbers")


def _show(name: str, written: Written, as_json: bool) -> None:
    from headrace.recipe.recipe import load_recipe

    project = load_project()
    recipe = load_recipe(name, project)
    path = written.path
    if as_json:
        facts = {"recipe": name, "path": str(path), "task": recipe.task, "expectations": len(recipe.expect)}
        outside = any("outside of the project" in note for note in written.notes)
        compared = written.comparison.to_dict() if written.comparison is not None else None
        facts |= {"model": recipe.model.name, "comparison": compared}
        more = {"why": written.why, "notes": written.notes, "source_outside_project": outside}
        print_json({**facts, **more, **_facts(written.described)})
        return
    _show_table(written.described)
    click.echo(
        f"{path.relative_to(project.root)}: {recipe.task} of {', '.join(recipe.data.targets)}, "
        f"{_expectations(len(recipe.expect))}, {recipe.model.name}"
    )
    click.echo(
        f"{recipe.task}, because {written.why}" if not written.why.startswith("as ") else f"{recipe.task}, {written.why}"
    )
    if written.comparison is not None:
        click.echo(written.comparison.line())
    for note in written.notes:
        click.echo(note)
    click.echo(f"Review it, then: headrace run {name}")


def _show_folder(name: str, found: Scaffold, as_json: bool) -> None:
    """Shows the recipe of pictures, or of text files in folders."""
    from headrace.recipe.recipe import load_recipe
    from headrace.scaffold.tables import outside_note

    project = load_project()
    recipe = load_recipe(name, project)
    is_outside = Path(recipe.data.origin).is_absolute()
    if as_json:
        facts = {"recipe": name, "path": str(found.path), "task": recipe.task, "expectations": len(recipe.expect)}
        print_json({**facts, **found.facts, "source_outside_project": is_outside})
        return
    for line in found.lines:
        click.echo(line)
    click.echo(
        f"{found.path.relative_to(project.root)}: {recipe.task} of {', '.join(recipe.data.targets)}, "
        f"{_expectations(len(recipe.expect))}, {recipe.model.name}"
    )
    if is_outside:
        click.echo(outside_note(recipe.data.origin))
    click.echo(f"Review it, then: headrace run {name}")


def _facts(described: Described) -> dict[str, Any]:
    sample = described.sample
    return {
        "rows": len(described.frame),
        "rows_are_a_sample": not sample.is_whole,
        "recognised": sample.recognised,
        "read": sample.read.model_dump(exclude_defaults=True) if sample.read else None,
        "missing": list(sample.rules.missing) if sample.rules.missing is not None else None,
        "trim": sample.rules.trim,
        "parse": {name: rule.model_dump(exclude_defaults=True) for name, rule in sample.rules.rules.items()},
        "columns": [column.to_dict() for column in described.columns],
    }


def _show_table(described: Described) -> None:
    sample = described.sample
    rows = f"{len(described.frame):,} rows" + ("" if sample.is_whole else ", a sample")
    click.echo(", ".join([f"{described.located.shown}: {rows}", *sample.recognised]))
    width = min(WIDTH, max([6, *(len(column.name) for column in described.columns)]))
    click.echo(f"{'column':{width}}  {'type':12}  {'gaps':>6}  {'distinct':>8}  role")
    for column in described.columns:
        name = column.name if len(column.name) <= width else column.name[: width - 1] + "…"
        why = f": {column.reason}" if column.reason else ""
        why += f" ({column.hint})" if column.hint else ""
        click.echo(
            f"{_printable(name):{width}}  {column.type:12}  {column.gaps:>6,}  {column.distinct:>8,}  {column.role}{why}"
        )


def _expectations(count: int) -> str:
    return f"{count} expectation{'' if count == 1 else 's'}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
