"""Commands for access tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError, near_miss
from headrace.project import Project

if TYPE_CHECKING:
    from headrace.serving.access.tokens import IssuedToken


LIMITS = ("rows_per_day", "tokens_per_day", "tokens_per_minute")


@click.group(short_help="Manage access tokens.")
def tokens() -> None:
    """Manage tokens: who may call which models, at which rate and quota, and who may approve versions."""


@tokens.command("issue", short_help="Issue a token.")
@click.option("--tenant", required=True, help="Tenant of the token; limits, quotas and usage are counted per tenant.")
@click.option("--models", help="Models that it allows, for example 'digits,flights'; '*' allows all, future ones too.")
@click.option(
    "--role",
    type=click.Choice(["reviewer", "viewer"]),
    help="What it allows beside models: a reviewer approves and rejects versions, a viewer sees them.",
)
@click.option("--rate", help="Rate limit of the tenant, for example 100/s, 30/m or 1000/h; by default none.")
@click.option("--rows-per-day", help="Daily quota in rows per UTC day, for example 1e6; by default none.")
@click.option("--tokens-per-day", help="Daily quota in tokens of prompts and generated texts together; by default none.")
@click.option("--tokens-per-minute", help="The same for each minute of the clock; by default none.")
@click.option("--expires", default="30d", show_default=True, help="Lifetime: a number and s, m, h or d.")
@json_option
def issue(
    tenant: str,
    models: str | None,
    role: str | None,
    rate: str | None,
    rows_per_day: str | None,
    tokens_per_day: str | None,
    tokens_per_minute: str | None,
    expires: str,
    as_json: bool,
) -> None:
    """Issue a token and print it. It is not stored; issue a new one if it is lost.

    \b
    headrace tokens issue --tenant acme --models 'digits,flights' --rate 100/s --rows-per-day 1e6 --expires 30d
    headrace tokens issue --tenant acme --models chat --tokens-per-day 1e6 --tokens-per-minute 2e4
    headrace tokens issue --tenant ada --role reviewer
    """
    project = load_project()
    from headrace.serving.access import tokens as work

    names = _known_models(models, project) if models else []
    token, facts = work.issue(
        project,
        tenant,
        names,
        work.parse_seconds(expires),
        work.parse_rate(rate) if rate else None,
        work.parse_count(rows_per_day, "--rows-per-day") if rows_per_day else None,
        role,
        work.parse_count(tokens_per_day, "--tokens-per-day") if tokens_per_day else None,
        work.parse_count(tokens_per_minute, "--tokens-per-minute") if tokens_per_minute else None,
    )
    _update_gateway(project)
    if as_json:
        print_json({**_shown(facts), "token": token})
        return
    allowed = [*facts.models, *([f"the role {facts.role}"] if facts.role else [])]
    click.echo(f"{facts.jti} allows {', '.join(allowed)} for {facts.tenant} until {_day(facts.expires)}", err=True)
    click.echo(token)


@tokens.command("list", short_help="List tokens.")
@json_option
def list_tokens(as_json: bool) -> None:
    """List all tokens: id, tenant, role, models, limits and state, but not the token itself."""
    project = load_project()
    from headrace.serving.access import tokens as work

    found = [_shown(facts) for facts in work.list_tokens(project)]
    if as_json:
        print_json(found)
        return
    from headrace.cli.summary import print_table

    limits = [name for name in LIMITS if any(row[name] is not None for row in found) or name == "rows_per_day"]
    keys = ("id", "tenant", "role", "models", "rate", *limits, "expires", "state")
    rows = [tuple(", ".join(v) if isinstance(v := row[k], list) else v for k in keys) for row in found]
    print_table(tuple(key.replace("_", " ") for key in keys), rows)


@tokens.command("revoke", short_help="Revoke a token, or all tokens of a tenant.")
@click.argument("name")
@json_option
def revoke(name: str, as_json: bool) -> None:
    """Revoke the token with the id NAME, or all tokens of the tenant NAME, within two seconds on all replicas.

    The batches that were sent with these tokens end.
    """
    project = load_project()
    from headrace.serving.access import tokens as work

    found = work.revoke(project, name)
    _update_gateway(project)
    if as_json:
        print_json([_shown(facts) for facts in found])
        return
    for facts in found:
        click.echo(f"{facts.jti} of {facts.tenant} is revoked")
    if not found:
        click.echo(f"no active token for {name}")


@tokens.command("show", short_help="Print the operator token.")
@json_option
def show(as_json: bool) -> None:
    """Print the operator token (all models, no limits)."""
    project = load_project()
    from headrace.serving.access import tokens as work

    token = work.operator_token(project)
    if as_json:
        print_json({"tenant": work.OPERATOR, "token": token})
    else:
        click.echo(token)


@tokens.command("rotate", short_help="Rotate the signing key.")
@json_option
def rotate(as_json: bool) -> None:
    """Rotate the signing key. Tokens signed with the old one stay valid until they expire or are revoked."""
    project = load_project()
    from headrace.serving.access import tokens as work

    kid = work.rotate(project)
    _update_gateway(project)
    if as_json:
        print_json({"kid": kid})
    else:
        click.echo(f"new tokens are signed with key {kid}")


def _known_models(text: str, project: Project) -> list[str]:
    """Splits a list of names of recipes or served models.

    Raises:
        UsageError: a name is neither; with the near miss.
    """
    from headrace.serving.gateway import gateway

    names = [name.strip() for name in text.split(",") if name.strip()]
    if "*" in names:
        return ["*"]
    known = {path.stem for path in project.recipes.glob("*.yaml")} | set(gateway.endpoints_by_model(project))
    for name in names:
        if name not in known:
            raise UsageError(f"unknown model {name!r}; {near_miss(name, known)}", where="--models", hint="headrace recipes")
    return names


def _update_gateway(project: Project) -> None:
    from headrace.serving.gateway import gateway

    gateway.reload_tokens(project)


def _shown(facts: IssuedToken) -> dict[str, object]:
    import time

    from headrace.serving.access.tokens import rate_text

    state = "active" if facts.is_active(time.time()) else "expired"
    return {
        "id": facts.jti,
        "tenant": facts.tenant,
        "role": facts.role,
        "models": facts.models,
        "rate": rate_text(facts.rate) if facts.rate is not None else None,
        **{name: getattr(facts, name) for name in LIMITS},
        "issued": _day(facts.issued),
        "expires": _day(facts.expires),
        "state": "revoked" if facts.revoked is not None else state,
    }


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
