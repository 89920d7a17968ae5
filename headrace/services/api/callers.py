"""Who sent a request, by the token in its header."""

from __future__ import annotations

from headrace.runtime.http import Refused
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller, InvalidToken, TokenVerifier, bearer


def caller_of(request: TrackedRequest, verifier: TokenVerifier) -> Caller:
    """Returns the caller that the token identifies.

    Raises:
        Refused: 401, a valid token is missing.
    """
    try:
        return verifier.verify(bearer(request.header_bytes.get(b"authorization", b"")))
    except InvalidToken:
        message = "a valid token is needed: authorization: Bearer ..."
        raise Refused(401, "unauthorized", message, {"www-authenticate": "Bearer"}) from None
