"""What a release costs, measured on a real one in a throw-away clone: `python -m benchmarks.release`.

Progress goes to standard error; at the end one table to standard output and into docs/benchmarks/release.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import release_measures as measures
from benchmarks import release_serving as serving
from benchmarks.release_clone import CHECKOUT, Clone, clone, commit
from benchmarks.release_table import machine, render
from headrace.errors import HeadraceError
from headrace.files import write_text

PAGE = CHECKOUT / "docs" / "benchmarks" / "release.md"
BEGIN, END = "<!-- table: written by python -m benchmarks.release -->", "<!-- end of table -->"
SHORT = 3
"""What takes a second or so is measured so many times as often."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and leaves nothing behind; also after Ctrl-C (exit code 130) and after an error (its own code)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.release", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how often each long measure is taken (default 3)")
    parser.add_argument("--quick", action="store_true", help="a tiny recipe, one run, no containers: a check, no result")
    parser.add_argument("--setup", action="store_true", help="also time `make setup` in the clone, twice")
    parser.add_argument("--no-docker", action="store_true", help="leave images and containers out")
    parser.add_argument("--json", action="store_true", help="print the values as JSON instead of the table")
    parser.add_argument("--out", type=Path, help="the page for the table (docs/benchmarks/release.md; none with --quick)")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        runs = 1 if asked.quick else max(1, asked.runs)
        found = measure(runs, asked.quick, asked.setup, docker=not (asked.quick or asked.no_docker))
    except KeyboardInterrupt:
        tell("interrupted; everything that was started is stopped and removed")
        return 130
    except HeadraceError as error:
        tell(f"error {error}")
        return error.exit_code
    table = render(found)
    print(json.dumps(found, indent=1) if asked.json else table)
    if out := asked.out or (None if asked.quick else PAGE):
        write_table(table, out)
    return 0


def measure(runs: int, quick: bool, setup: bool, docker: bool) -> dict[str, Any]:
    """Every measure, in an order in which each finds what it needs."""
    begin = os.getloadavg()[0]
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "commit": commit(), "machine": machine(), "runs": runs}
    with clone() as made:
        tell(f"clone in {made.root}, load average {begin:.1f}")
        found["recipe"] = recipe = measures.write_tiny(made) if quick else "digits"
        if setup:
            found["setup"] = set_up(made)
        if not quick:
            found["first_release_fetching"] = measures.first_release(recipe, made, False, 1, tell)
        found["services"] = measures.start_services(made, runs, tell)
        found["first_release"] = measures.first_release(recipe, made, True, runs, tell)
        found["unchanged"] = measures.unchanged(recipe, made, 1 if quick else runs * SHORT, tell)
        found["forced"] = measures.forced(recipe, made, runs, tell)
        found["replica"] = serving.replica(recipe, made, 1 if quick else runs * SHORT, tell)
        found["changed_release"] = serving.changed_release(recipe, made, tell)
        found["swaps"] = serving.swaps(recipe, made, runs, tell)
        found["containers"] = serving.containers(recipe, made, runs, tell) if docker else {"skipped": "not asked for"}
    found["load"] = {"begin": begin, "end": os.getloadavg()[0]}
    return found


def set_up(made: Clone) -> dict[str, float]:
    """`make setup` twice; the second time every package is in the caches."""
    seconds = {}
    for name in ("first", "warm"):
        shutil.rmtree(made.root / ".venv", ignore_errors=True)
        seconds[name] = round(made.run("make", "setup").seconds, 1)
        tell(f"make setup, {name}: {seconds[name]:.0f} s")
    return seconds


def write_table(table: str, page: Path) -> None:
    """Puts the table between the marks in `page`, or writes a page of it alone."""
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# A release, measured\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, f"{before}{BEGIN}\n\n{table}\n{END}{after}")


def tell(line: str) -> None:
    """Progress."""
    print(f"  {time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
