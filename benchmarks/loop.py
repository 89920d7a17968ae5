"""Measures the loop from a change to what serves, in a temporary clone: `python -m benchmarks.loop`.

Six figures: nothing changed, commit to served, drift to redeployed, rollback, requests lost in a swap, wrong promotions.
Prints progress to standard error, and at the end one table to standard output, into docs/benchmarks/loop.md and README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import release_measures as measures
from benchmarks.gate import RETRAINS, series_with_false_promotion
from benchmarks.loop_drift import drift_to_redeployed
from benchmarks.progress import exit_code_of, report
from benchmarks.release_clone import CHECKOUT, Clone, commit, temporary_clone
from benchmarks.release_measures import Values, spread
from benchmarks.release_serving import Load, swaps
from benchmarks.report import hardware, markdown, rate, wrap
from headrace.errors import HeadraceError
from headrace.files import write_text
from headrace.release import history, journal

PAGE = CHECKOUT / "docs" / "benchmarks" / "loop.md"
README = CHECKOUT / "README.md"
BEGIN, END = "<!-- figures: written by python -m benchmarks.loop -->", "<!-- end of figures -->"
SERIES, QUICK_SERIES = 2_000, 20
"""Simulated series of retrains."""
TEST_ROWS = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and cleans up, also after Ctrl-C (exit code 130) and after an error (exit code of the error)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often each measure is taken, but for the drift (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny recipe, one run, no drift: a check of the code, not a result"
    )
    parser.add_argument("--json", action="store_true", help="print the values as JSON instead of the table")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    started = time.perf_counter()
    found = measure(1 if options.quick else max(1, options.runs), options.quick)
    found["minutes"] = round((time.perf_counter() - started) / 60, 1)
    print(json.dumps(found, indent=1) if options.json else table(found))
    if not options.quick:
        write_text(PAGE, page(found))
        write_between(README, table(found))
    return 0


def measure(runs: int, quick: bool) -> Values:
    """Takes all measures in one clone, in an order in which each finds what it needs."""
    found: Values = {"commit": commit(), "hardware": hardware(), "runs": runs}
    with temporary_clone() as clone:
        report(f"clone in {clone.root}")
        found["recipe"] = recipe = measures.write_tiny(clone) if quick else "digits"
        clone.headrace("run", recipe, "--json")
        found["unchanged"] = measures.unchanged(recipe, clone, runs * 3, report)
        found["commit_to_served"] = commit_to_served(recipe, clone, runs)
        found["swaps"] = swaps(recipe, clone, runs * 2, report)  # an even number: at the end the newest version serves
        found["rollback"] = rollbacks(recipe, clone, runs)
        found["drift"] = None if quick else drift_to_redeployed(clone, report)
    found["wrong_promotions"] = wrong_promotions(QUICK_SERIES if quick else SERIES)
    return found


def commit_to_served(recipe: str, clone: Clone, runs: int) -> Values:
    """Commits another seed, and releases it while clients send requests; measures until the new version serves."""
    seconds, lost, requests = list[float](), 0, 0
    for seed in range(8, 8 + runs):
        _commit_seed(recipe, clone, seed)
        with Load(clone, recipe) as load:
            ran = clone.headrace("run", recipe, "--json")
        _require_served(recipe, clone, str(json.loads(ran.stdout)["version"]), seed - 6)
        seconds.append(ran.seconds)
        lost, requests = lost + len(load.failures), requests + load.to_dict()["requests"]
        report(f"commit to served: {ran.seconds:.1f} s, {len(load.failures)} requests failed")
    return {"seconds": spread(seconds), "failed": lost, "requests": requests}


def _commit_seed(recipe: str, clone: Clone, seed: int) -> None:
    path = clone.project.recipes / f"{recipe}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields["train"]["seed"] = seed
    # The results of seeds differ by chance. The margin lets the new model pass, because this measures its way into production.
    fields["gate"] = {**fields["gate"], "beat_champion": {"metric": "accuracy", "margin": -0.2}}
    path.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    clone.run("git", "add", "--force", str(path))
    clone.run("git", "-c", "user.name=loop", "-c", "user.email=loop@example.org", "commit", "--quiet", "-m", f"Seed {seed}")


def rollbacks(recipe: str, clone: Clone, runs: int) -> Values:
    """Rolls back while clients send requests, once for each version; measures until the earlier version serves alone."""
    seconds, lost, requests = list[float](), 0, 0
    for number in range(runs + 1, 1, -1):
        with Load(clone, recipe) as load:
            ran = clone.headrace("rollback", recipe)
        _require_served(recipe, clone, None, number - 1)
        seconds.append(ran.seconds)
        lost, requests = lost + len(load.failures), requests + load.to_dict()["requests"]
        report(f"rollback: {ran.seconds:.1f} s, {len(load.failures)} requests failed")
    return {"seconds": spread(seconds), "failed": lost, "requests": requests}


def _require_served(recipe: str, clone: Clone, printed: str | None, expected: int) -> None:
    """
    Raises:
        HeadraceError: another version than `expected` is in production.
    """
    served = history.in_force(journal.entries(clone.project, recipe))
    if served is None or served.version != str(expected) or printed not in (None, served.version):
        raise HeadraceError(
            f"expected {recipe}@{expected} in production, found {served.version if served else None}",
            where=str(clone.root),
            hint=f"headrace history {recipe}",
        )


def wrong_promotions(series: int) -> Values:
    """Simulates retrains in a row of equally good models on the same test rows; each promotion is wrong."""
    gate, naive = series_with_false_promotion(np.random.default_rng(3), TEST_ROWS, RETRAINS, series)
    report(f"a wrong promotion in {100 * gate.mean():.1f} % of {series:,} series, naive {100 * naive.mean():.1f} %")
    return {"gate": rate(gate), "naive": rate(naive), "series": series}


def table(found: Values) -> str:
    """Returns the six figures as a table."""
    return markdown(("figure", "measured", "beside"), [row(found) for row in ROWS])


def _unchanged(found: Values) -> tuple[str, str, str]:
    ours, dvc = (found["unchanged"][name]["median"] for name in ("headrace run", "dvc repro"))
    return "**Nothing changed**: `headrace run`", f"{ours:.2f} s", f"`dvc repro` {dvc:.2f} s, {ours / dvc:.2f} times as long"


def _commit(found: Values) -> tuple[str, str, str]:
    took = found["commit_to_served"]["seconds"]
    return "**Commit to served**: trained, judged, rolled out", _range(took), f"`{found['recipe']}`, under load"


def _drift(found: Values) -> tuple[str, str, str]:
    drift = found["drift"]
    name = "**Drift to redeployed**: from the first request that differs"
    if drift is None:
        return name, "not measured", ""
    noticed = f"`flights` in {drift['month']}, looked at each minute; {drift['noticed']:.0f} s of it until the alarm"
    return name, f"{drift['seconds']:.0f} s", f"{noticed}; a monthly schedule: {drift['schedule_days']:.0f} days on average"


def _rollback(found: Values) -> tuple[str, str, str]:
    return "**Rollback**, until the earlier version serves", _range(found["rollback"]["seconds"]), "under load"


def _lost(found: Values) -> tuple[str, str, str]:
    parts = [found[name] for name in ("swaps", "commit_to_served", "rollback")] + ([found["drift"]] if found["drift"] else [])
    lost, requests = (sum(part[name] for part in parts) for name in ("failed", "requests"))
    return "**Requests lost** in swaps, releases and rollbacks", f"{lost} of {requests:,}", ""


def _wrong(found: Values) -> tuple[str, str, str]:
    wrong = found["wrong_promotions"]
    name = f"**Wrong promotions**: series of {RETRAINS} retrains with one"
    return name, wrong["gate"], f"promoting what is better on the test rows: {wrong['naive']}"


ROWS: tuple[Callable[[Values], tuple[str, str, str]], ...] = (_unchanged, _commit, _drift, _rollback, _lost, _wrong)


def _range(seconds: dict[str, Any]) -> str:
    return f"{seconds['median']:.1f} s ({seconds['min']:.1f} to {seconds['max']:.1f}, n = {seconds['n']})"


HEAD = """# The loop, measured

Written by `python -m benchmarks.loop` in {minutes} minutes on {hardware}; commit {commit}.

The command clones the last commit into a temporary folder, uses free ports, and removes the clone at the end. Three
clients send requests all the time in which versions change. `--quick` checks the code with a tiny recipe."""
MEANING = """**Nothing changed** is the cache hit: the whole command, beside `dvc repro` of the same stages.

**Commit to served** changes one line of the recipe (the seed) and commits it. The time is that of `headrace run`, until two
replicas of the new version answer and the earlier ones are stopped.

**Drift to redeployed** is a recipe with `monitor: {{every: 1m, retrain: …}}`. The model has learned January to March and was
tested on April. From the first second on it is asked about flights of {month}, and clients send the true answers
as feedback. A look finds that the error has grown, the next month's rows are brought, the gate compares, and the new
version is rolled out: nobody does anything. The clock stops with the first answer of the new version. {drift} Drift
of the inputs alone is counted once their hour is over, which adds up to 62 minutes. The peer is a retraining once a month:
half a month on average, plus the same release.

**Rollback** is `headrace rollback`, until the earlier version serves alone.

**Requests lost** counts every request of all clients that got no answer of status 200.

**Wrong promotions** are simulated: {series:,} series of {retrains} retrains, all models equally good, always the same
{rows:,} test rows. [The gate, measured](gate.md) has more of this kind, with trained networks too. Brackets show 95 %
intervals."""


def page(found: Values) -> str:
    """Returns the page of the benchmark."""
    drift = found["drift"] or {"month": "May"}
    noticed = (
        f"In this run the alarm came after {drift['noticed']:.0f} s and {drift['answers']:,} true answers, "
        f"{drift['error']:.1f} minutes of error instead of {drift['reference']:.1f}."
        if found["drift"]
        else ""
    )
    meaning = MEANING.format(
        month=drift["month"], drift=noticed, series=found["wrong_promotions"]["series"], retrains=RETRAINS, rows=TEST_ROWS
    )
    return "\n\n".join([wrap(HEAD.format(**found)), table(found), "## What each figure means", wrap(meaning)]) + "\n"


def write_between(path: Path, text: str) -> None:
    """Replaces what is between the marks in a file.

    Raises:
        HeadraceError: the marks are not there.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise HeadraceError(f"the marks of the figures are missing: {BEGIN} … {END}", where=str(path), hint="put them back")
    write_text(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
