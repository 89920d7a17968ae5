"""Builds one bento in the store that BENTOML_HOME names: `python build_bento.py SCRATCH TAG`. Run by bento.py alone."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

SERVING = "serving.json"
"""How a version is best served, found by measuring it; its answers do not depend on it, and neither does the bento's tag."""


def main(scratch: Path, tag: str) -> None:
    """`scratch` holds `model/` (the model's files) and `src/` (the service)."""
    import bentoml

    name, _, version = tag.partition(":")
    write_choices(scratch)
    with bentoml.models.create(tag) as model:
        shutil.copytree(scratch / "model", model.path, dirs_exist_ok=True)
    lines = (scratch / "src" / "requirements-serving.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    bentoml.bentos.build(
        "bentos.service:Headrace",
        name=name,
        version=version,
        build_ctx=str(scratch / "src"),
        include=["*"],
        # As a list: BentoML reads no requirements file beneath a hidden folder, where this store lies.
        python={"packages": packages, "lock_packages": False},
        args={"model": tag},
        description=f"{name}, version {version}, served by Headrace.",
    )


def write_choices(scratch: Path) -> None:
    """Beside the model's files, by the code that will serve it."""
    sys.path.insert(0, str(scratch / "src"))
    from bentos.models.onnx_model import load
    from bentos.scheduling.batching_choice import choose_batching

    try:
        choices = {"batching": choose_batching(load(scratch / "model"))}
    except Exception:  # whatever is wrong with it: its first replica will say it, and what served before serves on
        choices = {"batching": None}
    (scratch / "model" / SERVING).write_text(json.dumps(choices) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
