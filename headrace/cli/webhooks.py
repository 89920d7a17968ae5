"""Commands about the receivers of events: how far deliveries are, and a test."""

from __future__ import annotations

import sys

import click

from headrace.cli.shared import json_option, load_project, print_json
from headrace.errors import ServiceError


@click.group(short_help="Show the receivers of events, and test webhooks.")
def webhooks() -> None:
    """Show who gets events (Prefect, the addresses of `notify`, webhooks), and send a test to webhooks."""


@webhooks.command("list", short_help="Show receivers, pending deliveries and the last error.")
@json_option
def show(as_json: bool) -> None:
    """Show each receiver of events: how many it has got and has still to get, and why the last attempt has failed."""
    project = load_project()
    from headrace.cli.summary import print_table
    from headrace.services.events.overview import overview, problems

    found = overview(project)
    if as_json:
        print_json({"receivers": found})
        return
    rows = [(one["receiver"], one["delivered"], one["pending"], one["failures"], one["dropped"]) for one in found]
    print_table(("receiver", "delivered", "pending", "failures", "dropped"), rows)
    for line in problems(found):
        click.echo(line)


@webhooks.command(short_help="Send a test event to a webhook, or to all.")
@click.argument("name", required=False)
@json_option
def test(name: str | None, as_json: bool) -> None:
    """Send the event `headrace.test` to the webhook NAME, or to all, and show whether it was accepted (else exit code 5). A
    receiver that accepts it gets events again, also after it has answered 410."""
    project = load_project()
    from headrace.services.events.overview import send_test

    found = send_test(project, name)
    if as_json:
        print_json({"webhooks": found})
    for one in [] if as_json else found:
        outcome = f"accepted in {one['seconds']} s" if one["delivered"] else f"not accepted: {one['error']}"
        click.echo(f"{one['webhook']}: {outcome}")
    if not all(one["delivered"] for one in found):
        sys.exit(ServiceError.exit_code)
