"""Hand-made reports for the tests of displays and of the command line."""

from __future__ import annotations

from causaltrace.report.model import Edge, Finding, Hop, Moment, Notice, OpUse, Provenance, Report, Run
from causaltrace.site import Site

HERE = __file__
BOTH = ("stream", "scored")


def site(phase: str, op: str, line: int, function: str = "evaluate", module: str = "") -> Site:
    return Site(phase, op, HERE, line, function, module)


SCORE = site("score", "sum", 10)
PATH = (
    Hop(site("input", "slice", 5), "[99]"),
    Hop(site("forward", "log_softmax", 6, "fit", "head")),
    Hop(site("forward", "nll_loss", 6, "fit"), "[36]"),
    Hop(site("backward", "nll_loss_backward", 7, "fit")),
    Hop(site("backward", "mm", 7, "fit", "head")),
    Hop(site("update", "addcdiv_", 8, "fit"), "[0, 0, 3]"),
    Hop(site("forward", "add", 9, module="model.blocks.0")),
    Hop(SCORE, "[37]"),
)


def clean() -> Report:
    return Report(
        status="clean",
        orders={"stream": "clean", "scored": "clean"},
        conditions={"C1": "pass", "C2": "not covered", "C3": "pass", "C4": "pass"},
        positions=list(range(1, 2049)),
        labels=2049,
    )


def violation(n: int = 240) -> Report:
    findings = [Finding("CT003", t, 255, BOTH, SCORE, PATH if t == 37 else ()) for t in range(1, n + 1)]
    findings += [Finding("CT002", t, t, BOTH, SCORE) for t in (7, 9)]
    findings += [Finding("CT001", 20, 41, ("stream",), site("score", "item", 12))]
    findings += [Finding("CT006", 50, 50, BOTH, site("score", "item", 13))]
    return Report(
        status="violation",
        orders={"stream": "violation", "scored": "violation"},
        conditions={"C1": "fail", "C2": "not covered", "C3": "fail", "C4": "fail"},
        violations=findings,
        positions=list(range(1, 256)),
        labels=256,
        notes=[Notice("note", "1,984 losses were computed and not scored", site=SCORE, count=31)],
    )


def unverified() -> Report:
    return Report(
        status="unverified",
        orders={"stream": "unverified", "scored": "unverified"},
        conditions={"C1": "not covered", "C2": "not covered", "C3": "not covered", "C4": "pass"},
        positions=[1, 2, 3],
        labels=4,
        opaque=[
            Notice(
                "CT090",
                "mylib::fused_norm has no rule",
                remedy="register one with causaltrace.register_rule",
                site=site("forward", "mylib::fused_norm", 6, module="model.norm"),
                count=12,
                label=3,
                blocking=True,
            )
        ],
        escapes=[
            Notice("CT091", "a labelled value was read by .item()", site=site("host", "item", 11), label=2)
        ],
    )


def seen() -> Report:
    """Everything a watch can tell: 16 windows of 16, half of them scored after an update on all of them."""
    size, half = 257, 129
    findings, lags, reach = [], [], []
    for t in range(1, size):
        late = t < half
        lags.append(t - (half - 1) if late else 1)
        reach.append([0, half] if late else [0, t])
        if late:
            source = half - 1
            path = tuple(Hop(h.site, f"[{t}]" if h.site is SCORE else h.detail) for h in PATH)
            orders = BOTH if t % 2 else ("stream",)
            findings.append(Finding("CT003" if t < half - 1 else "CT002", t, source, orders, SCORE, path))
    nodes = [*(hop.site for hop in PATH), site("host", "item", 11)]
    edges = [Edge(i, i + 1, 16, (0, half - 1), (1 - half, 1), bad=True) for i in range(len(PATH) - 1)]
    edges += [Edge(0, 6, 240, (0, size - 1), (1, 16)), Edge(5, 1, 8), Edge(7, 8, 1, (0, size - 1))]
    moments = [Moment("update", PATH[5].site, 8, label=half - 1)]
    for i in range(16):
        first, last = 16 * i + 1, 16 * i + 16
        wrong = 16 if last < half else 0
        moments.append(Moment("score", SCORE, 1, first, last, max(last, half - 1), last, wrong))
        if i >= 8:
            moments.append(Moment("update", PATH[5].site, 1, label=last, scored=last))
    moments.append(Moment("escape", nodes[-1], 1, label=size - 1, scored=size - 1))
    report = violation(0)
    report.violations, report.positions = findings, list(range(1, size))
    report.labels, report.streams = size, [("labels", size)]
    report.lags, report.reach, report.timeline = lags, reach, moments
    report.graph = Provenance(nodes, edges)
    report.ops = [OpUse("aten.mm.default", 96, "rule"), OpUse("mylib::f", 2, "conservative")]
    report.escapes = unverified().escapes
    versions = (("causaltrace", "0.1.0"), ("torch", "2.13.0"), ("Python", "3.12.1"))
    report.run = Run("eval.py --steps 8", "1c040c2+", "2026-01-02T03:04:05+00:00", versions)
    return report
