"""Routes for people: candidates with their verdict, the history of a model, approval and rejection."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from headrace.errors import RegistryError, UsageError, near_miss
from headrace.project import Project
from headrace.release import journal, reviews
from headrace.release.reviews import NotAllowed, NotWaiting, Outcome, Reviewer
from headrace.runtime.http import CLOSE, Refused, invalid_field, parse_json, read_body, require_media_type, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import SEE, Caller, TokenVerifier
from headrace.runtime.violations import describe
from headrace.services import approvals
from headrace.services.api.callers import caller_of

MAX_BODY_BYTES = 64 * 1024


class ReviewRoutes:
    """`/v1/candidates` and `/v1/history`. They demand the token of a role, also while `access` is `open`."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._verifier = TokenVerifier(project.token_keys)
        one = "/v1/candidates/{model}/{version}"
        self.routes = [
            Route("/v1/candidates", self.candidates, methods=["GET"]),
            Route(f"{one}/approve", functools.partial(self.review, "approved"), methods=["POST"]),
            Route(f"{one}/reject", functools.partial(self.review, "rejected"), methods=["POST"]),
            Route("/v1/history/{model}", self.history, methods=["GET"]),
        ]

    async def candidates(self, request: TrackedRequest) -> Response:
        self._require_role(request)
        found = await asyncio.to_thread(reviews.candidates, self._project)
        return to_json({"candidates": [one.to_dict() for one in found]})

    async def history(self, request: TrackedRequest) -> Response:
        """Returns the entries of the journal about one model, oldest first."""
        self._require_role(request)
        model = request.path_params["model"]
        return to_json({"model": model, "entries": await asyncio.to_thread(self._entries, model)})

    async def review(self, outcome: Outcome, request: TrackedRequest) -> Response:
        """Accepts `{"why": …}`; a rejection has to give a reason."""
        reviewer = Reviewer.of(self._require_role(request))
        try:
            reviews.require_reviewer(reviewer, reviews.ACTS[outcome])  # before anything about the version is said
            require_media_type(request, "application/json", headers=CLOSE)
            why = _why(parse_json(await read_body(request, limit_bytes=MAX_BODY_BYTES)), outcome)
            model, version = request.path_params["model"], request.path_params["version"]
            await asyncio.to_thread(self._require_known, model, version)
            # MLflow is slow to load and to ask; other requests do not wait for it.
            found = await asyncio.to_thread(reviews.review, f"{model}@{version}", outcome, reviewer, why, self._project)
        except (UsageError, RegistryError) as error:
            raise _refused(error) from None
        after = await asyncio.to_thread(approvals.follow_up, found.model, found.version, self._project)
        return to_json({"model": found.model, "version": found.version, "outcome": found.outcome, **found.facts(), **after})

    def _require_role(self, request: TrackedRequest) -> Caller:
        """Returns the caller.

        Raises:
            Refused: 401, without a valid token; 403, for a token without a role.
        """
        caller = caller_of(request, self._verifier)
        if caller.role not in SEE:
            roles = "viewer, reviewer or operator"
            raise Refused(403, "forbidden", f"this token has no role: this takes the role {roles}")
        return caller

    def _require_known(self, model: str, version: str) -> None:
        """Checks that the journal names the version, before MLflow is asked.

        Raises:
            Refused: 404.
        """
        if all(entry.version != version for entry in journal.entries(self._project, model)):
            raise Refused(404, "not_found", f"no release has made {model[:100]}@{version[:20]}")

    def _entries(self, model: str) -> list[dict[str, Any]]:
        entries = journal.entries(self._project)
        of_model = [entry for entry in entries if entry.model == model]
        if not of_model:
            known = {entry.model for entry in entries}
            raise Refused(404, "not_found", f"the journal does not name {model[:100]!r}; {near_miss(model, known)}")
        return reviews.described(of_model, self._project)


def _why(body: Any, outcome: Outcome) -> str:
    """The reason in the body of a review.

    Raises:
        Refused: 422, the body is not an object with `why` alone, or the text is not a valid reason.
    """
    if not isinstance(body, dict) or not body.keys() <= {"why"}:
        raise invalid_field("", 'an object with the field "why" alone', describe(body))
    why = body.get("why", "")
    if not isinstance(why, str) or not reviews.is_reason(why, outcome):
        raise invalid_field("why", reviews.REASON, describe(why))
    return why


def _refused(error: UsageError | RegistryError) -> Refused:
    hint: dict[str, Any] = {"hint": error.hint} if error.hint else {}
    if isinstance(error, NotAllowed):
        return Refused(403, "forbidden", error.message, **hint)
    if isinstance(error, NotWaiting):
        return Refused(409, "not_waiting", error.message, **hint)
    if isinstance(error, RegistryError):
        return Refused(503, "unavailable", error.message, {"retry-after": "60"}, **hint)
    return Refused(404, "not_found", error.message, **hint)
