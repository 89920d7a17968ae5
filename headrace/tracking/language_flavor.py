"""MLflow's flavor of language models in GGUF: the file and its contract, without Python code."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAVOR_NAME = "llama_cpp"


def save_model(path: str, mlflow_model: Any, files: Sequence[Path], **_: Any) -> None:
    """Writes a model to a new folder; MLflow calls it.

    Args:
        mlflow_model: MLflow's description of the model, which is written as `MLmodel`.
        files: the model's file first or last, and its contract.
    """
    folder = Path(path)
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    data = next(file.name for file in files if file.suffix == ".gguf")
    mlflow_model.add_flavor(FLAVOR_NAME, data=data)
    mlflow_model.save(str(folder / "MLmodel"))
