from __future__ import annotations

import base64
import hashlib
import re

import pytest

from causaltrace.report import data, summary
from causaltrace.report.html import LIMITS, to_html
from causaltrace.report.json import from_dict, to_dict
from causaltrace.report.model import Finding, Hop, Moment, Notice, OpUse, Provenance, Report, Run
from causaltrace.site import Site
from tests.report import samples
from tests.report.markup import check

MARKUP = "</script><script>hacked()</script><img src=x onerror=hacked()>"
NASTY = MARKUP + "\"'`&amp;{{7*7}}\u2028\u2029\x00\ud800--><!--"


@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified, samples.seen])
def test_page_is_one_sound_file(make):
    check(to_html([make()]))


def test_verdict_conditions_and_orders():
    page = check(to_html([samples.seen()]))
    (verdict,) = page.all("div", class_="verdict")
    assert "violation" in verdict.text and summary.headline(samples.seen()) in verdict.text
    rows = [[c.text for c in page.elements if c.parent is e] for e in page.all("tr")]
    assert ["C3 score before update", "fail", "CT003 at 127 positions"] in rows
    assert ["scored", "violation", summary.ORDERS["scored"]] in rows
    (run,) = page.all("dl")
    assert "eval.py --steps 8" in run.text and "and changes since" in run.text and "torch 2.13.0" in run.text


def test_findings_are_grouped_as_in_the_terminal_with_their_path():
    report = samples.seen()
    page = check(to_html([report]))
    groups = summary.group(report.violations)
    cards = page.all("details", class_="group")
    assert len(cards) == len(groups)
    for card, group in zip(cards, groups, strict=True):
        assert f"Witness: {summary.witness(group.witness)}" in card.text
        assert "backward" in card.text and "addcdiv_" in card.text and "samples.py:8 in fit" in card.text


def test_every_finding_is_in_the_data_with_its_whole_path():
    report = samples.seen()
    found = check(to_html([report])).data()
    assert len(found["findings"]) == len(report.violations)
    for row, finding in zip(found["findings"], report.violations, strict=True):
        kind, score, label, order, place, path, _ = row
        assert (found["kinds"][kind], score, label) == (finding.kind, finding.target, finding.source)
        assert found["places"][place] == summary.place(finding.site)
        assert found["orders"][order] in summary.failing(finding.orders)
        shape, *details = found["paths"][path]
        steps = [found["steps"][i] for i in found["shapes"][shape]]
        folded = summary.fold(finding.path)
        assert [(s[1], s[4]) for s in steps] == [(s.site.line, s.site.phase) for s in folded]
        assert details == [s.detail for s in folded]


def hostile() -> Report:
    site = Site(NASTY, NASTY, NASTY, 1, NASTY, NASTY)
    notice = Notice(NASTY, NASTY, NASTY, site, 2, 1, True)
    return Report(
        "violation",
        {"stream": "violation", NASTY: NASTY},
        {"C1": NASTY},
        violations=[Finding(NASTY, 1, 2, (NASTY,), site, (Hop(site, NASTY),), NASTY, NASTY)],
        positions=[1],
        labels=3,
        opaque=[notice],
        escapes=[notice],
        notes=[notice, Notice("C1", NASTY)],
        error=NASTY,
        ops=[OpUse(NASTY, 1, NASTY, NASTY)],
        streams=[(NASTY, 3)],
        lags=[-1],
        timeline=[Moment(NASTY, site), Moment("score", site, 1, 1, 1)],
        graph=Provenance([site]),
        run=Run(NASTY, NASTY, NASTY, ((NASTY, NASTY),)),
    )


def test_strings_of_the_report_stay_text():
    text = to_html([hostile()])
    text.encode()
    page = check(text)
    assert [e.attrs.get("type") for e in page.all("script")] == ["application/json", None]
    assert not page.all("img") and "hacked()" in page.all("div", class_="verdict")[0].text
    assert page.data()["steps"][0][0].startswith("</script><script>hacked()")
    assert "\u2028" not in page.all("script", type="application/json")[0].text


def test_policy_allows_our_style_and_script_and_no_other():
    page = check(to_html([samples.seen()]))
    (policy,) = (e.attrs["content"] for e in page.all("meta") if "http-equiv" in e.attrs)
    style, script = page.all("style")[0], page.all("script")[-1]
    for element, name in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(element.text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", style.text + script.text)


def test_a_report_of_an_older_version_has_no_empty_sections():
    keys = ("streams", "lags", "reach", "timeline", "graph", "run")
    old = {k: v for k, v in to_dict(samples.seen()).items() if k not in keys}
    page = check(to_html([from_dict({**old, "schema": "causaltrace-report/1"})]))
    names = {e.text for e in page.all("h2")}
    assert "Map of labels and scores" in names
    assert not any(name.startswith(("Timeline", "Graph")) for name in names)
    (limits,) = page.all("section", **{"aria-labelledby": "w1-limits"})
    assert "Not in this report: distances, timeline, graph." in limits.text
    assert "findings only" in page.all("section", **{"aria-labelledby": "w1-map"})[0].text


def test_what_blocks_the_proof_is_named_with_its_remedy():
    page = check(to_html([samples.unverified()]))
    (section,) = page.all("section", **{"aria-labelledby": "w1-open"})
    assert "mylib::fused_norm has no rule (12 times)" in section.text
    assert "Remedy: register one with causaltrace.register_rule" in section.text


def test_limits_and_scope_are_said():
    (section,) = check(to_html([samples.clean()])).all("section", **{"aria-labelledby": "w1-limits"})
    assert summary.SCOPE in section.text
    assert all(line in section.text for line in LIMITS)


def test_several_watches_share_a_page():
    page = check(to_html([samples.seen(), samples.clean(), samples.unverified()]))
    links = [e.attrs["href"] for e in page.all("a") if e.parent.attrs.get("class") == "switch"]
    assert links == ["#w1", "#w2", "#w3"]
    assert [e.attrs["id"] for e in page.all("article")] == ["w1", "w2", "w3"]


def test_no_report_is_refused():
    with pytest.raises(ValueError, match="no report"):
        to_html([])


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(data, "FINDINGS", 100)
    monkeypatch.setattr(data, "PATHS", 10)
    monkeypatch.setattr(data, "BANDS", 1)
    page = check(to_html([samples.seen()]))
    (section,) = page.all("section", **{"aria-labelledby": "w1-limits"})
    assert "28 of 128 findings are not listed" in section.text
    assert "only the first 10 different paths are shown" in section.text
    assert "the map puts" in section.text and "JSON report is complete" in section.text
    found = page.data()
    assert len(found["findings"]) == 100 and len(found["paths"]) == 10
    assert {row[5] for row in found["findings"]} == {*range(10), -2}


def test_to_html_writes_a_small_file(tmp_path):
    path = tmp_path / "report.html"
    text = samples.seen().to_html(path)
    assert path.read_text(encoding="utf-8") == text == samples.seen().to_html() == to_html([samples.seen()])
    assert path.stat().st_size < 200_000


def test_text_has_enough_contrast_in_both_themes():
    (style,) = check(to_html([samples.clean()])).all("style")
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", style.text))
    for theme in (0, 1):
        colour = {name: both.split(", ")[theme] for name, both in pairs.items()}
        for text in ("ink", "muted", "link", "red", "green", "amber"):
            for paper in ("paper", "panel"):
                assert _contrast(colour[text], colour[paper]) >= 4.5, (theme, text, paper)


def _contrast(a: str, b: str) -> float:
    """WCAG 2's contrast ratio of two colours."""

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)
