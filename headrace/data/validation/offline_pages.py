"""Data Docs without the internet: Great Expectations' pages load their styles, scripts and logo from servers of others, and
stay unformatted, with empty tables, where these cannot be reached. Two files beside the pages take their place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from headrace.files import write_text

FILES = ("data_docs.css", "data_docs.js")
LOADED = re.compile(
    r"""<script\b[^>]*\bsrc=["']https?:[^>]*>\s*</script>|<link\b[^>]*\bhref=["']https?:[^>]*>""", re.IGNORECASE
)
PICTURE = re.compile(r"""<img\b[^>]*\bsrc=["']https?:[^>]*>""", re.IGNORECASE)
STYLE_PICTURE = re.compile(r"""url\(\s*["']?https?:[^)]*\)""", re.IGNORECASE)
FOOTER = re.compile(r"<footer>.*?</footer>", re.IGNORECASE | re.DOTALL)
"""An advertisement."""


def make_offline(pages: Iterable[Path], site: Path) -> None:
    """Rewrites pages of Data Docs so that a browser asks no server for them. A page that is rewritten already stays as it is.

    Args:
        site: the folder of the site, which gets the two files.
    """
    for name in FILES:
        text = resources.files("headrace.data.validation").joinpath(name).read_text(encoding="utf-8")
        if _read(site / "static" / name) != text:
            (site / "static").mkdir(parents=True, exist_ok=True)
            write_text(site / "static" / name, text)
    for page in pages:
        before = _read(page)
        if before and (after := _offline(before, os.path.relpath(site / "static", page.parent))) != before:
            write_text(page, after)


def _offline(text: str, static: str) -> str:
    if "data_docs.js" not in text:
        head = f'<head>\n    <link rel="stylesheet" href="{static}/{FILES[0]}"><script src="{static}/{FILES[1]}"></script>'
        text = text.replace("<head>", head, 1)
    text = PICTURE.sub("<strong>Data Docs</strong>", LOADED.sub("", text))
    return FOOTER.sub("", STYLE_PICTURE.sub("none", text))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
