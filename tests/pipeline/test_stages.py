"""What the commands in dvc.yaml report when they fail."""

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
    ("arguments", "message"),
    [
        (["trian", "tiny"], "unknown stage 'trian'; did you mean 'train'?"),
        (["train"], "expected a stage and a recipe"),
        ([], "stages: validate, prepare, train, export, evaluate"),
        (["train", "tinny"], "unknown recipe 'tinny'; did you mean 'tiny'?"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_near_miss(
    arguments: list[str], message: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stages.main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "hint:" in printed


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (DataError("bad row 3", where="column a", hint="correct it"), 3, "bad row 3"),
        (OSError(errno.ENOSPC, "No space left on device", "/some/where"), 7, "no space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_stage_raises_is_left_for_its_caller(
    raised: BaseException, code: int, message: str, project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: Any) -> None:
        raise raised

    monkeypatch.setitem(stages.COMMANDS, "train", fail)
    monkeypatch.setenv(stages.ERROR_FILE, str(tmp_path / "error.json"))
    assert stages.main(["train", "tiny"]) == code
    left = HeadraceError.from_dict(json.loads((tmp_path / "error.json").read_text()))
    assert left.exit_code == code and message in left.message and left.hint
    if isinstance(raised, DataError):
        assert (type(left), left.where, left.hint) == (DataError, raised.where, raised.hint)


def test_an_error_of_the_program_itself_keeps_its_traceback(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(stages.COMMANDS, "train", fail)
    with pytest.raises(ZeroDivisionError):
        stages.main(["train", "tiny"])
