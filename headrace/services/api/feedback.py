"""Route for feedback: the true answer to an earlier request, checked against the model's contract and stored."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from headrace.files import is_disk_full
from headrace.project import Project
from headrace.runtime.contract import Contract
from headrace.runtime.http import CLOSE, VALID_ID, Refused, invalid_field, parse_json, read_body, require_media_type, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.runtime.violations import describe
from headrace.services.api.catalogue import Catalogue
from headrace.services.api.disk_limits import require_space
from headrace.services.feedback_store import FeedbackStore, OverBudget, RecordedAnswer, Truth, database, find_recorded

logger = logging.getLogger("headrace.services.api.feedback")
FIELDS = {"id", "request_id", "truth", "row"}
MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_ROWS = 10_000
MAX_CHARACTERS = 10_000
"""Longest text as a true answer."""
RECORD_PAUSES = (0.0, 0.3, 0.4, 0.4, 0.4)
"""Seconds before each search for an id: a replica writes its records every second."""


class FeedbackRoutes:
    """`POST /v1/feedback`, with the one thread of the store. An asynchronous context manager."""

    def __init__(self, project: Project, catalogue: Catalogue) -> None:
        self._project, self._keep_days, self._catalogue = project, project.settings.feedback_days, catalogue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="feedback-search")
        """Of its own, so that a tenant with many unknown ids delays no other kind of request."""
        self._store: FeedbackStore | None = None
        self.routes = [Route("/v1/feedback", self.submit, methods=["POST"])]

    async def __aenter__(self) -> FeedbackRoutes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._in_thread(self._store.close)
        self._thread.shutdown()
        self._searches.shutdown()

    async def submit(self, request: TrackedRequest) -> Response:
        """Accepts `{"id" | "request_id", "truth", "row"?}`; a list of truths is for the rows from `row` on. With several
        labels per row, a truth is a list of labels, and truths of several rows are a list of lists.

        If the answer is not recorded (its record was lost with the replica, or is too old), a full id,
        `<model>@<version>:<request id>`, is accepted as pending, and a bare request id is refused with 404.
        """
        require_media_type(request, "application/json", headers=CLOSE)
        feedback = _read(parse_json(await read_body(request, limit_bytes=MAX_BODY_BYTES)))
        caller: Caller = request.caller
        if feedback.model is not None:  # checked before the search for the record
            await self._check(caller, feedback, feedback.model)
        recorded = await self._recorded(caller, feedback)
        model, version = (recorded.model, recorded.version) if recorded else (feedback.model, feedback.version)
        if not model or not version:
            raise Refused(404, "unknown_request", "no answer to you is recorded for this request id; send the full id")
        if recorded:
            await self._check(caller, feedback, model)
            _check_rows(feedback, recorded)
        truths = [
            Truth(caller.tenant, model, version, feedback.request_id, row, truth)
            for row, truth in enumerate(feedback.truths, feedback.row)
        ]
        added = await self._in_thread(lambda: self._add(truths, recorded))
        response = {
            "id": f"{model}@{version}:{feedback.request_id}",
            "request_id": feedback.request_id,
            "rows": [truth.row for truth in truths],
            "state": "joined" if recorded else "pending",
            "new": added,
        }
        return to_json(response, 202)

    async def _check(self, caller: Caller, feedback: _Feedback, model: str) -> None:
        """Checks the truths against the contract of the model.

        Raises:
            Refused: the caller may not use the model, or it cannot give such an answer; 503, its contract is unknown.
        """
        entry = await self._catalogue.require(caller, model)
        if entry.contract is None:
            raise Refused(503, "unavailable", f"no replica of {model!r} responds with its contract", {"retry-after": "5"})
        _one_row_of_labels(feedback, entry.contract)
        _check_truths(feedback, entry.contract)

    async def _recorded(self, caller: Caller, feedback: _Feedback) -> RecordedAnswer | None:
        """Finds the record of the answer, waiting a moment for one that is being written."""
        shadows = await asyncio.to_thread(self._catalogue.shadow_replicas)
        for pause in RECORD_PAUSES:
            await asyncio.sleep(pause)
            search = functools.partial(
                find_recorded, self._project, caller.tenant, feedback.request_id, feedback.version, shadows
            )
            found = await asyncio.get_running_loop().run_in_executor(self._searches, search)
            if found is not None and feedback.model in (None, found.model):
                return found
        return None

    def _add(self, truths: list[Truth], recorded: RecordedAnswer | None) -> int:
        """Stores the truths and returns how many are new or changed.

        Raises:
            Refused: 413, the tenant may not store more; 503, the store cannot be written; 507, the disk is full.
        """
        require_space(self._project)
        try:
            return self._opened().add(truths, recorded)
        except OverBudget as error:
            raise Refused(413, error.code, error.message, limit=error.limit) from None
        except sqlite3.DatabaseError as error:
            if is_disk_full(error):
                raise Refused(507, "disk_full", "the server's disk is full; the feedback is not kept") from None
            logger.error("feedback cannot be stored in %s: %s", database(self._project), error)
            message = "the server cannot store feedback at the moment; its log has the reason"
            raise Refused(503, "unavailable", message, {"retry-after": "60"}) from None

    def _opened(self) -> FeedbackStore:
        if self._store is None:
            self._store = FeedbackStore(self._project, self._keep_days)
        return self._store

    async def _in_thread(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Feedback:
    """A well-formed body, not yet checked against a contract."""

    def __init__(self, request_id: str, model: str | None, version: str | None, row: int, truth: Any) -> None:
        self.request_id, self.model, self.version, self.row = request_id, model, version, row
        self.is_list = isinstance(truth, list)
        self.truths: list[Any] = truth if isinstance(truth, list) else [truth]


def _read(payload: Any) -> _Feedback:
    """Parses the body.

    Raises:
        Refused: 422, with the invalid field.
    """
    if not isinstance(payload, dict):
        raise invalid_field("body", 'an object like {"id": ..., "truth": ...}', describe(payload))
    if unknown := sorted(payload.keys() - FIELDS):
        raise invalid_field(unknown[0][:100], "one of the fields id, request_id, row, truth", "an unknown field")
    if ("id" in payload) == ("request_id" in payload):
        raise invalid_field("id", "either id or request_id", "both" if "id" in payload else "neither")
    if "truth" not in payload:
        raise invalid_field("truth", "the true answer, or a list of them", "nothing")
    row = payload.get("row", 0)
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < MAX_ROWS:
        raise invalid_field("row", f"a whole number from 0 to {MAX_ROWS - 1}", describe(row))
    feedback = _Feedback(*_parts(payload), row, payload["truth"])
    if len(feedback.truths) > MAX_ROWS:
        raise invalid_field("truth", f"1 to {MAX_ROWS} true answers", f"{len(feedback.truths)}")
    return feedback


def _parts(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Returns request id, model and version; a bare `request_id` has neither model nor version."""
    name = "id" if "id" in payload else "request_id"
    given = payload[name]
    if not isinstance(given, str) or not VALID_ID.fullmatch(given):
        raise invalid_field(name, "the id of an answer", describe(given))
    if name == "request_id":
        return given, None, None
    reference, _, request_id = given.partition(":")
    model, _, version = reference.partition("@")
    if not (model and version and request_id):
        raise invalid_field("id", "<model>@<version>:<request id>", describe(given))
    return request_id, model, version


def _one_row_of_labels(feedback: _Feedback, contract: Contract) -> None:
    """Takes a plain list for the labels of one row, if rows have several; a list of lists is for several rows."""
    if contract.output == "labels" and feedback.is_list and not any(isinstance(truth, list) for truth in feedback.truths):
        feedback.truths = [feedback.truths]


def _check_truths(feedback: _Feedback, contract: Contract) -> None:
    """Checks that the model could have given these answers.

    Raises:
        Refused: 422, with the first truth that it could not.
    """
    if not feedback.truths:
        raise invalid_field("truth", f"1 to {MAX_ROWS} true answers", "0")
    is_list = len(feedback.truths) > 1
    for place, truth in enumerate(feedback.truths):
        path = f"truth.{place}" if is_list else "truth"
        if contract.output == "labels":
            _check_labels(truth, contract.labels or [], path)
        elif contract.output == "values":
            _check_values(truth, contract.targets or [], path)
        elif contract.labels is not None and contract.output == "probabilities":
            if isinstance(truth, bool) or truth not in contract.labels:
                raise invalid_field(path, f"one of the labels {_named(contract.labels)}", describe(truth))
        elif contract.output == "value":
            if isinstance(truth, bool) or not isinstance(truth, int | float) or not _is_finite(truth):
                raise invalid_field(path, "a finite number", describe(truth))
        elif not isinstance(truth, str) or len(truth) > MAX_CHARACTERS:
            raise invalid_field(path, f"a text of at most {MAX_CHARACTERS} characters", describe(truth))


def _check_labels(truth: Any, labels: list[str | int], path: str) -> None:
    """
    Raises:
        Refused: 422, not a list of different labels that the model knows.
    """
    expected = f"a list of different labels of {_named(labels)}"
    if not isinstance(truth, list):
        raise invalid_field(path, expected, describe(truth))
    for place, label in enumerate(truth):
        if isinstance(label, bool) or label not in labels or label in truth[:place]:
            raise invalid_field(path, expected, describe(label))


def _check_values(truth: Any, targets: list[str], path: str) -> None:
    """
    Raises:
        Refused: 422, not an object with a finite number for each target.
    """
    expected = f"an object with a finite number for each of {', '.join(targets)}"
    if not isinstance(truth, dict) or set(truth) != set(targets):
        raise invalid_field(path, expected, describe(truth))
    for name, value in truth.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise invalid_field(f"{path}.{name}", "a finite number", describe(value))


def _named(labels: list[str | int]) -> str:
    return ", ".join(map(str, labels[:20])) + (", ..." if len(labels) > 20 else "")


def _check_rows(feedback: _Feedback, recorded: RecordedAnswer) -> None:
    """Checks the row numbers, if the request had fewer than 100 rows: of longer ones only the first 100 are recorded.

    Raises:
        Refused: 422, the request did not have such a row.
    """
    if len(recorded.answers) < 100 and feedback.row + len(feedback.truths) > len(recorded.answers):
        raise invalid_field(
            "row", f"rows of the request, which had {len(recorded.answers)}", f"{feedback.row + len(feedback.truths) - 1}"
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer larger than any float
        return False
