from __future__ import annotations

import sys
from xml.etree import ElementTree

import pytest

from causaltrace.report.drawing import LIGHT, Drawing, Rect, Text, to_svg
from causaltrace.report.plots import KINDS, lag_counts
from tests.report import samples

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("make", [samples.seen, samples.violation])
def test_every_kind_is_drawn_or_refused_with_the_reason(kind, make, tmp_path):
    path = tmp_path / "plot.svg"
    report = make()
    if not report.lags and kind != "influence":
        with pytest.raises(ValueError, match="run the eval again"):
            report.plot(path, kind)
        return
    report.plot(path, kind)
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg" and len(root) > 5
    assert {r.get("class", "")[2:] for r in root.iter(f"{SVG}rect")} <= {*LIGHT, ""}
    width, height = float(root.get("width")), float(root.get("height"))
    for shape in root.iter(f"{SVG}rect"):
        x, y = float(shape.get("x", 0)), float(shape.get("y", 0))
        assert -1 <= x <= x + float(shape.get("width")) <= width + 1
        assert -1 <= y <= y + float(shape.get("height")) <= height + 1


def test_violations_are_red_and_above_the_diagonal(tmp_path):
    report = samples.seen()
    report.reach = None
    report.plot(tmp_path / "map.svg")
    root = ElementTree.parse(tmp_path / "map.svg").getroot()
    red = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "d-bad" and float(r.get("height")) > 20]
    (band,) = red
    right = float(band.get("x")) + float(band.get("width"))
    assert right > float(band.get("y")) + float(band.get("height"))


def test_histogram_counts_every_score_once():
    report = samples.seen()
    report.lags = [None, 5, 7, 0, -1, -300, 1, 1, 4]
    assert lag_counts(report) == [
        (-256, "256-511 ahead", 1),
        (-1, "1 ahead", 1),
        (0, "its own label", 1),
        (1, "1 before", 2),
        (4, "4-7 before", 3),
        (None, "no label", 1),
    ]


@pytest.mark.parametrize("kind", list(KINDS))
def test_png_shows_the_same(kind, tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "plot.png"
    samples.seen().plot(path, kind)
    drawing = KINDS[kind](samples.seen())
    with image.open(path) as painted:
        assert painted.size == (drawing.width * 2, drawing.height * 2)
        colours = {colour for _, colour in painted.getcolors(1 << 20)}
    assert tuple(bytes.fromhex(LIGHT["bad"][1:])) in colours


def test_png_without_pillow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'causaltrace\[plots\]'"):
        samples.seen().plot(tmp_path / "plot.png")
    samples.seen().plot(tmp_path / "plot.svg")


def test_other_kinds_and_endings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="kind must be one of 'influence', 'lags'"):
        samples.seen().plot(tmp_path / "plot.svg", "pie")
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png, not 'plot.pdf'"):
        samples.seen().plot(tmp_path / "plot.pdf")


def test_text_is_escaped():
    drawing = Drawing(10, 10, '<&">', "", [Text(0, 0, "</svg><script>")])
    root = ElementTree.fromstring(to_svg(drawing))
    assert [e.text for e in root.iter(f"{SVG}text")] == ["</svg><script>"]
    assert root.get("aria-label") == '<&">. '


def test_inside_a_page_it_brings_no_colours():
    assert "<style" not in to_svg(Drawing(9, 9, "t", "", [Rect(0, 0, 1, 1, "bad")]), alone=False)
