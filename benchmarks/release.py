"""Measures a real release in a temporary clone: `python -m benchmarks.release`.

Prints progress to standard error, and at the end one table to standard output and into docs/benchmarks/release.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import release_measures as measures
from benchmarks import release_serving as serving
from benchmarks.progress import exit_code_of, report
from benchmarks.release_clone import CHECKOUT, Clone, commit, temporary_clone
from benchmarks.release_table import machine, render
from headrace.files import write_text

PAGE = CHECKOUT / "docs" / "benchmarks" / "release.md"
BEGIN, END = "<!-- table: written by python -m benchmarks.release -->", "<!-- end of table -->"
SHORT_MEASURE_FACTOR = 3
"""Short measures (about a second) are taken this many times as often as long ones."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and cleans up, also after Ctrl-C (exit code 130) and after an error (exit code of the error)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.release", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often each long measure is taken (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny recipe, one run, no containers: a check of the code, not a result"
    )
    parser.add_argument("--setup", action="store_true", help="also time `make setup` in the clone, twice")
    parser.add_argument("--no-docker", action="store_true", help="skip images and containers")
    parser.add_argument("--json", action="store_true", help="print the values as JSON instead of the table")
    parser.add_argument(
        "--out", type=Path, help="page that gets the table (default: docs/benchmarks/release.md, or none with --quick)"
    )
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    runs = 1 if options.quick else max(1, options.runs)
    found = measure(runs, options.quick, options.setup, docker=not (options.quick or options.no_docker))
    table = render(found)
    print(json.dumps(found, indent=1) if options.json else table)
    if out := options.out or (None if options.quick else PAGE):
        write_table(table, out)
    return 0


def measure(runs: int, quick: bool, setup: bool, docker: bool) -> dict[str, Any]:
    """Takes all measures, in an order in which each one finds what it needs."""
    begin = os.getloadavg()[0]
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "runs": runs}
    with temporary_clone() as clone:
        report(f"clone in {clone.root}, load average {begin:.1f}")
        found["recipe"] = recipe = measures.write_tiny(clone) if quick else "digits"
        if setup:
            found["setup"] = set_up(clone)
        if not quick:
            found["first_release_fetching"] = measures.first_release(recipe, clone, False, 1, report)
        found["services"] = measures.start_services(clone, runs, report)
        found["first_release"] = measures.first_release(recipe, clone, True, runs, report)
        found["unchanged"] = measures.unchanged(recipe, clone, 1 if quick else runs * SHORT_MEASURE_FACTOR, report)
        found["forced"] = measures.forced(recipe, clone, runs, report)
        found["replica"] = serving.replica(recipe, clone, 1 if quick else runs * SHORT_MEASURE_FACTOR, report)
        found["changed_release"] = serving.changed_release(recipe, clone, report)
        found["swaps"] = serving.swaps(recipe, clone, runs, report)
        found["containers"] = (
            serving.containers(recipe, clone, runs, report) if docker else {"skipped": "--quick or --no-docker"}
        )
    found["load"] = {"begin": begin, "end": os.getloadavg()[0]}
    return found


def set_up(clone: Clone) -> dict[str, float]:
    """Times `make setup` twice; the second time every package is in the caches."""
    seconds = {}
    for name in ("first", "warm"):
        shutil.rmtree(clone.root / ".venv", ignore_errors=True)
        seconds[name] = round(clone.run("make", "setup").seconds, 1)
        report(f"make setup, {name}: {seconds[name]:.0f} s")
    return seconds


def write_table(table: str, page: Path) -> None:
    """Replaces the table between the marks in `page`, or creates the page."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# A release, measured\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, f"{before}{BEGIN}\n\n{table}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
