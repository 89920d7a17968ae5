"""The dvc.yaml of a project that runs the installed Headrace, made from that of the repository."""

from __future__ import annotations

import re

from headrace.installation import path_of
from headrace.pipeline.installed_code import FOLDER, file_of, is_code

HEADER = """\
# From raw data to an evaluated model, for every recipe. `headrace run` reproduces these stages one by one; `dvc repro` does
# the same by hand. A stage whose inputs are unchanged is skipped. The code of Headrace counts as an input: the stage
# `installed_code` writes the hashes of the modules that each stage consists of.
#
# `headrace run` adds new recipes to both lists: `recipes`, with the code of each one's task type and model, and `custom`, those
# with a custom task type or model, with `train.window` or with `train.start: champion`. Recipes of imported models are in the
# list `imported` alone.
vars:
  - recipes: {}
  - custom: []
  - imported: []

stages:
"""
INSTALLED_CODE = f"""\
  installed_code:
    desc: Writes the hashes of the modules of Headrace that each stage consists of
    cmd: python -m headrace.pipeline.installed_code
    always_changed: true
    outs:
      - {FOLDER.as_posix()}:
          cache: false

"""


def pipeline_file() -> str:
    """Returns the text: each stage depends on one file of `installed_code` in place of all the modules that it consists of."""
    stages = path_of("dvc.yaml").read_text(encoding="utf-8").partition("\nstages:\n")[2]
    written: list[str] = []
    stage = listed = ""
    for line in stages.splitlines(keepends=True):
        if found := re.fullmatch(r"  (\w+):\n", line):
            stage = found[1]
        dependency = re.fullmatch(r"( +- )(\S+)\n", line)
        if dependency is None or not is_code(dependency[2]):
            written.append(line)
        elif listed != stage:
            listed = stage
            written.append(f"{dependency[1]}{file_of(stage).as_posix()}\n")
    return HEADER + INSTALLED_CODE + "".join(written)
