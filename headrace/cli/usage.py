"""Commands that show usage and the audit log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError, near_miss

MOMENTS = ("issued", "expires")
"""Facts of a token that are times in seconds since 1970."""


@click.command(short_help="Show usage by tenant, model and day.")
@click.option("--tenant", help="Show this tenant only.")
@click.option("--model", help="Show this model only.")
@click.option("--days", default=30, show_default=True, type=click.IntRange(1), help="Number of UTC days, today included.")
@json_option
def usage(tenant: str | None, model: str | None, days: int, as_json: bool) -> None:
    """Show the usage of each tenant by model and UTC day: requests, rows, generated tokens, and tokens of prompts."""
    project = load_project()
    from headrace.runtime.usage import COUNTS, fold, read_usage

    project.usage.mkdir(mode=0o700, parents=True, exist_ok=True)
    fold(project.usage)
    found = read_usage(project.usage)
    for option, name, known in (("tenant", tenant, {row.tenant for row in found}), ("model", model, {r.model for r in found})):
        if name is not None and name not in known:
            raise UsageError(f"no usage of {name!r}; {near_miss(name, known)}", where=f"--{option}")
    first = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
    rows = [row for row in found if row.day >= first and tenant in (None, row.tenant) and model in (None, row.model)]
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    if not rows:
        click.echo(f"no usage since {first}")
        return
    from headrace.cli.summary import print_table

    totals = ("total", "", "", *(sum(getattr(row, name) for row in rows) for name in COUNTS))
    print_table(
        ("day", "tenant", "model", "requests", "rows", "tokens", "prompt tokens"), [*(tuple(row) for row in rows), totals]
    )


@click.command(short_help="Show the audit log.")
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(1), help="Number of newest entries.")
@json_option
def audit(lines: int, as_json: bool) -> None:
    """Show the audit log, oldest entry first: tokens, approvals, rejections, releases, rollbacks, up and down.

    Each entry holds the sha256 of the one before. If an entry was changed or removed, the command fails with exit code 1.
    """
    project = load_project()
    from headrace.serving.access.audit import entries

    found = entries(project)[-lines:]
    if as_json:
        print_json([act.model_dump() for act in found])
        return
    for act in found:
        facts = "  ".join(f"{name} {_as_text(name, value)}" for name, value in act.facts.items() if value not in (None, [], ""))
        click.echo(f"{act.at}  {act.by}  {act.act}  {facts}".rstrip())
    if not found:
        click.echo("the audit log is empty")


def _as_text(name: str, value: Any) -> str:
    if name == "rate":
        from headrace.serving.access.tokens import rate_text

        return rate_text(value)
    if name in MOMENTS:
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
