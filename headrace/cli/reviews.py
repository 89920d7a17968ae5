"""Commands that approve and reject versions, here or through the gateway of another machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import UsageError

if TYPE_CHECKING:
    from headrace.project import Project
    from headrace.release.reviews import Outcome, Reviewer

F = TypeVar("F", bound=Callable[..., Any])
address_option: Callable[[F], F] = click.option(
    "--address",
    envvar="HEADRACE_ADDRESS",
    help="Address of a gateway on another machine, which needs a reviewer's token in HEADRACE_TOKEN.",
)


@click.command(short_help="Approve a version that awaits approval.")
@click.argument("version", required=False)
@click.option("--why", default="", help="The reason, for the journal.")
@address_option
@json_option
def approve(version: str | None, why: str, address: str | None, as_json: bool) -> None:
    """Approve VERSION (for example digits@4) of a recipe with `approval: manual`; its suspended run in Prefect rolls it out.
    Without VERSION, list the versions that wait.

    Recorded and signed is the name of the token in HEADRACE_TOKEN, which has to be a reviewer's; without it, your user name, as
    the operator.
    """
    if version is None:
        _list(address, as_json)
    else:
        _review(version, "approved", why, address, as_json)


@click.command(short_help="Reject a version that awaits approval.")
@click.argument("version")
@click.option("--why", required=True, help="The reason, for the journal and for the next `headrace run`.")
@address_option
@json_option
def reject(version: str, why: str, address: str | None, as_json: bool) -> None:
    """Reject VERSION (for example digits@4). It is not released until somebody approves it after all; `headrace run` says who
    rejected it and why.

    Recorded and signed is the name of the token in HEADRACE_TOKEN, which has to be a reviewer's; without it, your user name, as
    the operator.
    """
    _review(version, "rejected", why, address, as_json)


def _review(version: str, outcome: Outcome, why: str, address: str | None, as_json: bool) -> None:
    done = _remote_review(version, outcome, why, address) if address else _local_review(version, outcome, why)
    if as_json:
        print_json(done)
        return
    name = f"{done['model']}@{done['version']}"
    click.echo(f"{name} is {outcome} by {done['by']} ({done['role']})")
    click.echo(done["next"])


def _local_review(version: str, outcome: Outcome, why: str) -> dict[str, Any]:
    project = load_project()
    from headrace.release.reviews import review
    from headrace.services.approvals import follow_up

    found = review(version, outcome, _reviewer(project), why, project)
    after = follow_up(found.model, found.version, project)
    return {"model": found.model, "version": found.version, "outcome": outcome, **found.facts(), **after}


def _remote_review(version: str, outcome: Outcome, why: str, address: str) -> dict[str, Any]:
    from headrace.cli.gateway_client import remote_client

    model, at, number = version.partition("@")
    if not (model and at and number):
        raise UsageError(f"expected a version such as digits@4, got {version!r}", where="VERSION")
    with remote_client(address) as client:
        number = number.removeprefix("v")
        return client.approve(model, number, why) if outcome == "approved" else client.reject(model, number, why)


def _reviewer(project: Project) -> Reviewer:
    """Who calls: the holder of the token in `HEADRACE_TOKEN`, else this user, as the operator.

    Raises:
        UsageError: the token is not valid here.
    """
    from headrace.cli.gateway_client import given_token
    from headrace.release.reviews import Reviewer
    from headrace.runtime.token_verifier import InvalidToken, TokenVerifier
    from headrace.services.approvals import operator

    given = given_token()
    if not given:
        return operator(project)
    try:
        return Reviewer.of(TokenVerifier(project.token_keys).verify(given))
    except InvalidToken:
        raise UsageError(
            "the token is not valid in this project",
            where="HEADRACE_TOKEN",
            hint="unset it to decide as the operator, or set a reviewer's: headrace tokens issue --tenant NAME --role reviewer",
        ) from None


def _list(address: str | None, as_json: bool) -> None:
    found = _remote_candidates(address) if address else _local_candidates()
    if as_json:
        print_json(found)
        return
    from headrace.cli.summary import print_candidates

    print_candidates(found)


def _local_candidates() -> list[dict[str, Any]]:
    project = load_project()
    from headrace.release.reviews import candidates

    return [one.to_dict() for one in candidates(project)]


def _remote_candidates(address: str) -> list[dict[str, Any]]:
    from headrace.cli.gateway_client import remote_client

    with remote_client(address) as client:
        return client.candidates()
