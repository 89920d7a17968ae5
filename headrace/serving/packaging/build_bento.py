"""Builds one bento in the store at BENTOML_HOME: `python build_bento.py SCRATCH TAG`. Only bento.py runs it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

MEASURED_FILE = "serving.json"
"""Measured choices of how to serve the version. Neither its answers nor the bento's tag depend on them."""


def main(scratch: Path, tag: str) -> None:
    """Builds the bento from `scratch`, a folder with `model/` (the model's files) and `src/` (the service)."""
    import bentoml

    name, _, version = tag.partition(":")
    write_choices(scratch)
    with bentoml.models.create(tag) as model:
        shutil.copytree(scratch / "model", model.path, dirs_exist_ok=True)
    requirements = (scratch / "src" / "requirements-serving.txt").read_text(encoding="utf-8")
    packages = re.findall(r"^[\w.-]+==[^\s;]+", requirements, re.MULTILINE)  # without hashes: pip checks them in the image
    bentoml.bentos.build(
        "bentos.service:Headrace",
        name=name,
        version=version,
        build_ctx=str(scratch / "src"),
        include=["*"],
        # As a list: BentoML does not read a requirements file below a hidden folder, where this store is.
        python={"packages": packages, "lock_packages": False},
        args={"model": tag},
        description=f"{name}, version {version}, served by Headrace.",
    )


def write_choices(scratch: Path) -> None:
    """Writes the measured choices beside the model's files, with the code that will serve it.

    A runtime of a language model batches requests itself.
    """
    if not (scratch / "model" / "model.onnx").is_file():
        return
    sys.path.insert(0, str(scratch / "src"))
    from bentos.models.onnx_model import load
    from bentos.scheduling.batching_choice import choose_batching

    try:
        choices = {"batching": choose_batching(load(scratch / "model"))}
    except Exception:  # its first replica will report the error, and the previous version keeps serving
        choices = {"batching": None}
    (scratch / "model" / MEASURED_FILE).write_text(json.dumps(choices) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
