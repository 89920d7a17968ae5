"""Tokens that the API server uses itself: to ask replicas for their contracts, and to process batches for their tenants."""

from __future__ import annotations

from typing import Any

from headrace.project import Project
from headrace.services.api.batch_store import Submitted, now
from headrace.serving.access import tls, tokens
from headrace.serving.gateway import gateway

LIFE_SECONDS, RENEW_SECONDS = 600.0, 300.0
"""Lifetime of a token for a batch, and the time before its end at which it is renewed."""


def operator_headers(project: Project) -> dict[str, str]:
    """Returns headers with the operator's token, if callers need one."""
    return {"authorization": f"Bearer {tokens.operator_token(project)}"} if project.settings.access == "tokens" else {}


def is_revoked(project: Project, jti: str) -> bool:
    """Whether the token of this id was revoked, also after it has expired."""
    return any(facts.jti == jti and facts.revoked is not None for facts in tokens.list_tokens(project))


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
            self._token = tokens.delegate(
                self._project, sent.jti, sent.tenant, sent.model, int(LIFE_SECONDS), sent.rows_per_day
            )
            self._until = now() + LIFE_SECONDS
        return self._token
