"""The page in a real Chromium, from a file."""

from __future__ import annotations

import pytest

from causaltrace.report.html import to_html
from causaltrace.report.json import from_json, to_json
from causaltrace.report.model import Finding
from tests.report import samples
from tests.report.browser import CHROMIUM, browser
from tests.report.test_html import hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

RED = """(() => {
  const canvas = document.querySelector("canvas");
  const pen = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
  pen.drawImage(canvas, 0, 0);
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i] > 150 && data[i + 1] < 110 && data[i + 2] < 110) count++;
  return count;
})()"""


@pytest.fixture(scope="module")
def chromium():
    with browser() as page:
        yield page


@pytest.fixture
def open_page(chromium, tmp_path):
    """Open a page of reports; at the end it must have asked for nothing and complained of nothing."""
    file = tmp_path / "report.html"

    def open_(*reports, width=1280, dark=False):
        file.write_text(to_html(reports), encoding="utf-8")
        chromium.size(width, 900, dark)
        chromium.complaints.clear()
        chromium.requests.clear()
        chromium.open(file)
        return chromium

    yield open_
    assert chromium.complaints == []
    assert set(chromium.requests) == {file.as_uri()}


def text(page, selector):
    return page.run(f"document.querySelector({selector!r}).innerText")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("make", [samples.clean, samples.violation, samples.unverified, samples.seen])
def test_opens_at_every_width_in_both_themes(open_page, make, width, dark):
    page = open_page(make(), width=width, dark=dark)
    assert page.run("document.documentElement.scrollWidth") <= width
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(21, 24, 27)" if dark else "rgb(255, 255, 255)")


def test_path_and_map_are_there_to_see(open_page):
    page = open_page(samples.seen())
    path = text(page, ".group .path")
    assert path.startswith("label x_128") and path.endswith("score of 1")
    assert "tests/report/samples.py:7 in fit" in path and "backward nll_loss_backward → mm" in path
    box = page.run(
        "(b => [b.width, b.height])(document.querySelector('.group .path').getBoundingClientRect())"
    )
    assert min(box) > 100
    page.frame()
    assert page.run(RED) > 5_000


def test_map_of_a_clean_eval_has_nothing_red(open_page):
    report = samples.seen()
    report.violations, report.lags, report.reach = [], [1] * 256, None
    page = open_page(report)
    page.frame()
    assert page.run(RED) == 0


def test_one_finding_in_60000_scores_is_seen(open_page):
    report = samples.violation(0)
    report.violations = report.violations[-2:-1]
    report.positions, report.labels = list(range(1, 60_001)), 60_001
    report.lags = [1] * 60_000
    page = open_page(report)
    page.frame()
    assert page.run(RED) >= 9


def test_map_zooms_by_keys_wheel_and_buttons_and_says_what_is_where(open_page):
    page = open_page(samples.seen())
    page.frame()
    before = page.run(RED)
    page.run("""document.querySelector(".map").dispatchEvent(new KeyboardEvent("keydown", {key: "+"}))""")
    page.frame()
    near = page.run(RED)
    assert near != before
    page.run("document.querySelector('[data-zoom=fit]').click()")
    page.frame()
    assert page.run(RED) == before
    page.run("""(() => {
      const map = document.querySelector(".map"), box = map.getBoundingClientRect();
      map.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 200, clientY: box.top + 60}));
    })()""")
    assert "latest label x_128 (" in text(page, ".readout") and "a violation" in text(page, ".readout")


def test_positions_are_named_in_their_streams(open_page):
    report = samples.violation(0)
    named = {"stream": "b", "source_stream": "b"}
    report.violations = [Finding("CT001", 2, 5, samples.BOTH, samples.SCORE, samples.PATH, **named)]
    report.streams, report.labels = [("labels", 10), ("b", 10)], 20
    page = open_page(report)
    page.run("""(() => {
      const map = document.querySelector(".map"), box = map.getBoundingClientRect();
      const y = box.top + 12 + (box.height - 54) * 12.5 / 20;
      map.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + 200, clientY: y}));
    })()""")
    assert text(page, ".readout") == "score b:2: latest label b:x_5 (3 ahead, a violation)"
    assert "label b:x_5 → score of b:2 (3 ahead)" in text(page, ".detail")


def test_every_finding_is_reached_by_pages_and_by_search(open_page):
    page = open_page(samples.violation(10_000))
    assert text(page, ".count") == "1 to 100 of 10,004"
    seen = set()
    for _ in range(101):
        seen |= set(
            page.run("[...document.querySelectorAll('.list tbody tr')].map(r => r.innerText).slice(0, 101)")
        )
        page.run("document.querySelector('.next').click()")
    assert len(seen) == 10_004
    assert page.run("document.querySelector('.next').disabled")
    for query, count in [("60-80", 21), ("37", 1), ("ct002", 2), ("addcdiv_", 1), ("samples.py:12", 1)]:
        search(page, query)
        assert text(page, ".count").endswith(f" of {count}"), query
    search(page, "no such thing")
    assert text(page, ".count") == "none found"


def search(page, query):
    page.run(f"""(() => {{
      const input = document.querySelector("input[type=search]");
      input.value = {query!r};
      input.dispatchEvent(new Event("input"));
    }})()""")


def test_a_chosen_finding_shows_its_own_path(open_page):
    page = open_page(samples.seen())
    page.run("document.querySelectorAll('.list tbody .pick')[4].click()")
    detail = text(page, ".detail")
    assert "label x_128 → score of 5 (123 ahead); fails in both orders" in detail
    assert "sum [5]" in detail and detail.endswith("score of 5")
    assert page.run("document.querySelectorAll('.list [aria-current]').length") == 1


def test_theme_button_turns_the_page(open_page):
    page = open_page(samples.seen())
    assert text(page, ".theme") == "Dark theme"
    page.run("document.querySelector('.theme').click()")
    assert text(page, ".theme") == "Light theme"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"


def test_switch_shows_one_watch_at_a_time(open_page):
    page = open_page(samples.seen(), samples.clean())
    shown = "[...document.querySelectorAll('.watch')].filter(w => !w.hidden).map(w => w.id).join()"
    assert page.run(shown) == "w1"
    page.run("(async () => { location.hash = '#w2'; await new Promise(done => setTimeout(done, 50)); })()")
    assert page.run(shown) == "w2"
    assert page.run("document.querySelector('.switch [aria-current]').hash") == "#w2"


IN_SIGHT = """(() => {
  const graph = document.querySelector(".watch:not([hidden]) .graph"), frame = graph.getBoundingClientRect();
  return [...graph.querySelectorAll(".node")].filter((node) => {
    const box = node.getBoundingClientRect();
    return box.left >= frame.left && box.right <= frame.right && box.top >= frame.top;
  }).length;
})()"""


@pytest.mark.parametrize("width", [390, 1280])
def test_graph_of_a_watch_that_was_hidden_is_in_sight(open_page, width):
    page = open_page(samples.clean(), samples.seen(), width=width)
    page.run("(async () => { location.hash = '#w2'; await new Promise(done => setTimeout(done, 50)); })()")
    page.frame()
    assert page.run(IN_SIGHT) == 7


def test_graph_is_in_sight_and_its_findings_are_red(open_page):
    page = open_page(samples.seen())
    page.frame()
    assert page.run(IN_SIGHT) == 7
    assert page.run("document.querySelectorAll('.link.bad').length") == 5
    assert page.run("document.querySelectorAll('.node ellipse').length") == 1  # the update's state


def test_strings_of_the_report_are_never_run(open_page):
    page = open_page(from_json(to_json(hostile())))
    assert page.run("typeof hacked") == "undefined"
    assert "hacked()" in text(page, ".verdict")
    assert "hacked()" in text(page, ".detail")
    assert page.run("document.images.length + document.scripts.length") == 2
