"""The prose is true: its console blocks run, its names exist, and nothing that a user can set or call is left out."""

from __future__ import annotations

import ast
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

import click
import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel

from headrace import errors
from headrace.cli.main import cli
from headrace.recipe import reference
from headrace.recipe.models import MODELS
from headrace.recipe.recipe import Recipe
from headrace.services import up
from headrace.settings import Settings
from tests.exhaustive import exhaustive
from tests.paths import ROOT
from tests.picture_files import class_folders
from tests.projects import git, make_project
from tests.release.live import Live
from tests.tiny_bert import WORDS, write_tiny_encoder

PAGES = [
    "README.md",
    "docs/projects.md",
    "docs/recipes.md",
    "docs/pictures.md",
    "docs/your-data.md",
    "docs/models.md",
    "docs/language-models.md",
    "docs/training.md",
    "docs/compress.md",
    "docs/retraining.md",
    "docs/approvals.md",
    "docs/operations.md",
    "docs/calling.md",
    "docs/scoring.md",
    "docs/access.md",
    "docs/security.md",
    "docs/rollouts.md",
    "docs/observability.md",
    "docs/monitoring.md",
    "docs/schedules.md",
    "docs/deployments.md",
    "docs/architecture.md",
    "docs/search.md",
]
LONG = ("docs/recipes.md",)
"""Pages with many releases: only `make test-all` runs their commands."""
REFERENCES = ["docs/reference/recipe.md", "docs/reference/settings.md"]
OTHERS = [
    "docs/backfill.md",
    "docs/scaling.md",
    "docs/protocols.md",
    "docs/change-detection.md",
    "docs/limits.md",
    *REFERENCES,
    "CHANGELOG.md",
    "CONTRIBUTING.md",
]
NOT_RUN = 6
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
    for match in re.finditer(r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?```console\n(?P<body>.*?)```", text(page), re.DOTALL):
        calls: list[Call] = []
        for line in match["body"].replace("\\\n    ", "").splitlines():  # a command may go on in the next line
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
    """A clone with two of the recipes, `digits` released once from its real data, and the trained recipes that pages show."""
    project = make_project(tmp_path_factory.mktemp("docs") / "clone")
    for path in project.recipes.glob("*.yaml"):
        path.unlink()
    for name in ("digits", "flights"):
        shutil.copy(ROOT / "recipes" / f"{name}.yaml", project.recipes)
    shutil.copy(ROOT / "dvc.yaml", project.root)
    if (fetched := ROOT / ".headrace" / "cache" / "sources").is_dir():  # named by address and sha256; else fetched again
        shutil.copytree(fetched, project.state / "cache" / "sources")
    customers(1200, 1).to_csv(project.root / "customers.csv", index=False)
    customers(200, 2).to_csv(project.root / "december.csv", index=False)
    broken = customers(200, 3)
    broken.loc[4, "plan"], broken.loc[17, "months"] = "bsic", -4
    broken.to_csv(project.root / "broken.csv", index=False)
    class_folders(project.root / "photos", each=20)
    (project.root / "photos" / "red" / "cut.jpg").write_bytes((project.root / "photos/red/1.jpg").read_bytes()[:300])
    (project.root / "photos" / "red" / "notes.txt").write_text("no picture\n")
    tickets(240).to_csv(project.root / "tickets.csv", index=False)
    write_tiny_encoder(project.root / "encoders" / "minilm")
    for page in PAGES:
        for name, recipe in re.findall(r"```yaml\n(?=name: (\S+)\ntask: [^\n]*\ndata:\n)(.*?)```", text(page), re.DOTALL):
            (project.recipes / f"{name}.yaml").write_text(recipe)
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "Two recipes")
    found = Live(project, free_ports())
    try:
        found.run("run", "digits")
        yield found
    finally:
        up.down(found.project.using(found.settings))


def customers(rows: int, seed: int) -> pd.DataFrame:
    """What the pages call customers.csv: who left, by months, calls and plan."""
    rng = np.random.default_rng(seed)
    months, calls = rng.integers(1, 73, rows), rng.poisson(2, rows)
    plan = rng.choice(["basic", "family", "pro"], rows)
    leaves = 1 / (1 + np.exp(months / 12 - calls * 0.6 + (plan == "pro")))
    churned = np.where(rng.random(rows) < leaves, "yes", "no")
    named = {"customer_id": np.arange(rows) + 1000 * seed, "months": months, "calls": calls, "plan": plan, "churned": churned}
    return pd.DataFrame(named)


def tickets(rows: int) -> pd.DataFrame:
    """What the pages call tickets.csv: a text, and the team that answered it."""
    rng = np.random.default_rng(4)
    words = np.array(WORDS[:60]).reshape(3, 20)
    teams = rng.integers(0, 3, rows)
    texts = [" ".join(rng.choice(words[team], 6)) for team in teams]
    return pd.DataFrame({"text": texts, "team": np.array(["billing", "network", "sales"])[teams]})


@pytest.mark.parametrize("page", [exhaustive(page) if page in LONG else page for page in PAGES])
def test_console_blocks_run_and_print_what_they_show(page: str, live: Live) -> None:
    for block in blocks(page):
        for call in block.calls if block.not_run is None else []:
            command = call.command.replace("127.0.0.1:8080", live.gateway.removeprefix("http://"))
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
            for line in call.shown:
                is_there = any(is_like(line, one) for one in said.splitlines())
                assert is_there, f"{page}:{block.line}: {command} does not print\n{line}\nbut\n{said}"


@pytest.mark.parametrize(("page", "blocks_there"), [("README.md", 1), ("docs/calling.md", 2)])
def test_python_blocks_run(page: str, blocks_there: int, live: Live) -> None:
    """After the console blocks of the page, whose files they use."""
    token = live.run("tokens", "show").stdout.strip()
    environment = {**live.environment, "HEADRACE_TOKEN": token, "HEADRACE_ADDRESS": live.gateway}
    found = re.findall(r"(<!-- not run: [^>]+ -->\n+)?```python\n(.*?)```", text(page), re.DOTALL)
    ran = 0
    for _, code in ((why, code) for why, code in found if not why):
        code = code.replace("127.0.0.1:8080", live.gateway.removeprefix("http://"))
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=live.project.root, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{page}: {code}\n{done.stderr}"
        ran += 1
    assert ran == blocks_there


VARIABLE = (
    r"[0-9a-f]{8}-[0-9a-f-]{27}"  # a request id
    r"|\b(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b|\b\d{8}T[\d.]+|(?<=-)[0-9a-f]{4}\b"  # hashes, names of folders and replicas
    r"|\d{4}-\d\d-\d\d(?:[T ][\d:,.]+(?:Z|\+\d\d:\d\d)?)?"  # times
    r"|(?<=127\.0\.0\.1:)\d+"  # ports
)
"""What differs from machine to machine and from run to run."""
NUMBER = r"(?:(?<!\w)-)?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"
TOKEN = rf"(?P<variable>{VARIABLE})|(?P<number>{NUMBER})|(?P<dots>…)|(?P<space>\s+)|."


def is_like(shown: str, printed: str) -> bool:
    """Whether a line was printed as a page shows it: whole numbers are the same, others nearly; `…` stands for any text."""
    pattern, numbers = "", []
    for match in re.finditer(TOKEN, shown.strip()):
        match match.lastgroup:
            case "dots":
                pattern += ".*"
            case "variable":
                pattern += r"[\w:,.+-]+(?: [\d:,.]+)?"  # a time may have a blank
            case "number":
                pattern += f"({NUMBER})"
                numbers.append(match[0])
            case "space":
                pattern += r"\s+"
            case _:
                pattern += re.escape(match[0])
    found = re.fullmatch(rf"\s*{pattern}\s*", printed)
    return found is not None and all(is_near(*pair) for pair in zip(numbers, found.groups(), strict=True))


def is_near(shown: str, printed: str) -> bool:
    """Counts have to be the same; measured values may differ as those of two machines do."""
    first, second = (float(number.replace(",", "")) for number in (shown, printed))
    if {".", "e"} & {*shown, *printed}:
        return math.isclose(first, second, rel_tol=0.1, abs_tol=0.01)
    return first == second


@pytest.mark.parametrize(
    ("shown", "printed", "is_there"),
    [
        ("digits: data 70491278c3e0….dir, 5,000 rows", "digits: data 70491278c3e0ff.dir, 5,000 rows", True),
        ("digits: data 70491278c3e0….dir, 5,000 rows", "digits: data 70491278c3e0ff.dir, 4,000 rows", False),
        (' "parameters": 22162,', ' "parameters": 48310,', False),
        ("accuracy 0.9812 >= 0.97: passed", "accuracy 0.9795 >= 0.97: passed", True),
        ("accuracy 0.9812 >= 0.97: passed", "accuracy 0.61 >= 0.97: passed", False),
        ("== digits-v1-53b0", "== digits-v1-00ff", True),
        ("2026-11-23T16:58:58+00:00  digits@1  released", "2027-01-02T06:08:00+00:00  digits@1  released", True),
    ],
)
def test_numbers_of_a_page_are_compared(shown: str, printed: str, is_there: bool) -> None:
    assert is_like(shown, printed) == is_there


def test_blocks_that_cannot_run_are_few_and_say_why() -> None:
    left_out = [block for page in PAGES for block in blocks(page) if block.not_run]
    assert len(left_out) == NOT_RUN
    assert all(len(block.not_run or "") > 20 for block in left_out)
    assert sum(len(block.calls) for page in PAGES for block in blocks(page) if not block.not_run) > 40


# -- what can be set


@pytest.mark.parametrize("page", REFERENCES)
def test_the_reference_is_what_the_typed_tree_says(page: str) -> None:
    assert text(page) == reference.PAGES[page](), "make reference"


@pytest.mark.parametrize("section", [Recipe, Settings, *MODELS.values()])
def test_every_field_has_a_description(section: type[BaseModel]) -> None:
    fields = [field for field in reference.documented_fields(section) if field.name != "name"]
    assert fields
    assert not [field.name for field in fields if len(field.text) < 10]


def test_the_reference_shows_nested_fields_with_defaults_and_choices() -> None:
    page = text("docs/reference/recipe.md")
    for shown in (
        "`data.split.time.column`",
        "`gate.beat_champion.margin`** (default `0`)",
        "`model.hidden`** (default `[128, 64]`)",
    ):
        assert shown in page
    assert "`train.optimizer`** (default `adamw`): One of `adamw`, `adam`, `sgd`, `rmsprop`, `muon`." in page


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_lines_are_at_most_120_characters(page: str) -> None:
    """But for what cannot be wrapped: a row of a table, a link."""
    is_whole = re.compile(r"^\||^\S+$|^\s*- \S+$|^!?\[.*\]\(.*\)$")
    long = [line for line in text(page).splitlines() if len(line) > 120 and not is_whole.match(line)]
    assert not long or page == "CHANGELOG.md"


def test_every_exit_code_and_service_is_documented() -> None:
    operations = text("docs/operations.md")
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HeadraceError)]
    assert all(re.search(rf"^\| {code} \| ", operations, re.MULTILINE) for code in {0, *(c.exit_code for c in classes)})
    assert all(f"| `{name}` |" in operations for name in up.NAMES)


# -- what can be called


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = list(commands(cli, "headrace"))


def passages() -> list[str]:
    """Paragraphs, list items and commands of all pages, each as one line."""
    text_of_pages = re.sub(r"\n(?=- |\$ |\||#)", "\n\n", all_text())
    return [" ".join(passage.split()) for passage in re.split(r"\n\s*\n", text_of_pages)]


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_and_option_is_documented(path: str, command: click.Command) -> None:
    lines = [passage for passage in passages() if path in passage]
    assert lines, f"no page names {path}"
    for option in (p for p in command.params if isinstance(p, click.Option) and "--json" not in p.opts):
        longest = max(option.opts, key=len)
        assert any(longest in line for line in lines), f"no passage about {path} names {longest}"


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
    """A hint that names an unknown command does not help."""
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
