"""Errors in the form of a protocol: shared by the endpoints of those that have a form of their own."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response

from headrace.runtime.http import Refused
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.violations import ContractViolation

Endpoint = Callable[[Any, TrackedRequest], Awaitable[Response]]


def errors_in(
    of_violation: Callable[[ContractViolation], Response], of_refusal: Callable[[Refused], Response]
) -> Callable[[Endpoint], Endpoint]:
    """Returns a decorator of endpoints that answers with these responses, and records the code of the error.

    A missing or insufficient token is left to the caller: the gateway sends that error too, in one form for all protocols.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def answer(self: Any, request: TrackedRequest) -> Response:
            try:
                return await endpoint(self, request)
            except ContractViolation as violation:
                request.code = "contract_violation"
                return of_violation(violation)
            except Refused as refused:
                if refused.status in (401, 403):
                    raise
                request.code = refused.code
                return of_refusal(refused)

        return answer

    return decorate
