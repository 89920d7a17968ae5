"""Tokens that the desk makes for itself: to ask replicas what they serve, and to work on a batch in its tenant's name."""

from __future__ import annotations

from typing import Any

from filelock import FileLock

from headrace.project import Project
from headrace.runtime.token_verifier import ISSUER
from headrace.services.api.batch_store import Submitted, now
from headrace.serving.access import keys, tls, tokens
from headrace.serving.gateway import gateway
from headrace.settings import Settings

LIFE_SECONDS, RENEW_SECONDS = 600.0, 300.0
"""How long a token for a batch lives, and how long before its end another takes its place."""


def operator_headers(project: Project, settings: Settings) -> dict[str, str]:
    """With the operator's own token, where callers need one."""
    return {"authorization": f"Bearer {tokens.operator_token(project)}"} if settings.access == "tokens" else {}


def is_revoked(project: Project, jti: str) -> bool:
    """Whether the token of this id was revoked; also long after it expired."""
    return any(facts.jti == jti and facts.revoked is not None for facts in tokens.listed(project))


def mint(project: Project, submitted: Submitted) -> str:
    """The token that a batch was sent with, for its model alone and for a while longer: of the same id, so that it is refused
    everywhere as soon as that one is revoked."""
    import jwt

    with FileLock(project.locks / "tokens.lock"):
        kid, key = keys.current(project)
    issued = int(now())
    claims = {
        "iss": ISSUER,
        "sub": submitted.tenant,
        "jti": submitted.jti,
        "iat": issued,
        "exp": issued + int(LIFE_SECONDS),
        "models": [submitted.model],
        **({} if submitted.rows_per_day is None else {"rows_per_day": submitted.rows_per_day}),
    }
    return jwt.encode(claims, key, algorithm=keys.ALGORITHM, headers={"kid": kid})


class TenantToken:
    """A token for one batch, in the name of the tenant that sent it; made anew before it expires."""

    def __init__(self, submitted: Submitted, project: Project, settings: Settings) -> None:
        self._submitted, self._project, self._settings = submitted, project, settings
        self._token = ""
        self._until = 0.0

    def client_options(self) -> dict[str, Any]:
        """Where and as whom the batch calls the door."""
        return {
            "address": gateway.address(self._settings),
            "token": self.get if self._settings.access == "tokens" else None,
            "verify": tls.trust(self._project, self._settings),
        }

    def get(self) -> str:
        if now() > self._until - RENEW_SECONDS:
            self._token = mint(self._project, self._submitted)
            self._until = now() + LIFE_SECONDS
        return self._token
