"""Tokens that the API server uses itself: to ask replicas for their contracts, and to process batches for their tenants."""

from __future__ import annotations

from typing import Any

from headrace.project import Project
from headrace.services.api.batch_store import Submitted, now
from headrace.serving.access import tls, tokens
from headrace.serving.gateway import gateway

RENEW_SECONDS = 300.0
"""Time before the end of a token for a batch at which it is renewed."""
REVOKED = {"code": "unauthorized", "message": "the token that the batch was sent with was revoked"}


def operator_headers(project: Project) -> dict[str, str]:
    """Returns headers with the operator's token, if callers need one."""
    return {"authorization": f"Bearer {tokens.operator_token(project)}"} if project.settings.access == "tokens" else {}


class RevokedTokens:
    """The ids of revoked tokens, also of those that expired before; read again when the list of tokens has changed."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._stat: tuple[int, int] | None = None
        self.known: frozenset[str] = frozenset()
        """As they were read last."""

    def read(self) -> frozenset[str]:
        """Returns the ids.

        Raises:
            DamagedFile: the list of tokens cannot be read; raised once for each change of the file.
        """
        if (stat := tokens.list_stat(self._project)) != self._stat:
            self._stat = stat
            self.known = frozenset(facts.jti for facts in tokens.list_tokens(self._project) if facts.revoked is not None)
        return self.known


class TenantToken:
    """A token for one batch of a tenant, renewed before it expires."""

    def __init__(self, submitted: Submitted, project: Project) -> None:
        self._submitted, self._project, self._settings = submitted, project, project.settings
        self._token = ""
        self._until = 0.0

    def client_options(self) -> dict[str, Any]:
        """Options of the client: address, token and TLS verification."""
        return {
            "address": gateway.address(self._settings),
            "token": self.get if self._settings.access == "tokens" else None,
            "verify": tls.trust(self._project),
        }

    def get(self) -> str:
        if now() > self._until - RENEW_SECONDS:
            sent = self._submitted
            limits = (sent.rows_per_day, sent.tokens_per_day, sent.tokens_per_minute)
            self._token = tokens.delegate(self._project, sent.jti, sent.tenant, sent.model, *limits)
            self._until = now() + tokens.DELEGATED_SECONDS
        return self._token
