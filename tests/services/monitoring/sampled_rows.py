"""Samples of requests as replicas write them, made of training rows."""

from __future__ import annotations

import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.runtime.sample_file import SampleHead, file_name

HOUR = 3600.0
numbers = itertools.count()


def sampled(project: Project, model: str, hours_ago: float, rows: list[dict[str, Any]], version: str = "1") -> Path:
    """Writes the sample of an hour, as a replica does."""
    hour = datetime.fromtimestamp(time.time() - hours_ago * HOUR, UTC).strftime("%Y-%m-%dT%H")
    folder = project.usage / f"{model}-v{version}-{next(numbers):04x}"
    folder.mkdir(parents=True)
    head = SampleHead(model, version, folder.name, hour, len(rows), len(rows), 0)
    at = datetime.strptime(hour, "%Y-%m-%dT%H").replace(tzinfo=UTC).timestamp() + 1
    lines = [json.dumps(head.to_json()), *(json.dumps({**row, "at": at}) for row in rows)]
    path = folder / file_name(hour, "0123abcd")
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_like_training(project: Project, recipe: Recipe, count: int, seed: int, **changed: Any) -> list[dict[str, Any]]:
    """Random training rows as they are sampled; keywords change a field of all of them."""
    path = project.artifacts(recipe.name) / "prepared" / "train.parquet"
    frame = pd.read_parquet(path).sample(count, random_state=seed, replace=True)
    inputs = [{**row, **changed} for row in json.loads(frame.drop(columns=recipe.data.target).to_json(orient="records"))]
    answers = frame[recipe.data.target].tolist()
    confidences = np.random.default_rng(seed).uniform(0.9, 1.0, count).tolist()
    return [
        {"id": f"r{i}", "row": 0, "tenant": "acme", "inputs": row, "answer": answer, "confidence": confidence}
        for i, (row, answer, confidence) in enumerate(zip(inputs, answers, confidences, strict=True))
    ]
