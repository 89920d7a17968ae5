"""What can go wrong with a call, as one small tree. Each error says what happened, the status, and the request's id.

CallFailed                 (a HeadraceError)
├── Unauthorized           401  no token, or none that is in force
├── Forbidden              403  the token does not allow this
├── NotFound               404
├── InvalidInput           400, 409, 413, 415, 422; with `path`, `expected` and `got` of the field at fault
├── QuotaExceeded          429  the day's rows are used up; `retry_after` says for how long
├── RateLimited            429  too many requests a second
├── Unavailable            500, 502, 503, 507, or nobody answers
│   └── BrokenOff               a text that ended amid its pieces
└── TimedOut               408, 504, or the call's own time is over
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.errors import HeadraceError


class CallFailed(HeadraceError):
    """A call that brought no answer."""

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
        """Of HTTP; None when no answer came."""
        self.code = code
        """The service's short word for programs, such as `contract_violation`."""
        self.request_id = request_id
        """By which the service's logs and records name this request."""
        self.retry_after = retry_after
        """Seconds after which the service asks to be called again, if it said so."""
        self.details = dict(details or {})
        """What else the service said of the error."""

    def __str__(self) -> str:
        said = super().__str__()
        return f"{said} (request {self.request_id})" if self.request_id else said


class Unauthorized(CallFailed):
    """No token, or one that is wrong, expired or revoked."""


class Forbidden(CallFailed):
    """The token does not allow this model, whether there is such a model or not."""


class NotFound(CallFailed):
    """No such model, batch or request."""

    exit_code = 2


class InvalidInput(CallFailed):
    """What was sent breaks the model's contract, or is too large."""

    exit_code = 3

    @property
    def path(self) -> str | None:
        """The field at fault, such as `instances.3.distance`."""
        return self.details.get("path")

    @property
    def expected(self) -> str | None:
        return self.details.get("expected")

    @property
    def got(self) -> str | None:
        return self.details.get("got")


class QuotaExceeded(CallFailed):
    """The tenant's rows of this day are used up."""


class RateLimited(CallFailed):
    """More requests a second than the token allows."""


class Unavailable(CallFailed):
    """Nobody answers, or nobody can at the moment."""


class BrokenOff(Unavailable):
    """A text whose last piece did not come; what came before it is not the whole."""


class TimedOut(CallFailed):
    """No answer within the time that the call, or the service, gives it."""


_BY_STATUS: dict[int, type[CallFailed]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: TimedOut,
    429: RateLimited,
    504: TimedOut,
}


def error_class(status: int, code: str) -> type[CallFailed]:
    """The class of a refusal."""
    if code == "quota_exceeded":
        return QuotaExceeded
    return _BY_STATUS.get(status, InvalidInput if status < 500 else Unavailable)
