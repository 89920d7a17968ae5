"""Notifications to people, by Apprise: mail, Slack, Teams, webhooks and a hundred other services."""

from __future__ import annotations

import logging


def send(address: str, title: str, body: str) -> bool:
    """Sends a notification to an address as Apprise writes them; returns whether it was accepted.

    Args:
        title: one line.
        body: plain text.
    """
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    service = apprise.Apprise()
    accepted = service.add(address) and service.notify(body=body, title=title, body_format=apprise.NotifyFormat.TEXT)
    return bool(accepted)


def without_secrets(address: str) -> str:
    """Returns the scheme and the host of an address; the rest may hold passwords and tokens."""
    scheme, _, rest = address.partition("://")
    host = rest.rpartition("@")[2].partition("/")[0].partition("?")[0]
    return f"{scheme}://{host}" if "@" in rest or scheme in ("json", "jsons", "xml", "form") else f"{scheme}://…"
