"""``python -m benchmarks.page``: how large the page of a long eval is, and how soon Chromium shows it."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from pathlib import Path

from causaltrace.report.model import Edge, Finding, Hop, Moment, OpUse, Provenance, Report
from causaltrace.site import Site
from tests.report.browser import browser

BOTH = ("stream", "scored")
LINES = [
    *[("forward", f"aten.op{i}.default", i + 1) for i in range(60)],
    *[("backward", f"aten.op{i}_backward.default", i + 1) for i in range(60)],
    *[("update", "aten.addcdiv_.default", i + 70) for i in range(4)],
    ("score", "aten.sum.default", 90),
]


def long_report(scores: int, findings: int, jumpy: bool = False) -> Report:
    """An eval of ``scores`` positions with findings that each have a path of their own; ``jumpy``: no two
    neighbouring scores have their latest label at one distance."""
    rng = random.Random(0)
    sites = [Site(phase, op, __file__, line, "evaluate", "model") for phase, op, line in LINES]
    last = sites[-1]
    every = max(scores // max(findings, 1), 1)
    found = []
    lags: list[int | None] = [rng.randrange(1, t + 1) if jumpy else 1 for t in range(1, scores + 1)]
    for i in range(findings):
        target, ahead = i * every + 1, rng.randrange(1, 2000)
        lags[target - 1] = -ahead
        path = tuple(
            Hop(site, f"[{rng.randrange(64)}, {target}]")
            for site in (*sites[5:10], *sites[65:70], sites[121], last)
        )
        found.append(Finding("CT003", target, target + ahead, BOTH, last, path))
    moments = []
    for first in range(1, scores + 1, 32):
        end = min(first + 31, scores)
        moments.append(Moment("score", last, 1, first, end, end, end))
        moments.append(Moment("update", sites[121], 1, label=end, scored=end))
    edges = [Edge(i, i + 1, scores, bad=i % 9 == 0) for i in range(len(sites) - 1)]
    edges += [Edge(rng.randrange(60), rng.randrange(60, 120), 7) for _ in range(100)]
    return Report(
        "violation" if found else "clean",
        dict.fromkeys(BOTH, "violation" if found else "clean"),
        {"C1": "fail" if found else "pass", "C2": "not covered", "C3": "pass", "C4": "pass"},
        violations=found,
        positions=range(1, scores + 1),
        labels=scores + 2001,
        ops=[OpUse(site.op, 1000, "rule") for site in sites],
        streams=[("labels", scores + 2001)],
        lags=lags,
        timeline=moments,
        graph=Provenance(sites, edges),
    )


def main(rounds: int = 5) -> None:
    cases = {
        "60,000 scores, clean": long_report(60_000, 0),
        "60,000 scores, 10,000 findings": long_report(60_000, 10_000),
        "60,000 scores at all distances, 10,000 findings": long_report(60_000, 10_000, jumpy=True),
        "300,000 scores, 100,000 findings": long_report(300_000, 100_000),
    }
    with tempfile.TemporaryDirectory() as folder, browser() as page:
        file = Path(folder) / "page.html"
        for name, report in cases.items():
            begin = time.perf_counter()
            report.to_html(file)
            written = time.perf_counter() - begin
            opened = [page.open(file) for _ in range(rounds)]
            drawn = page.run(_REDRAW)
            print(
                f"{name:<48} {file.stat().st_size / 1e6:5.2f} MB  written in {written:5.2f} s  "
                f"open {statistics.median(opened):5.0f} ms ({min(opened):.0f} to {max(opened):.0f})  "
                f"zoom {drawn:4.0f} ms"
            )
        print(json.dumps(page.complaints))


#: The mean time of a zoom of the map, drawn.
_REDRAW = """(async () => {
  const button = document.querySelector("[data-zoom=in]");
  const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const start = performance.now();
  for (let i = 0; i < 10; i++) { button.click(); await frame(); }
  return (performance.now() - start) / 10;
})()"""


if __name__ == "__main__":
    main()
