"""A model in production, and past data scored with it in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.backfill import run
from headrace.backfill.plan import Chunk, Plan
from headrace.backfill.run import Request
from headrace.project import Project
from headrace.tracking.registry import Version

ROWS = 1030
"""Eleven chunks of 100."""


@dataclass
class Released:
    """A model in production, and how past data is scored with it."""

    project: Project
    version: Version

    def request(self, data: Path | str, out: Path, **options: Any) -> Request:
        return Request(self.version.model, str(data), out, **{"chunk_rows": 100, **options})

    def prepare(self, data: Path | str, out: Path, **options: Any) -> Plan:
        return run.prepare(self.request(data, out, **options), self.project, lambda line: None)

    def score(self, plan: Plan, workers: int = 1) -> list[Chunk]:
        """Scores the chunks that are not done, and returns all in the order in which they were known to be done."""
        done: list[Chunk] = []
        run.score(plan, workers, self.project, done.append, lambda line: None)
        return done

    def backfill(self, data: Path | str, out: Path, workers: int = 1, **options: Any) -> dict[str, Any]:
        with run.backfill_lock(out, self.project):
            plan = self.prepare(data, out, **options)
            self.score(plan, workers)
            return run.finish(plan, self.project)
