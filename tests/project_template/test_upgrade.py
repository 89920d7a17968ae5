"""`headrace upgrade`: three-way merges of the files of a project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace import __version__
from headrace.cli.main import cli
from headrace.errors import HeadraceError, UsageError
from headrace.project import Project
from headrace.project_template import upgrade
from headrace.project_template.create import create_project
from headrace.project_template.files import template_files
from headrace.project_template.record import FILE, outdated_note, read_record
from headrace.project_template.upgrade import Change, apply, changes
from tests.paths import ROOT

Later = Callable[[dict[str, str | None]], None]


@pytest.fixture
def shop(tmp_path: Path) -> Project:
    return create_project(tmp_path / "shop", print)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    """Installs, for `upgrade`, a later Headrace that writes these texts; None: it no longer writes the file."""

    def install(texts: dict[str, str | None]) -> None:
        def files(name: str) -> dict[str, str]:
            found = {**template_files(name), **texts}
            return {path: text for path, text in found.items() if text is not None}

        monkeypatch.setattr(upgrade, "template_files", files)

    return install


def edit(project: Project, path: str, old: str, new: str) -> str:
    file = project.root / path
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    return file.read_text()


def test_without_a_later_headrace_nothing_changes_whatever_the_user_did(shop: Project) -> None:
    edit(shop, "flows/release.py", "prepare(recipe, project)", "prepare(recipe, project)  # mine")
    (shop.root / "tests" / "test_project.py").unlink()
    assert changes(shop) == []


def test_a_file_that_the_user_left_alone_is_replaced_and_kept_as_a_copy(shop: Project, later: Later) -> None:
    before = (shop.root / "Makefile").read_text()
    later({"Makefile": before + "\nextra:\n\techo\n", "docs.md": "new\n", "tasks/settings.py": None})
    found = changes(shop)
    assert [(one.path, one.kind) for one in found] == [
        ("Makefile", "changed"), ("docs.md", "added"), ("tasks/settings.py", "removed"),
    ]  # fmt: skip
    assert "+extra:\n" in found[0].diff and found[0].diff.startswith("--- a/Makefile\n+++ b/Makefile\n")
    assert (shop.root / "Makefile").read_text() == before, "it was only shown"
    copies = apply(found, shop)
    assert copies is not None and copies.parent == shop.state / "upgrades"
    assert (copies / "Makefile").read_text() == before and (copies / "tasks" / "settings.py").exists()
    assert (shop.root / "Makefile").read_text().endswith("echo\n") and (shop.root / "docs.md").read_text() == "new\n"
    assert not (shop.root / "tasks" / "settings.py").exists()
    assert changes(shop) == []


def test_changes_in_different_places_are_merged(shop: Project, later: Later) -> None:
    text = template_files("shop")["dvc.yaml"]
    mine = edit(shop, "dvc.yaml", "  - recipes: {}\n", "  - recipes:\n      churn: {task_type: a, model: b}\n")
    later({"dvc.yaml": text.replace("Trains weights", "Trains and keeps weights")})
    (found,) = changes(shop)
    assert found.kind == "merged" and found.after == mine.replace("Trains weights", "Trains and keeps weights")
    apply([found], shop)
    assert (shop.root / "dvc.yaml").read_text() == found.after


def test_changes_of_the_same_line_get_markers_and_lose_nothing(shop: Project, later: Later) -> None:
    line = "        recover(recipe, project)\n"
    mine = edit(shop, "flows/release.py", line, "        recover(recipe, project)  # mine\n")
    later(
        {"flows/release.py": template_files("shop")["flows/release.py"].replace(line, "        recover(recipe, project, 2)\n")}
    )
    (found,) = changes(shop)
    assert found.kind == "conflict" and found.after is not None
    assert (
        "<<<<<<< yours\n        recover(recipe, project)  # mine\n" in found.after
        and "recover(recipe, project, 2)" in found.after
    )
    copies = apply([found], shop)
    assert copies is not None and (copies / "flows" / "release.py").read_text() == mine


def test_what_the_user_removed_stays_away_and_what_he_changed_stays(shop: Project, later: Later) -> None:
    (shop.root / "tests" / "test_project.py").unlink()
    mine = edit(shop, "tasks/settings.py", "HOUR", "HOUR ")
    later({"tests/test_project.py": "other\n", "tasks/settings.py": None})
    found = changes(shop)
    assert [(one.path, one.kind) for one in found] == [("tasks/settings.py", "kept"), ("tests/test_project.py", "kept")]
    assert apply(found, shop) is None
    assert (shop.root / "tasks" / "settings.py").read_text() == mine
    assert not (shop.root / "tests" / "test_project.py").exists()
    assert changes(shop) == []


def test_a_file_of_the_user_where_a_later_headrace_writes_one_gets_both_texts(shop: Project, later: Later) -> None:
    (shop.root / "docs.md").write_text("mine\n")
    later({"docs.md": "theirs\n"})
    (found,) = changes(shop)
    assert found.kind == "conflict" and found.after is not None
    assert "mine\n" in found.after and "theirs\n" in found.after


def test_line_ends_of_windows_are_kept(shop: Project, later: Later) -> None:
    file = shop.root / "prefect.yaml"
    file.write_bytes(file.read_bytes() + b"# mine\r\n")
    later({"prefect.yaml": template_files("shop")["prefect.yaml"].replace("# Deployments.", "# All deployments.")})
    apply(changes(shop), shop)
    assert file.read_bytes().startswith(b"# All deployments.") and file.read_bytes().endswith(b"# mine\r\n")


def test_an_upgrade_that_was_killed_is_completed_by_the_next(
    shop: Project, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {name: template_files("shop")[name] + "# later\n" for name in ("Makefile", "prefect.yaml")}
    later(dict(texts))
    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "write_record", lambda root, record: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            apply(changes(shop), shop)
    assert changes(shop) == []
    apply(changes(shop), shop)
    record = read_record(shop.root)
    assert record is not None and record.files["Makefile"] == texts["Makefile"]


def test_the_command_shows_then_applies(shop: Project, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop.root)
    assert "those of Headrace" in CliRunner().invoke(cli, ["upgrade"]).output
    later({"Makefile": "other\n", "docs.md": "new\n"})
    shown = CliRunner().invoke(cli, ["upgrade"]).output
    assert "+other\n" in shown and "Makefile: changed\n" in shown and "docs.md: new\n" in shown
    assert shown.endswith("nothing was written; headrace upgrade --apply writes it\n")
    applied = CliRunner().invoke(cli, ["upgrade", "--apply"])
    assert applied.exit_code == 0 and "the files as they were are in .headrace/upgrades/" in applied.output
    edit(shop, "Makefile", "other", "mine")
    later({"Makefile": "theirs\n", "docs.md": "new\n"})
    refused = CliRunner().invoke(cli, ["upgrade", "--apply"]).exception
    assert isinstance(refused, UsageError) and "the same lines of Makefile" in refused.message


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda record: record.unlink(), "is missing, which says"),
        (lambda record: record.write_text("{"), "damaged file"),
        (lambda record: record.write_text('{"schema_version": 9}'), "schema version 9"),
        (lambda record: record.write_text(record.read_text().replace('"0.1.0"', '"99.0"')), "Headrace 99.0 wrote this project"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(shop: Project, break_it: Callable[[Path], object], said: str) -> None:
    break_it(shop.root / FILE)
    with pytest.raises(HeadraceError, match=said) as caught:
        changes(shop)
    assert caught.value.hint


def test_another_headrace_than_the_one_that_wrote_the_project_is_said(shop: Project) -> None:
    assert outdated_note(shop.root) is None and outdated_note(ROOT) is None
    edit(shop, FILE, f'"headrace": "{__version__}"', '"headrace": "0.0.1"')
    assert (
        outdated_note(shop.root) == f"Headrace 0.0.1 wrote this project; headrace upgrade shows what {__version__} would write"
    )


def test_a_clone_is_upgraded_by_git() -> None:
    with pytest.raises(UsageError, match="a clone") as caught:
        changes(Project(ROOT))
    assert caught.value.hint == "git pull"


def test_a_diff_names_a_missing_line_end() -> None:
    assert Change("a", "changed", "x", "y\n").diff.endswith("-x\n\\ No newline at end of file\n+y\n")
