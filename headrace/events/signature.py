"""Signatures of webhooks by the specification Standard Webhooks, version 1.0.0 (https://www.standardwebhooks.com).

The signed text is `ID.TIMESTAMP.BODY`; its HMAC-SHA256 is sent as `webhook-signature: v1,BASE64`, beside `webhook-id` and
`webhook-timestamp` (seconds since 1970, of this attempt). Libraries of many languages verify it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import stat
from os import environ

from headrace.errors import SettingsError
from headrace.project import Project
from headrace.settings import Webhook

PREFIX = "whsec_"
SHORTEST_BYTES, LONGEST_BYTES = 24, 64
HOW = "python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
"""A command that makes a secret."""


def signed_headers(event_id: str, timestamp: int, body: bytes, key: bytes) -> dict[str, str]:
    """Returns the headers of a request.

    Args:
        timestamp: seconds since 1970.
        key: the decoded secret.
    """
    text = b".".join((event_id.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    return {"webhook-id": event_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}


def read_key(webhook: Webhook, project: Project) -> bytes:
    """Returns the decoded secret of a webhook.

    Raises:
        SettingsError: the variable or the file is missing, other users can read the file, or it holds no secret. The message
            never contains what was found.
    """
    where = f"webhooks: {webhook.name}"
    if webhook.secret_env is not None:
        text, place = environ.get(webhook.secret_env), f"the variable {webhook.secret_env}"
        if not text:
            hint = f"set {webhook.secret_env} where the services are started, then: headrace down; headrace up"
            raise SettingsError(f"{place} is not set", where=where, hint=hint)
    else:
        text, place = _read_file(webhook, project, where), f"the file {webhook.secret_file}"
    try:
        key = base64.b64decode(text.strip().removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.strip().startswith(PREFIX) or not SHORTEST_BYTES <= len(key) <= LONGEST_BYTES:
        raise SettingsError(
            f"{place} holds no secret: expected {PREFIX} and {SHORTEST_BYTES} to {LONGEST_BYTES} bytes in base64",
            where=where,
            hint=HOW,
        )
    return key


def _read_file(webhook: Webhook, project: Project, where: str) -> str:
    path = project.root / str(webhook.secret_file)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise SettingsError(f"other users can use {path} (mode {mode:04o})", where=where, hint=f"chmod 600 {path}")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        hint = f"write one, readable by this user alone: (umask 077; {HOW} > {path})"
        raise SettingsError(f"{path} cannot be read: {error.strerror}", where=where, hint=hint) from None
