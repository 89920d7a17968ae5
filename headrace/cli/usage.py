"""Commands that tell what was used, by whom, and who did what to the house."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.errors import UsageError, near_miss

MOMENTS = ("issued", "expires")
"""Facts of a token that are kept in seconds since 1970."""


@click.command(short_help="Requests and rows by tenant, model and day.")
@click.option("--tenant", help="Of this tenant alone.")
@click.option("--model", help="Of this model alone.")
@click.option(
    "--days", default=30, show_default=True, type=click.IntRange(1), help="The last so many UTC days, today included."
)
@json_option
def usage(tenant: str | None, model: str | None, days: int, as_json: bool) -> None:
    """What each tenant was given, by model and UTC day: requests, rows, and tokens of text. Counted before answers leave."""
    project, _ = here()
    from headrace.runtime.usage import fold, read_usage

    project.usage.mkdir(mode=0o700, parents=True, exist_ok=True)
    fold(project.usage)
    found = read_usage(project.usage)
    for option, name, known in (("tenant", tenant, {row.tenant for row in found}), ("model", model, {r.model for r in found})):
        if name is not None and name not in known:
            raise UsageError(f"nothing was counted for {name!r}; {near_miss(name, known)}", where=f"--{option}")
    first = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
    rows = [row for row in found if row.day >= first and tenant in (None, row.tenant) and model in (None, row.model)]
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    if not rows:
        click.echo(f"nothing was counted since {first}")
        return
    from headrace.cli.summary import print_table

    totals = ("total", "", "", *(sum(getattr(row, name) for row in rows) for name in ("requests", "rows", "tokens")))
    print_table(("day", "tenant", "model", "requests", "rows", "tokens"), [*(tuple(row) for row in rows), totals])


@click.command(short_help="Who did what to this house.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1), help="How many acts, the newest.")
@json_option
def audit(lines: int, as_json: bool) -> None:
    """Every administrative act, oldest first: tokens, approvals, releases, rollbacks, up and down.

    Each line holds the sha256 of the one before; a line that was changed or taken out is told, with exit code 1.
    """
    project, _ = here()
    from headrace.serving.access.audit import entries

    found = entries(project)[-lines:]
    if as_json:
        print_json([act.model_dump() for act in found])
        return
    for act in found:
        told = "  ".join(f"{name} {_as_text(name, value)}" for name, value in act.facts.items() if value not in (None, [], ""))
        click.echo(f"{act.at}  {act.by}  {act.act}  {told}".rstrip())
    if not found:
        click.echo("no act is recorded yet")


def _as_text(name: str, value: Any) -> str:
    if name == "rate":
        from headrace.serving.access.tokens import rate_text

        return rate_text(value)
    if name in MOMENTS:
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


COMMANDS = [usage, audit]
