"""Sends the true answers in a file as feedback, and reports what became of them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace import console
from headrace.cli.shared import load_project, print_json
from headrace.errors import DataError, UsageError, near_miss
from headrace.scoring.truths import MOST_PLACES, GivenTruth, Places, Truths, first_id, read_truths, request_of

if TYPE_CHECKING:
    from headrace.client import AsyncClient
    from headrace.project import Project
    from headrace.runtime.contract import Contract

REQUESTS_AT_ONCE = 16
"""The server waits a second for the record of an id that it does not know: these wait together."""
ROWS_PER_REQUEST = 1000
DAY_SECONDS = 86400.0
NO_CONTRACT: dict[str, Any] = {"model": "", "task": "", "inputs": [], "output": "text", "target": "", "sample": {}}


@dataclass(frozen=True)
class Group:
    """True answers to consecutive rows of a request, which are sent together."""

    about: str
    row: int
    truths: list[GivenTruth]


@dataclass
class Outcome:
    """What became of the rows that were sent."""

    joined: int = 0
    pending: int = 0
    unknown: Places = field(default_factory=Places)
    other_tenants: int = 0
    """Sampled rows with the key that another tenant sent."""


def send_file(path: Path, model: str | None, column: str | None, key: str | None, address: str | None, as_json: bool) -> None:
    """Sends all true answers of a file, and prints what became of them.

    Raises:
        UsageError: the file or its columns cannot be used as the options say.
        DataError: the file cannot be read; or, after the others were sent, some rows were not accepted.
        CallFailed: the service does not answer.
    """
    from headrace.cli.gateway_client import async_client_of, client_of

    if key is not None and (address is not None or model is None):
        message = "needs the samples of this machine" if address is not None else "needs the model whose samples are searched"
        raise UsageError(message, where="--key", hint="headrace feedback --file FILE --key COLUMN --model MODEL")
    with _file_errors(path):
        name = model or _model_of(path)
    with client_of(address, name) as client:
        contract = _contract_of(client.describe(name))
    with _file_errors(path):
        truths = read_truths(path, contract, _columns(contract, column), key)
    outcome = Outcome()
    groups = list(_groups(truths.by_row.values() if key is None else _of_samples(contract, truths, key, outcome)))
    asyncio.run(_send(async_client_of(address), groups, truths, outcome))
    _report(path, truths, outcome, as_json)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Raises errors of the file with its name."""
    from headrace.scoring.rows import BadFile

    if not path.is_file():
        raise UsageError("no such file", where=str(path), hint="check the path")
    try:
        yield
    except BadFile as error:
        what, _, how = error.message.partition("; ")
        raise DataError(what, where=str(path), hint=how or "correct the file, or export it again") from None


def _contract_of(described: dict[str, Any]) -> Contract:
    from headrace.runtime.contract import Contract

    return Contract.model_validate(described["contract"])


def _model_of(path: Path) -> str:
    """Returns the model that the ids of the file name.

    Raises:
        UsageError: they are request ids, which name none.
    """
    from headrace.runtime.contract import Contract

    about = first_id(path, Contract.model_validate(NO_CONTRACT))
    if about is None:
        raise DataError("the file has no rows", where=str(path), hint="add rows below the header")
    model, _ = request_of(about)
    if model is None:
        hint = f"headrace feedback --file {path} --model MODEL"
        raise UsageError(f"the id {about[:100]!r} does not name its model", where=str(path), hint=hint)
    return model


def _columns(contract: Contract, column: str | None) -> list[str]:
    """Returns the columns of the true answer.

    Raises:
        UsageError: one column is given for a model with several values.
    """
    if column is not None and contract.output == "values":
        targets = contract.targets or []
        hint = f"leave it out; the file needs the columns {', '.join(targets)}"
        raise UsageError(f"{contract.model} predicts {len(targets)} values", where="--truth", hint=hint)
    return (contract.targets if contract.output == "values" else None) or [column or contract.target]


def _of_samples(contract: Contract, truths: Truths, key: str, outcome: Outcome) -> Iterator[GivenTruth]:
    """Yields the true answer to each sampled row of the caller's tenant whose input `key` has a value of the file.

    Raises:
        UsageError: no sample has such an input.
    """
    from headrace.serving.samples import read_samples, sampled_versions

    project = load_project()
    tenant, until = _tenant(project), time.time() + DAY_SECONDS
    given: dict[Any, GivenTruth] = {_comparable(about): one for (about, _), one in truths.by_row.items()}
    used: set[Any] = set()
    columns: set[str] = set()
    for version in sampled_versions(project, contract.model, 0.0, until, console.report):
        for part in read_samples(project, contract.model, version, 0.0, until, console.report):
            columns.update(part.inputs.columns)
            if key not in part.inputs:
                continue
            for value, row in zip(part.inputs[key].tolist(), part.keys, strict=True):
                one = given.get(_comparable(value))
                if one is None:
                    continue
                used.add(_comparable(value))
                if row.tenant != tenant:
                    outcome.other_tenants += 1
                    continue
                yield GivenTruth(one.place, f"{contract.model}@{version}:{row.request_id}", row.row, one.truth)
    if key not in columns:
        why = "it is personal, and never in samples" if key in contract.personal else near_miss(key, columns)
        hint = "name an input of the model that is in samples (sample_rows_per_hour), or send ids"
        raise UsageError(f"no sample of {contract.model} has {key!r}; {why}", where="--key", hint=hint)
    for value, one in given.items():
        if value not in used:
            outcome.unknown.add(one.place, f"no sampled row has {key} {str(one.about)[:100]}")


def _comparable(value: Any) -> Any:
    """Returns the same for a number in a file and in a sample: texts that are numbers count as these, except with leading
    zeros, as codes have them."""
    if isinstance(value, str):
        text = value.strip()
        try:
            found = float(text)
        except ValueError:
            return text
        has_zeros = len(text.lstrip("+-")) > 1 and text.lstrip("+-").startswith("0") and not text.lstrip("+-").startswith("0.")
        return text if has_zeros else found
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value).lower()


def _tenant(project: Project) -> str:
    """Returns the tenant in whose name feedback is sent."""
    from headrace.cli.gateway_client import client_options
    from headrace.runtime.token_verifier import TokenVerifier

    token = client_options(project)["token"]
    keys = project.token_keys if project.settings.access == "tokens" else None
    return TokenVerifier(keys).verify(token or "").tenant


def _groups(truths: Iterable[GivenTruth]) -> Iterator[Group]:
    """Yields the true answers of each request, consecutive rows together."""
    by_request: defaultdict[str, list[GivenTruth]] = defaultdict(list)
    for one in truths:
        by_request[one.about].append(one)
    for about, rows in by_request.items():
        rows.sort(key=lambda one: one.row)
        for _, run in groupby(enumerate(rows), key=lambda item: item[1].row - item[0]):
            found = [one for _, one in run]
            for start in range(0, len(found), ROWS_PER_REQUEST):
                part = found[start : start + ROWS_PER_REQUEST]
                yield Group(about, part[0].row, part)


async def _send(client: AsyncClient, groups: list[Group], truths: Truths, outcome: Outcome) -> None:
    """Sends all groups, some at the same time.

    Raises:
        CallFailed: the service does not answer or takes no more; what was sent before is kept.
    """
    left = iter(groups)
    async with client:
        with console.bar("feedback", len(groups)) as bar:

            async def work() -> None:
                for group in left:  # shared by all workers
                    await _send_group(client, group, truths, outcome)
                    bar.update(outcome.joined + outcome.pending)

            await asyncio.gather(*(work() for _ in range(min(REQUESTS_AT_ONCE, len(groups)))))


async def _send_group(client: AsyncClient, group: Group, truths: Truths, outcome: Outcome) -> None:
    from headrace.client import InvalidInput, NotFound

    values = [one.truth for one in group.truths]
    try:
        answer = await client.feedback(group.about, values[0] if len(values) == 1 else values, group.row)
    except NotFound as error:
        if error.code != "unknown_request":
            raise
        for one in group.truths:
            outcome.unknown.add(one.place, f"unknown request {one.about[:100]}")
    except InvalidInput as error:
        for one in group.truths:
            truths.refused.add(one.place, error.headline)
    else:
        if answer["state"] == "joined":
            outcome.joined += len(values)
        else:
            outcome.pending += len(values)


def _report(path: Path, truths: Truths, outcome: Outcome, as_json: bool) -> None:
    """
    Raises:
        DataError: some rows were not accepted.
    """
    problems = {"contradictory": truths.contradictory, "unknown": outcome.unknown, "refused": truths.refused}
    failed = sum(one.count for one in problems.values())
    counts = {
        "rows": truths.rows,
        "joined": outcome.joined,
        "pending": outcome.pending,
        "repeated": truths.repeated,
        "without_truth": truths.missing,
        **({"other_tenants": outcome.other_tenants} if outcome.other_tenants else {}),
        **{name: one.count for name, one in problems.items()},
    }
    if as_json:
        print_json({**counts, "places": {name: one.first for name, one in problems.items() if one.count}})
        if failed:
            sys.exit(DataError.exit_code)
        return
    console.report(", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items()))
    for name, one in problems.items():
        for place in one.first:
            console.report(f"{name}: {place}")
        if one.count > len(one.first) >= MOST_PLACES:
            console.report(f"{name}: {one.count:,} rows in all")
    if failed:
        hint = "correct these rows, and send the file again: what is known already counts once"
        raise DataError(f"{failed:,} of {truths.rows:,} rows were not accepted", where=str(path), hint=hint)
