"""Data Docs ask no server: Great Expectations' pages are rewritten, and their tables, tabs and parts work in a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from headrace.data.validation.offline_pages import make_offline
from headrace.data.validation.validate import validate
from headrace.project import Project
from headrace.recipe.recipe import parse_recipe

LOADS = re.compile(r"""(?:<script|<link|<img|<iframe)[^>]+https?:|url\(\s*["']?https?:|@import""", re.IGNORECASE)


RECIPE = """
{"name": "toy", "task": "regression", "data": {"source": "t.csv", "target": "y"}, "expect":
 [{"type": "expect_column_values_to_be_between", "column": "age", "min_value": 0, "max_value": 99}],
 "model": {"name": "mlp"}, "train": {}, "serve": {}}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("docs"))
    frame = pd.DataFrame({"age": [20, 30, 40], "y": [1.0, 2.0, 3.0]})
    assert validate(frame, parse_recipe(RECIPE, "recipes/toy.yaml"), project, "first").success
    return project.data_docs


def test_no_page_loads_anything_from_a_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        assert LOADS.findall(text) == [], page
        (script,) = re.findall(r'<script src="([^"]*data_docs\.js)">', text)
        assert (page.parent / script).is_file()
        assert "tutorials" not in text and "newsletter" not in text
    for file in ("data_docs.js", "data_docs.css"):
        assert "http" not in (site / "static" / file).read_text()


def test_a_page_that_is_rewritten_stays_as_it_is_and_a_missing_one_is_passed_over(site: Path) -> None:
    before = {page: page.read_bytes() for page in site.rglob("*.html")}
    make_offline([*before, site / "missing.html"], site)
    assert {page: page.read_bytes() for page in site.rglob("*.html")} == before


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_without_network_shows_the_results(site: Path) -> None:
    shown = in_browser(site / "index.html")
    assert "fa-check-circle" in shown and "clickable-row" in shown  # made by the script
    (page,) = (site / "validations").rglob("*.html")
    assert "Succeeded" in in_browser(page)


def in_browser(page: Path) -> str:
    """Returns the document after its scripts have run, in a browser that reaches no server."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=3000",
    ]
    command = ["chromium", *options, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    body = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return html.unescape(body)
