"""The `headrace` command: sections of the help, unknown commands and renamed options."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from headrace import renamed
from headrace.cli import main
from headrace.cli.main import SECTIONS, cli


def test_the_help_lists_every_command_once_in_its_section() -> None:
    listed = [command.name for commands in SECTIONS.values() for command in commands]
    assert sorted(map(str, listed)) == sorted(cli.commands), "a command is missing, or in two sections"
    page = CliRunner().invoke(cli, ["--help"]).output
    positions = [page.index(f"\n{title}:\n") for title in SECTIONS]
    assert positions == sorted(positions)
    for name in listed:
        assert page.count(f"\n  {name} ") == 1


def commands(group: click.Group, path: str = "headrace") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        found.append((f"{path} {name}", command))
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
    return found


@pytest.mark.parametrize(("path", "command"), commands(cli), ids=lambda one: one if isinstance(one, str) else "")
def test_every_help_text_is_a_sentence_and_every_option_has_one(path: str, command: click.Command) -> None:
    assert command.help and command.help.strip()[0].isupper()
    short = command.get_short_help_str(80)
    assert short.endswith(".") and not short.endswith("..."), "the short text has to fit a line"
    assert [one.name for one in command.params if isinstance(one, click.Option) and not one.help] == []


def test_an_unknown_command_suggests_the_near_miss(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["headrace", "predct", "digits"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "unknown command 'predct'; did you mean 'predict'?" in capsys.readouterr().err


def test_a_removed_option_is_an_error_that_says_what_there_is_instead() -> None:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", "approve", "digits@2", "--by", "ada"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--by was removed: who decides is not free text" in done.stderr
    assert "headrace tokens issue --tenant NAME --role reviewer" in done.stderr


@pytest.mark.parametrize(("old", "new"), renamed.OPTIONS.items())
def test_a_renamed_option_is_an_error_that_gives_the_new_name(old: str, new: str) -> None:
    command = [sys.executable, "-c", "from headrace.cli import main; main()", "run", "digits", old, "docker"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and f"{old} was renamed to {new}" in done.stderr
