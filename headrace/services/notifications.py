"""Notifications to people, by Apprise: mail, Slack, Teams, webhooks and a hundred other services."""

from __future__ import annotations

import logging

from headrace.console import Report
from headrace.project import Project


def notify(title: str, body: str, project: Project, report: Report) -> bool:
    """Sends a notification to each address of the setting `notify`; returns whether all have accepted it.

    One that cannot be sent is reported and stops nothing: the run goes on, and the journal and Prefect have the event.

    Args:
        title: one line.
        body: plain text.
    """
    addresses = project.settings.notify
    if not addresses:
        return True
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    complete = True
    for address in addresses:
        service = apprise.Apprise()
        if not service.add(address) or not service.notify(body=body, title=title):
            report(f"the notification to {_without_secrets(address)} could not be sent; see the setting notify")
            complete = False
    return complete


def _without_secrets(address: str) -> str:
    """Returns the scheme and the host of an address; the rest may hold passwords and tokens."""
    scheme, _, rest = address.partition("://")
    host = rest.rpartition("@")[2].partition("/")[0].partition("?")[0]
    return f"{scheme}://{host}" if "@" in rest or scheme in ("json", "jsons", "xml", "form") else f"{scheme}://…"
