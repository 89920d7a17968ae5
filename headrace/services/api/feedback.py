"""`POST /v1/feedback`: the true answer to an earlier request, checked against the model's contract and kept."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from headrace.project import Project
from headrace.runtime.contract import Contract, describe
from headrace.runtime.http import CLOSE, VALID_ID, Refused, invalid_field, parse_json, read_body, require_media_type, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.services.api.catalogue import Catalogue
from headrace.services.api.feedback_store import FeedbackStore, Recorded, Truth, find
from headrace.settings import Settings

FIELDS = {"id", "request_id", "truth", "row"}
MOST_BODY_BYTES = 4 * 1024 * 1024
MOST_ROWS = 10_000
MOST_CHARACTERS = 10_000
"""Of a text that is told as the true one."""
RECORD_PAUSES = (0.0, 0.3, 0.4, 0.4, 0.4)
"""A replica writes its records every second: an id that is not there yet is looked for again after so many seconds each."""


class Feedback:
    """The route, with the store's one thread. Use as an asynchronous context."""

    def __init__(self, project: Project, settings: Settings, catalogue: Catalogue) -> None:
        self._project, self._keep_days, self._catalogue = project, settings.feedback_days, catalogue
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._store: FeedbackStore | None = None
        self.routes = [Route("/v1/feedback", self.tell, methods=["POST"])]

    async def __aenter__(self) -> Feedback:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._do(self._store.close)
        self._thread.shutdown()

    async def tell(self, request: TrackedRequest) -> Response:
        """`{"id" | "request_id", "truth", "row"?}`; a list of truths is for the rows from `row` on.

        An id whose answer is on record needs no more. One that is not (a record lost with its replica, or older than what is
        kept) is accepted as pending when it is a full id, `<model>@<version>:<request id>`; a bare one is 404.
        """
        require_media_type(request, "application/json", headers=CLOSE)
        said = _read(parse_json(await read_body(request, limit_bytes=MOST_BODY_BYTES)))
        caller: Caller = request.caller
        if said.model is not None:  # refused before anything is looked for
            await self._check(caller, said, said.model)
        recorded = await self._recorded(caller, said)
        model, version = (recorded.model, recorded.version) if recorded else (said.model, said.version)
        if not model or not version:
            raise Refused(404, "unknown_request", "no answer of yours is on record under this request id; give its full id")
        if recorded:
            await self._check(caller, said, model)
            _check_rows(said, recorded)
        truths = [
            Truth(caller.tenant, model, version, said.request_id, row, truth) for row, truth in enumerate(said.truths, said.row)
        ]
        added = await self._do(lambda: self._opened().add(truths, recorded))
        told = {
            "id": f"{model}@{version}:{said.request_id}",
            "request_id": said.request_id,
            "rows": [truth.row for truth in truths],
            "state": "joined" if recorded else "pending",
            "new": added,
        }
        return to_json(told, 202)

    async def _check(self, caller: Caller, said: _Said, model: str) -> None:
        """
        Raises:
            Refused: the caller may not use the model, or it could never have answered this; 503, no replica can say.
        """
        listed = await self._catalogue.require(caller, model)
        if listed.contract is None:
            raise Refused(503, "unavailable", f"no replica of {model!r} can say what its answers are", {"retry-after": "5"})
        _check_truths(said, listed.contract)

    async def _recorded(self, caller: Caller, said: _Said) -> Recorded | None:
        """The record of the answer; a moment is given to one that is being written."""
        shadows = await asyncio.to_thread(self._catalogue.shadows)
        for pause in RECORD_PAUSES:
            await asyncio.sleep(pause)
            found = await asyncio.to_thread(find, self._project, caller.tenant, said.request_id, said.version, shadows)
            if found is not None and said.model in (None, found.model):
                return found
        return None

    def _opened(self) -> FeedbackStore:
        if self._store is None:
            self._store = FeedbackStore(self._project, self._keep_days)
        return self._store

    async def _do(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _Said:
    """What a client tells, in shape but not yet checked against a contract."""

    def __init__(self, request_id: str, model: str | None, version: str | None, row: int, truths: list[Any]) -> None:
        self.request_id, self.model, self.version, self.row, self.truths = request_id, model, version, row, truths


def _read(payload: Any) -> _Said:
    """
    Raises:
        Refused: 422, with the field at fault.
    """
    if not isinstance(payload, dict):
        raise invalid_field("body", 'an object such as {"id": ..., "truth": ...}', describe(payload))
    if unknown := sorted(payload.keys() - FIELDS):
        raise invalid_field(unknown[0][:100], "one of the fields id, request_id, row, truth", "an unknown field")
    if ("id" in payload) == ("request_id" in payload):
        raise invalid_field("id", "either id or request_id", "both" if "id" in payload else "neither")
    if "truth" not in payload:
        raise invalid_field("truth", "the true answer, or a list of them", "nothing")
    row = payload.get("row", 0)
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < MOST_ROWS:
        raise invalid_field("row", f"a whole number from 0 to {MOST_ROWS - 1}", describe(row))
    truths = payload["truth"] if isinstance(payload["truth"], list) else [payload["truth"]]
    if not 1 <= len(truths) <= MOST_ROWS:
        raise invalid_field("truth", f"1 to {MOST_ROWS} true answers", f"{len(truths)}")
    return _Said(*_parts(payload), row, truths)


def _parts(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Request id, model and version; an `id` has all three."""
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


def _check_truths(said: _Said, contract: Contract) -> None:
    """
    Raises:
        Refused: 422, a truth that the model could never have answered.
    """
    is_list = len(said.truths) > 1
    for place, truth in enumerate(said.truths):
        path = f"truth.{place}" if is_list else "truth"
        if contract.labels is not None and contract.output == "probabilities":
            if isinstance(truth, bool) or truth not in contract.labels:
                known = ", ".join(map(str, contract.labels[:20])) + (", ..." if len(contract.labels) > 20 else "")
                raise invalid_field(path, f"one of the labels {known}", describe(truth))
        elif contract.output == "value":
            if isinstance(truth, bool) or not isinstance(truth, int | float) or not _is_finite(truth):
                raise invalid_field(path, "a finite number", describe(truth))
        elif not isinstance(truth, str) or len(truth) > MOST_CHARACTERS:
            raise invalid_field(path, f"a text of at most {MOST_CHARACTERS} characters", describe(truth))


def _check_rows(said: _Said, recorded: Recorded) -> None:
    """
    Raises:
        Refused: 422, a row that the request did not have; of the first 100 rows, no more are on record.
    """
    if len(recorded.answers) < 100 and said.row + len(said.truths) > len(recorded.answers):
        raise invalid_field(
            "row", f"rows of the request, which had {len(recorded.answers)}", f"{said.row + len(said.truths) - 1}"
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False
