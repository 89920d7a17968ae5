"""Commands about access: tokens, what was used, and who did what."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from headrace.cli.shared import here, json_option, print_json
from headrace.errors import UsageError, near_miss
from headrace.project import Project
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.serving.access.tokens import IssuedToken


@click.group()
def tokens() -> None:
    """Tokens: who may call which models, how often, how much."""


@tokens.command("issue", short_help="A new token, printed once.")
@click.option("--tenant", required=True, help="Whom it stands for: limits, quotas and usage are counted by tenant.")
@click.option("--models", required=True, help="Models it opens, such as 'digits,flights'; '*' for all, those to come too.")
@click.option("--rate", help="How often the tenant may ask, such as 100/s, 30/m, 1000/h; without it, no limit.")
@click.option("--rows-per-day", help="How many rows a UTC day, such as 1e6; without it, no quota.")
@click.option("--expires", default="30d", show_default=True, help="Its life: a number and s, m, h or d.")
@json_option
def issue(tenant: str, models: str, rate: str | None, rows_per_day: str | None, expires: str, as_json: bool) -> None:
    """Issue a token and print it. It is kept nowhere: whoever loses it is issued another one.

    headrace tokens issue --tenant acme --models 'digits,flights' --rate 100/s --rows-per-day 1e6 --expires 30d
    """
    project, settings = here()
    from headrace.serving.access import tokens as work

    names = _known_models(models, project)
    token, facts = work.issue(
        project,
        tenant,
        names,
        work.parse_seconds(expires),
        work.parse_rate(rate) if rate else None,
        work.parse_rows(rows_per_day) if rows_per_day else None,
    )
    _update_gateway(project, settings)
    if as_json:
        print_json({**_shown(facts), "token": token})
        return
    click.echo(f"{facts.jti} opens {', '.join(facts.models)} for {facts.tenant} until {_day(facts.expires)}", err=True)
    click.echo(token)


@tokens.command("list", short_help="Tokens that were issued.")
@json_option
def list_tokens(as_json: bool) -> None:
    """Every token that was issued: its id, tenant, models, limits and state, but never the token itself."""
    project, _ = here()
    from headrace.serving.access import tokens as work

    found = [_shown(facts) for facts in work.list_tokens(project)]
    if as_json:
        print_json(found)
        return
    from headrace.cli.summary import print_table

    columns = ("id", "tenant", "models", "rate", "rows a day", "expires", "state")
    keys = ("id", "tenant", "models", "rate", "rows_per_day", "expires", "state")
    print_table(columns, [tuple(", ".join(v) if isinstance(v := row[k], list) else v for k in keys) for row in found])


@tokens.command("revoke", short_help="Take a token, or all of a tenant, out of force.")
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Take the token of this id, or all tokens of this tenant, out of force: within two seconds, on all replicas."""
    project, settings = here()
    from headrace.serving.access import tokens as work

    found = work.revoke(project, name)
    _update_gateway(project, settings)
    if as_json:
        print_json([_shown(facts) for facts in found])
        return
    for facts in found:
        click.echo(f"{facts.jti} of {facts.tenant} is revoked")
    if not found:
        click.echo(f"nothing of {name} was in force")


@tokens.command("show", short_help="The operator's own token.")
@json_option
def show(as_json: bool) -> None:
    """Print the token that this house itself calls with: for all models, without limits. For curl, and for this user alone."""
    project, _ = here()
    from headrace.serving.access import tokens as work

    token = work.operator_token(project)
    if as_json:
        print_json({"tenant": work.OPERATOR, "token": token})
    else:
        click.echo(token)


@tokens.command("rotate", short_help="Sign with a new key from now on.")
@json_option
def rotate(as_json: bool) -> None:
    """Sign with a new key from now on. Tokens that the old one signed stay good until they expire or are revoked."""
    project, settings = here()
    from headrace.serving.access import tokens as work

    kid = work.rotate(project)
    _update_gateway(project, settings)
    if as_json:
        print_json({"kid": kid})
    else:
        click.echo(f"key {kid} signs from now on")


def _known_models(text: str, project: Project) -> list[str]:
    """Names of recipes or of what serves.

    Raises:
        UsageError: one is neither.
    """
    from headrace.serving.gateway import gateway

    names = [name.strip() for name in text.split(",") if name.strip()]
    if "*" in names:
        return ["*"]
    known = {path.stem for path in project.recipes.glob("*.yaml")} | set(gateway.endpoints_by_model(project))
    for name in names:
        if name not in known:
            raise UsageError(f"no model {name!r}; {near_miss(name, known)}", where="--models", hint="headrace recipes")
    return names


def _update_gateway(project: Project, settings: Settings) -> None:
    from headrace.serving.gateway import gateway

    gateway.reload_tokens(project, settings)


def _shown(facts: IssuedToken) -> dict[str, object]:
    import time

    from headrace.serving.access.tokens import rate_text

    in_force = "in force" if facts.is_active(time.time()) else "expired"
    return {
        "id": facts.jti,
        "tenant": facts.tenant,
        "models": facts.models,
        "rate": rate_text(facts.rate) if facts.rate is not None else None,
        "rows_per_day": facts.rows_per_day,
        "issued": _day(facts.issued),
        "expires": _day(facts.expires),
        "state": "revoked" if facts.revoked is not None else in_force,
    }


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


COMMANDS = [tokens]
