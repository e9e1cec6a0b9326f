"""Hand-made reports for the tests of displays and of the command line."""

from __future__ import annotations

from causaltrace.report.model import Finding, Hop, Notice, Report
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
