"""Errors of the Python client. Each has a message, the HTTP status and the id of the request.

CallFailed                 (a HeadraceError)
├── Unauthorized           401  no token, or an invalid one
├── Forbidden              403  the token does not allow this
├── NotFound               404
├── InvalidInput           400, 409, 413, 415, 422; with `path`, `expected` and `got` of the field at fault
├── QuotaExceeded          429  the quota of the day is used up; `retry_after` is when the next begins
├── RateLimited            429  too many requests per second
├── Unavailable            500, 502, 503, 507, or the service does not respond
│   └── StreamInterrupted       a stream ended before its last piece
└── TimedOut               408, 504, or the time limit of the call
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import HeadraceError


class CallFailed(HeadraceError):
    """A call failed."""

    exit_code = 5
    fields = ("status", "code", "request_id", "retry_after", "details")

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status
        """HTTP status; None without a response."""
        self.code = code
        """The error code of the service, for example `contract_violation`."""
        self.request_id = request_id
        """The id of the request in the logs and records of the service."""
        self.retry_after = retry_after
        """Seconds to wait before the next call, if the service sent them."""
        self.details = dict(details or {})
        """Further fields of the error."""

    @property
    def headline(self) -> str:
        never_sent = type(self) is Unavailable and self.status is None
        request = f" (request {self.request_id})" if self.request_id and not never_sent else ""
        return f"{super().headline}{request}"


class Unauthorized(CallFailed):
    """The token is missing, invalid, expired or revoked."""


class Forbidden(CallFailed):
    """The token does not allow this model, whether there is such a model or not."""


class NotFound(CallFailed):
    """The model, batch or request does not exist."""

    exit_code = 2


class InvalidInput(CallFailed):
    """The input breaks the contract of the model, or is too large."""

    exit_code = 3

    @property
    def path(self) -> str | None:
        """The field at fault, for example `instances.3.distance`."""
        return self.details.get("path")

    @property
    def expected(self) -> str | None:
        """What the contract expects there."""
        return self.details.get("expected")

    @property
    def got(self) -> str | None:
        """What the field holds instead."""
        return self.details.get("got")


class QuotaExceeded(CallFailed):
    """The daily quota of the tenant is used up."""


class RateLimited(CallFailed):
    """The rate of requests exceeds the limit of the token."""


class Unavailable(CallFailed):
    """The service does not respond, or cannot answer at the moment."""


class StreamInterrupted(Unavailable):
    """A stream ended before its last piece; the text is incomplete."""


class TimedOut(CallFailed):
    """No answer within the time limit of the call or of the service."""


_BY_STATUS: dict[int, type[CallFailed]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: TimedOut,
    429: RateLimited,
    504: TimedOut,
}


def error_class(status: int, code: str) -> type[CallFailed]:
    """Returns the class for an error response."""
    if code == "quota_exceeded":
        return QuotaExceeded
    return _BY_STATUS.get(status, InvalidInput if status < 500 else Unavailable)
