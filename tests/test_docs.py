"""The prose is true: its console blocks run, its names exist, and nothing that a user can set or call is left out."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin
from xml.etree import ElementTree

import click
import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from headrace import errors
from headrace.cli.main import cli
from headrace.recipe.models import MODELS, ModelConfig
from headrace.recipe.recipe import Expectation, Recipe
from headrace.services import orchestrate
from headrace.settings import Settings
from tests.conftest import ROOT, git, make_project
from tests.release.live import Live

PAGES = [
    "README.md",
    "docs/recipes.md",
    "docs/training.md",
    "docs/operations.md",
    "docs/calling.md",
    "docs/access.md",
    "docs/rollouts.md",
    "docs/observability.md",
    "docs/deployments.md",
    "docs/architecture.md",
]
OTHERS = ["docs/scaling.md", "docs/protocols.md", "CHANGELOG.md", "CONTRIBUTING.md"]
NOT_RUN = 4
"""Blocks that no test can run; each says why in a comment above it."""
IMAGINED = {"headrace/models/wide.py", "recipes/b.yaml"}
"""Files that an example lets the reader write."""


@dataclass(frozen=True)
class Call:
    """One `$` line, with the lines that it is said to print."""

    command: str
    code: int
    shown: list[str]


@dataclass(frozen=True)
class Block:
    line: int
    not_run: str | None
    calls: list[Call]


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def all_text() -> str:
    return "\n".join(text(page) for page in PAGES)


def blocks(page: str) -> list[Block]:
    """The page's console blocks, in order."""
    found = []
    for match in re.finditer(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?```console\n(?P<body>.*?)```", text(page), re.DOTALL):
        calls: list[Call] = []
        for line in match["body"].splitlines():
            if line.startswith("$ "):
                command, _, code = line[2:].partition("   # exits ")
                calls.append(Call(command, int(code or 0), []))
            elif line.strip():
                calls[-1].shown.append(line)
        found.append(Block(text(page)[: match.start()].count("\n") + 1, match["why"], calls))
    return found


# -- the console blocks


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], dict[str, str]]) -> Iterator[Live]:
    """A clone with the recipes that come with the house, `digits` released once from its real data."""
    project = make_project(tmp_path_factory.mktemp("docs") / "clone")
    for path in project.recipes.glob("*.yaml"):
        path.unlink()
    for name in ("digits", "flights"):
        shutil.copy(ROOT / "recipes" / f"{name}.yaml", project.recipes)
    shutil.copy(ROOT / "dvc.yaml", project.root)
    if (fetched := ROOT / ".headrace" / "cache" / "sources").is_dir():  # named by address and sha256; else fetched anew
        shutil.copytree(fetched, project.state / "cache" / "sources")
    customers(1200, 1).to_csv(project.root / "customers.csv", index=False)
    customers(200, 2).to_csv(project.root / "december.csv", index=False)
    broken = customers(200, 3)
    broken.loc[4, "plan"], broken.loc[17, "months"] = "bsic", -4
    broken.to_csv(project.root / "broken.csv", index=False)
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "The recipes of the house")
    found = Live(project, free_ports())
    try:
        found.run("run", "digits")
        yield found
    finally:
        orchestrate.down(found.project, found.settings)


def customers(rows: int, seed: int) -> pd.DataFrame:
    """What the pages call customers.csv: who left, by months, calls and plan."""
    rng = np.random.default_rng(seed)
    months, calls = rng.integers(1, 73, rows), rng.poisson(2, rows)
    plan = rng.choice(["basic", "family", "pro"], rows)
    leaves = 1 / (1 + np.exp(months / 12 - calls * 0.6 + (plan == "pro")))
    churned = np.where(rng.random(rows) < leaves, "yes", "no")
    named = {"customer_id": np.arange(rows) + 1000 * seed, "months": months, "calls": calls, "plan": plan, "churned": churned}
    return pd.DataFrame(named)


@pytest.mark.parametrize("page", PAGES)
def test_console_blocks_run_and_print_what_they_show(page: str, live: Live) -> None:
    for block in blocks(page):
        for call in block.calls if block.not_run is None else []:
            command = call.command.replace("127.0.0.1:8080", live.door.removeprefix("http://"))
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", command],
                cwd=live.project.root,
                env=live.environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            said = done.stdout + done.stderr
            assert done.returncode == call.code, f"{page}:{block.line}: {command} ended with {done.returncode}\n{said}"
            assert "Traceback" not in said
            printed = [alike(line) for line in said.splitlines()]
            for line in call.shown:
                pattern = ".*".join(re.escape(alike(part)) for part in line.split("…"))
                is_there = any(re.fullmatch(rf"\s*{pattern}\s*", one) for one in printed)
                assert is_there, f"{page}:{block.line}: {command} does not print\n{line}\nbut\n{said}"


@pytest.mark.parametrize(("page", "blocks_there"), [("README.md", 1), ("docs/calling.md", 2)])
def test_python_blocks_run(page: str, blocks_there: int, live: Live) -> None:
    """After the console blocks of the page, whose files they use."""
    token = live.run("tokens", "show").stdout.strip()
    environment = {**live.environment, "HEADRACE_TOKEN": token, "HEADRACE_ADDRESS": live.door}
    found = re.findall(r"(<!-- not run: [^>]+ -->\n)?```python\n(.*?)```", text(page), re.DOTALL)
    ran = 0
    for _, code in ((why, code) for why, code in found if not why):
        code = code.replace("127.0.0.1:8080", live.door.removeprefix("http://"))
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=live.project.root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{page}: {code}\n{done.stderr}"
        ran += 1
    assert ran == blocks_there


def alike(line: str) -> str:
    """The line with its numbers, hashes and blanks made equal: those differ from machine to machine."""
    line = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{8,}\b|(?<=-)[0-9a-f]{4}\b|\d+", "#", line)
    return re.sub(r"\s+", " ", re.sub(r"#(?:[.,:T+e-]*#)+", "#", line)).strip()


def test_blocks_that_cannot_run_are_few_and_say_why() -> None:
    left_out = [block for page in PAGES for block in blocks(page) if block.not_run]
    assert len(left_out) == NOT_RUN
    assert all(len(block.not_run or "") > 20 for block in left_out)
    assert sum(len(block.calls) for page in PAGES for block in blocks(page) if not block.not_run) > 40


# -- what can be set


def fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, annotation and default of every leaf of the recipe."""
    for name, field in section.model_fields.items():
        options = [field.annotation, *get_args(field.annotation)]
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if inner is not None and inner is not ModelConfig:
            yield from fields(inner, f"{prefix}{name}.")
        elif inner is None and (prefix, name) != ("model.", "name"):
            yield f"{prefix}{name}", field.annotation, field.get_default(call_default_factory=True)


RECIPE_FIELDS = [*fields(Recipe, ""), *(f for config in MODELS.values() for f in fields(config, "model."))]
SETTINGS_FIELDS = [*fields(Settings, "")]


def test_the_walk_over_the_recipe_finds_its_depths() -> None:
    names = {name for name, *_ in RECIPE_FIELDS}
    assert {"name", "data.split.time.column", "expect.type", "gate.beat_champion.margin", "model.hidden"} <= names
    assert Expectation.model_fields.keys() == {"type"}


@pytest.mark.parametrize(("name", "annotation", "default"), RECIPE_FIELDS, ids=[f[0] for f in RECIPE_FIELDS])
def test_every_recipe_field_is_documented_with_default_and_choices(name: str, annotation: Any, default: Any) -> None:
    assert_documented("docs/recipes.md", name, annotation, default)


@pytest.mark.parametrize(("name", "annotation", "default"), SETTINGS_FIELDS, ids=[f[0] for f in SETTINGS_FIELDS])
def test_every_setting_is_documented_with_default_and_choices(name: str, annotation: Any, default: Any) -> None:
    assert_documented("docs/operations.md", name, annotation, default)


def assert_documented(page: str, name: str, annotation: Any, default: Any) -> None:
    rows = [line for line in text(page).splitlines() if line.startswith("|") and f"`{name}`" in line]
    assert rows, f"{page} has no row for {name}"
    if get_origin(annotation) is Literal:
        for choice in get_args(annotation):
            assert any(f"`{choice}`" in row for row in rows), f"{page}: {name} does not name the choice {choice}"
    if default is None or repr(default) == "PydanticUndefined":
        return
    shown = spellings(default)
    assert any(one in row for one in shown for row in rows), f"{page}: {name} does not show its default {default!r}"


def spellings(default: Any) -> list[str]:
    """How a page may write a default."""
    if isinstance(default, bool):
        return [f"`{str(default).lower()}`"]
    if isinstance(default, int) and default >= 1 << 20:
        return [f"{default >> 20} MiB"]
    if isinstance(default, float):
        return [f"`{default}`", f"`{default:g}`"]
    if isinstance(default, list | tuple):
        return [f"`[{', '.join(str(value) for value in default)}]`"]
    return [f"`{default}`"]


def test_models_of_the_table_are_those_of_the_registry() -> None:
    assert all(f"| `{name}` |" in text("docs/recipes.md") for name in MODELS)


def test_every_exit_code_and_service_is_documented() -> None:
    operations = text("docs/operations.md")
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HeadraceError)]
    assert all(re.search(rf"^\| {code} \| ", operations, re.MULTILINE) for code in {0, *(c.exit_code for c in classes)})
    assert all(f"| `{name}` |" in operations for name in orchestrate.NAMES)


# -- what can be called


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = list(commands(cli, "headrace"))


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_and_option_is_documented(path: str, command: click.Command) -> None:
    lines = [line for line in all_text().splitlines() if path in line]
    assert lines, f"no page says {path}"
    for option in (p for p in command.params if isinstance(p, click.Option) and "--json" not in p.opts):
        longest = max(option.opts, key=len)
        assert any(longest in line for line in lines), f"no line about {path} says {longest}"


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_help_of_every_command_has_text(path: str, command: click.Command) -> None:
    shown = click.Context(command, info_name=path).get_help() if not command.help else command.help
    assert len(shown.strip()) > 20
    for option in (p for p in command.params if isinstance(p, click.Option)):
        assert option.help, f"{path} {option.opts[0]} has no help"


def test_help_is_printed_by_the_command_itself() -> None:
    from click.testing import CliRunner

    for path, _ in COMMANDS:
        done = CliRunner().invoke(cli, [*path.split()[1:], "--help"])
        assert done.exit_code == 0 and done.output.startswith("Usage:"), path
    done = CliRunner().invoke(cli, ["--help"])
    assert "Exit codes" in done.output


def named_commands(prose: str) -> set[str]:
    """`headrace x` and `headrace data x`, wherever a page or a message says so."""
    found = re.findall(r"(?<![\w./-])headrace ((?:data )?[a-z]+)", prose)
    return {name for name in found if name != "data"}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_commands_named_on_a_page_exist(page: str) -> None:
    code = "\n".join(re.findall(r"`[^`]+`|```.*?```", text(page), re.DOTALL))
    assert named_commands(code) <= {path.removeprefix("headrace ") for path, _ in COMMANDS}


def test_commands_named_in_messages_exist() -> None:
    """An error that names a command which is not there mends nothing."""
    known, unknown = {path.removeprefix("headrace ") for path, _ in COMMANDS}, []
    for path in sorted((ROOT / "headrace").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                unknown += [
                    f"{path.relative_to(ROOT)}:{node.value.lineno}: headrace {name}"
                    for name in named_commands(ast.unparse(node.value)) - known
                ]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_make_targets_named_on_a_page_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    code = "\n".join(re.findall(r"`[^`]+`|```.*?```", text(page), re.DOTALL))
    assert set(re.findall(r"(?<![\w-])make ([a-z-]+)", code)) <= targets


# -- where pages lead


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_relative_links_and_their_anchors_resolve(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page} links to {target}"


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_files_and_functions_named_on_a_page_exist(page: str) -> None:
    folders = "headrace|flows|tasks|bentos|deploy|tests|benchmarks|docs"
    for name in re.findall(rf"(?<![\w/(])((?:{folders})/[\w./-]+\.(?:py|md|yaml|sh|svg))", text(page)):
        assert name in IMAGINED or (ROOT / name).is_file(), f"{page} names {name}"
    for name, path in re.findall(r"`([A-Za-z_.]+)`\s+\(`([\w/]+\.py)`", text(page)):
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:def |class |){name.rpartition('.')[2]}\b", source, re.MULTILINE), (
            f"{page} names {name} in {path}"
        )


def test_the_picture_is_sound_and_names_the_steps() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "flow.svg")
    said = " ".join(element.text or "" for element in picture.iter())
    steps = "source,ingest,validate,prepare,train,export,evaluate,register,judge,package,roll out,promote,journal"
    for step in [*steps.split(","), "quarantine", "refused", "clients"]:
        assert step in said
    assert "prefers-color-scheme: dark" in text("docs/flow.svg")


def test_the_changelog_has_this_version() -> None:
    from headrace import __version__

    assert f"## [{__version__}]" in text("CHANGELOG.md")
