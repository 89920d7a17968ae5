"""Builds one bento in the store that BENTOML_HOME names: `python build_bento.py SCRATCH TAG`. Run by bento.py alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def main(scratch: Path, tag: str) -> None:
    """`scratch` holds `model/` (the model's files) and `src/` (the service)."""
    import bentoml

    name, _, version = tag.partition(":")
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
