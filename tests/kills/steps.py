"""The steps of a flow as `step_hook` sees them: their log, and points at which a flow waits until it is killed or released."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HOOK = Path(__file__).with_name("step_hook.py")
"""It is not imported here: it changes Prefect's tasks in the process that imports it."""
WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class Mark:
    """A flow has reached the beginning or the end of a step."""

    step: str
    when: str
    """`before` or `after`."""
    pid: int
    """The process of the flow."""
    at: float

    @property
    def point(self) -> str:
        return f"{self.when} {self.step}"


@dataclass(frozen=True)
class Steps:
    """The steps of flows of the project in `root`, which has the hook."""

    root: Path

    def install(self) -> None:
        """Adds the hook to the package `flows` of the project."""
        self.folder.mkdir(exist_ok=True)
        flows = self.root / "flows"
        shutil.copy(HOOK, flows / "step_hook.py")
        with (flows / "__init__.py").open("a", encoding="utf-8") as file:
            file.write("from flows import step_hook as step_hook\n")

    @property
    def folder(self) -> Path:
        return self.root.parent / "steps"

    def clear(self) -> None:
        """Forgets the log, and lets flows go on."""
        (self.folder / "log").unlink(missing_ok=True)
        self.go_on()

    def pause_at(self, point: str) -> None:
        """Lets the next flow that reaches `point`, for example `before train`, wait there."""
        (self.folder / "pause.part").write_text(point)
        (self.folder / "pause.part").replace(self.folder / "pause")

    def go_on(self) -> None:
        (self.folder / "pause").unlink(missing_ok=True)

    def marks(self) -> list[Mark]:
        """All points that were reached, in order."""
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Mark(**json.loads(line)) for line in lines]

    def wait_for(self, point: str, is_over: Callable[[], bool], skip: int = 0) -> Mark | None:
        """The mark of `point`, once a flow has reached it; None where the flow is over before.

        Args:
            skip: marks of earlier flows, which do not count.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            over = is_over()  # before the look: the last mark may be written in between
            found = next((mark for mark in self.marks()[skip:] if mark.point == point), None)
            if found or over:
                return found
            time.sleep(0.02)
        raise AssertionError(f"{point} was not reached within {WAIT_SECONDS:g} s; reached: {self.marks()[skip:]}")
