from __future__ import annotations

import re

import pytest

from causaltrace.report import summary
from causaltrace.report.model import Finding
from tests.report import samples
from tests.report.markup import Page
from tests.report.test_html import hostile


@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified, samples.seen])
def test_it_is_one_element_without_script_and_styles_only_itself(make):
    page = Page(make()._repr_html_())
    assert [e.tag for e in page.elements if e.parent is None] == ["div"]
    assert not page.all("script") and not any("id" in e.attrs for e in page.elements)
    (style,) = page.all("style")
    selectors = re.findall(r"^([^{}\n]+) \{", style.text, re.MULTILINE)
    assert selectors and all(s.startswith(".causaltrace-report") for s in selectors)


def test_it_says_the_verdict_and_shows_the_worst_path():
    (all_,) = (e for e in Page(samples.violation()._repr_html_()).elements if e.parent is None)
    assert summary.headline(samples.violation()) in all_.text
    assert "label x_255 → score of 37" in all_.text and "samples.py:7 in fit" in all_.text
    assert summary.SCOPE in all_.text


def test_it_is_short_however_much_was_found():
    report = samples.violation(10_000)
    lines = [samples.site("score", "sum", i) for i in range(50)]
    report.violations += [Finding("CT001", i, i + 1, samples.BOTH, site) for i, site in enumerate(lines)]
    text = report._repr_html_()
    assert len(text) < 20_000 and "other sites" in text


def test_strings_of_the_report_stay_text():
    page = Page(hostile()._repr_html_())
    assert not page.all("script") and not page.all("img")
    assert "hacked()" in page.elements[0].text
