"""The doors through which DVC calls the work: what they say when it fails, and that they do not outlive who called."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import DataError, HeadraceError
from headrace.pipeline import stages
from headrace.project import Project


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "tiny"], "no stage 'trian'; did you mean 'train'?"),
        (["train"], "a stage and a recipe are needed"),
        ([], "stages: validate, prepare, train, export, evaluate"),
        (["train", "tinny"], "unknown recipe 'tinny'; did you mean 'tiny'?"),
    ],
)
def test_a_wrong_name_is_told_with_the_near_miss(
    arguments: list[str], said: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stages.main(arguments) == 2
    printed = capsys.readouterr().err
    assert said in printed and "hint:" in printed


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("bad row 3", where="column a", hint="correct it"), 3, "bad row 3"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/where"), 7, "no space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_stage_raises_is_left_for_its_caller(
    raised: BaseException, code: int, said: str, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setitem(stages.STAGES, "train", fail)
    monkeypatch.setenv(stages.ERROR_FILE, str(tmp_path / "error.json"))
    assert stages.main(["train", "tiny"]) == code
    left = HeadraceError.from_dict(json.loads((tmp_path / "error.json").read_text()))
    assert left.exit_code == code and said in left.message and left.hint
    if isinstance(raised, DataError):
        assert (type(left), left.where, left.hint) == (DataError, raised.where, raised.hint)


def test_an_error_of_the_program_itself_keeps_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(stages.STAGES, "train", fail)
    with pytest.raises(ZeroDivisionError):
        stages.main(["train", "tiny"])
