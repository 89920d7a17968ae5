"""A process that scores chunks: `python -m headrace.backfill.worker OUT`. Each line of its input is the number of a chunk; for
each it writes a line of JSON, `{"chunk", "rows"}` or `{"error"}`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from headrace.backfill.answering import Answerer
from headrace.backfill.loading import load_model
from headrace.backfill.plan import Plan, Work
from headrace.backfill.scorer import Scorer
from headrace.errors import HeadraceError
from headrace.permissions import set_private_umask
from headrace.processes import as_headrace_error, die_with_parent
from headrace.scoring.rows import BadFile, as_data_error

CODE = "HEADRACE_BACKFILL_CODE"
"""Environment variable with the folder of the code in the version's bento, for a custom class."""


def main(arguments: list[str]) -> int:
    die_with_parent()
    set_private_umask()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not a reply
    work = Work(Path(arguments[0]))
    plan = work.read_plan()
    assert plan is not None
    try:
        scorer = load_scorer(plan, work)
    except Exception as error:
        _reply(replies, {"error": _described(error, plan)})
        return 1
    _reply(replies, {"ready": True})
    for line in sys.stdin:
        try:
            manifest = scorer.score(int(line))
        except Exception as error:
            _reply(replies, {"error": _described(error, plan)})
            return 1
        _reply(replies, {"chunk": manifest.index, "rows": manifest.rows})
    return 0


def load_scorer(plan: Plan, work: Work) -> Scorer:
    """Loads the model as a replica does.

    Raises:
        HeadraceError: the class that serves it cannot be imported, or its files do not fit together.
    """
    code = os.environ.get(CODE)
    model = load_model(work.model, Path(plan.project), Path(code) if code else None)
    return Scorer(plan, work, Answerer(model, plan.answer_id), model.contract)


def _described(error: Exception, plan: Plan) -> dict[str, Any]:
    """An error as `HeadraceError.to_dict` gives it."""
    if isinstance(error, BadFile):
        return as_data_error(error, Path(plan.data)).to_dict()
    if (known := as_headrace_error(error)) is not None:
        return known.to_dict()
    import traceback

    traceback.print_exc()
    message = f"{type(error).__name__}: {str(error)[:500]}"
    return HeadraceError(message, where=plan.name, hint="the lines above show where; then run the same command").to_dict()


def _reply(replies: TextIO, value: dict[str, Any]) -> None:
    replies.write(json.dumps(value) + "\n")
    replies.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
