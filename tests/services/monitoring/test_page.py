"""The page of a report, and its lines in a terminal."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from headrace.project import Project
from headrace.services.monitoring.page import page_of, write_report
from headrace.services.monitoring.report import last_report
from tests.services.monitoring.reports import report, series


def test_the_page_has_the_worst_feature_first_and_its_pictures_are_valid() -> None:
    page = page_of(report(), series())
    names = re.findall(r"<h3>([^<]+)</h3>", page)
    assert names == ["Refused requests", "distance", "carrier", "hour"]
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 1 + 2 * 3, "requests, and for each feature its distribution and its hours"
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "http://" not in page and "https://" not in page and "<script" not in page, "it needs no network"


def test_the_page_and_the_terminal_say_the_same() -> None:
    found = report()
    page, lines = page_of(found, series()), "\n".join(found.lines())
    for said in (
        "accuracy 0.81 (0.74 to 0.87) on the newest 200 of 900 true answers, 0.93 at the release: has fallen",
        "training again would be worth it: accuracy: the error 0.19",
        "estimated accuracy 0.9 (0.87 to 0.93), if its probabilities are right",
        "auc not estimated: all rows are of one class",
        "accuracy of 180 rows with true answers: estimated 0.9 (0.86 to 0.94), really 0.81: outside",
        "12,000 requests in the last day, 10.0% refused: against the contract 1,200",
        "72 values that no training row had",
        "2 rows have several different true answers: the latest one counts",
    ):
        assert said in lines and said in page, said


def test_names_are_text_and_no_markup() -> None:
    drift = [report().drift[0].model_copy(update={"name": "<b>&"})]
    page = page_of(report(model="<i>", drift=drift, notes=["<script>"]), [])
    assert "&lt;b&gt;&amp;" in page and "<script" not in page and "<i>@" not in page


def test_a_report_without_anything_is_a_page_too() -> None:
    nothing = ("drift", "estimates", "beside_truths", "quality", "worse", "requests", "notes")
    page = page_of(report(alarm=None, **{name: [] for name in nothing}), [])
    assert "Not compared with training" in page and "<svg" not in page


def test_a_report_of_an_earlier_version_of_headrace_or_a_damaged_one_is_none(project: Project) -> None:
    path = write_report(report(), series(), project)
    assert last_report("trips", project) == report()
    stored = path.with_name("report.json")
    for content in (stored.read_text().replace('"schema_version": 2', '"schema_version": 1'), "{", '{"schema_version": 2}'):
        stored.write_text(content)
        assert last_report("trips", project) is None
