"""Kills anything at any point of any flow: run again, the flow ends in the state in which an undisturbed run ends.

`HEADRACE_KILL_SEED` repeats the random instants of an earlier run, `HEADRACE_KILL_ONLY="machine inside train"` some kills.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.services import up
from tests.kills.end_state import differences, end_state
from tests.kills.killing import Killing
from tests.kills.matrix import ONLY, SEED, Kill, Step, every_kill, spread
from tests.kills.scenarios import RECIPE, SCENARIOS, Scenario, write_recipe
from tests.kills.snapshot import Snapshot
from tests.kills.steps import Steps
from tests.kills.victims import VICTIMS
from tests.paths import ROOT
from tests.projects import make_project
from tests.release.live import Live

SHORT = [scenario for scenario in SCENARIOS if scenario.is_in_short_tests]


@dataclass
class Begun:
    """A flow that has run undisturbed."""

    before: Snapshot
    """The project before the flow."""
    steps: list[Step]
    end: dict[str, Any]
    """The state in which it has ended."""


@dataclass
class Matrix:
    """A project whose services run, with the flows that have run undisturbed in it."""

    killing: Killing
    begun: dict[str, Begun] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.killing.project.root.parent

    def make_first(self, scenario: Scenario) -> None:
        """Puts the project into the state in which the scenario begins to make its own."""
        self.killing.ensure_up()
        empty, released = (Snapshot(self.killing.project, self.folder / name) for name in ("empty", "released"))
        (released if scenario.is_released and released.folder.exists() else empty).restore()
        if scenario.is_released and not released.folder.exists():
            self.killing.live.run("run", RECIPE)
            released.take()

    def begin(self, scenario: Scenario) -> Begun:
        """Runs the flow undisturbed, the first time."""
        if scenario.flow not in self.begun:
            self.make_first(scenario)
            scenario.before(self.killing.live)
            before = Snapshot(self.killing.project, self.folder / scenario.flow)
            before.take()
            before.restore()
            steps = self.killing.run_undisturbed(scenario)
            assert self.killing.leftovers() == []
            self.begun[scenario.flow] = Begun(before, steps, end_state(self.killing.live))
        return self.begun[scenario.flow]

    def require_same_end(self, scenario: Scenario, kills: Sequence[Kill]) -> None:
        """Runs the flow with these kills, and compares its end with the undisturbed one."""
        begun, names, began = self.begin(scenario), ", then ".join(map(str, kills)), time.monotonic()
        self.killing.ensure_up()
        begun.before.restore()
        self.killing.run_killed(scenario, kills, begun.steps)
        found = [*self.killing.leftovers(), *differences(begun.end, end_state(self.killing.live))]
        print(f"{scenario.flow}: {names}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        assert not found, f"{scenario.flow}, killed: {names}; seed {SEED}\n  " + "\n  ".join(found)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], dict[str, str]]) -> Iterator[Matrix]:
    """A project whose services run, and of which nothing is released."""
    unsampled = {"HEADRACE_SAMPLE_ROWS_PER_HOUR": "0"}  # the requests of the tests would count as an hour of their own
    live = Live(make_project(tmp_path_factory.mktemp("kills") / "clone"), {**free_ports(), **unsampled})
    found = Killing(live, Steps(live.project.root))
    found.steps.install()
    write_recipe(live)
    try:
        found.ensure_up()
        made = Matrix(found)
        Snapshot(found.project, made.folder / "empty").take()
        yield made
    finally:
        up.down(found.project)


@pytest.fixture(autouse=True)
def _seed_of_a_failure(request: pytest.FixtureRequest) -> None:
    """Pytest prints this with a test that fails."""
    request.node.add_report_section("setup", "seed", f"HEADRACE_KILL_SEED={SEED} repeats the random instants")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("number", range(len(SHORT)), ids=[scenario.flow for scenario in SHORT])
def test_a_flow_ends_as_usual_although_parts_are_killed(number: int, matrix: Matrix) -> None:
    """The victims are dealt to the flows: each is killed once, at a random instant, several in the same run."""
    scenario, victims = SHORT[number], [*VICTIMS][number :: len(SHORT)]
    matrix.require_same_end(scenario, spread(victims, matrix.begin(scenario).steps))


@pytest.mark.exhaustive
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.flow)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_flow_ends_as_usual_wherever_it_is_killed(
    scenario: Scenario, victim: str, matrix: Matrix, subtests: pytest.Subtests
) -> None:
    for kill in every_kill(matrix.begin(scenario).steps, victim):
        if ONLY in str(kill):
            with subtests.test(str(kill)):
                matrix.require_same_end(scenario, [kill])


def test_every_flow_is_in_the_table() -> None:
    flows = {path.stem for path in (ROOT / "flows").glob("*.py") if "\n@flow(" in path.read_text()}
    assert flows == {scenario.flow for scenario in SCENARIOS}
