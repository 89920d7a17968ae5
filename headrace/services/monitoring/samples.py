"""Reads the samples that the replicas of a model keep: `.headrace/usage/<replica>/samples-<hour>-….jsonl`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.console import Report
from headrace.project import Project
from headrace.runtime.sample_file import PATTERN, InvalidSampleFile, SampleHead


def sample_files(model: str, version: str, project: Project, report: Report) -> dict[str, list[Path]]:
    """Returns the files with samples of a version, by hour (`2026-11-30T19`); damaged ones are reported and left out."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(project.usage.glob(f"*/{PATTERN}")):
        try:
            with path.open("rb") as handle:
                head = SampleHead.from_line(handle.readline())
        except FileNotFoundError:  # it has just expired
            continue
        except (InvalidSampleFile, OSError) as error:
            report(f"{path.relative_to(project.root)} is left out: {error}")
            continue
        if (head.model, head.version) == (model, version):
            found[head.hour].append(path)
    return dict(found)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file; lines that are cut are left out."""
    try:
        with path.open("rb") as handle:
            handle.readline()
            for line in handle:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    yield row
    except FileNotFoundError:
        return
