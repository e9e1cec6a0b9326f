"""The report as a comment on a pull request: at most 40 lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causaltrace.report import summary
from causaltrace.report.escape import block, code, plain
from causaltrace.report.model import KINDS, Report, Run

_STEPS = 6
_VERDICT = {"pass": "PASS", "fail": "FAIL", "not covered": "NOT COVERED"}


def to_markdown(report: Report) -> str:
    """Conditions, both orders, one witness with its file:line chain, and the limits."""
    groups = summary.group(report.violations)
    lines = [
        f"**causaltrace: {report.status}.** {summary.headline(report)} {summary.judged(report)}".rstrip(),
        *_about(report.run),
        "",
        "| condition | verdict | why |",
        "|---|---|---|",
        *(
            f"| {c} {name} | {_VERDICT.get(verdict, plain(verdict))} | {plain(why)} |"
            for c, name, verdict, why in summary.conditions(report, groups)
        ),
        "",
        "; ".join(f"{plain(order)} order: **{plain(status)}**" for order, status in report.orders.items()),
        *_worst(groups),
        *_blocking(report),
        "",
        *_declassified(report),
        f"Limits: {summary.scope(report)}",
    ]
    if report.error is not None:
        lines.append(f"The watched block raised {code(report.error)}; this report is partial.")
    return "\n".join(lines) + "\n"


def reports_to_markdown(reports: Sequence[Report]) -> str:
    """The comment for one watch or several."""
    if len(reports) == 1:
        return to_markdown(reports[0])
    return "\n".join(f"### Watch {i} of {len(reports)}\n\n{to_markdown(r)}" for i, r in enumerate(reports, 1))


def _about(run: Run) -> Iterator[str]:
    facts = [f"revision {code(run.revision)}"] if run.revision else []
    facts += [code(run.command)] if run.command else []
    facts += [plain(f"{name} {version}") for name, version in run.versions]
    facts += [plain(run.time)] if run.time else []
    if facts:
        yield ""
        yield ", ".join(facts)


def _worst(groups: Sequence[summary.Group]) -> Iterator[str]:
    if not groups or groups[0].witness is None:
        return
    worst = groups[0]
    finding = groups[0].witness
    yield ""
    yield (
        f"**{plain(worst.kind)}** {KINDS.get(worst.kind, '')}: "
        f"{summary.plural(len(worst.targets), 'scored position')} ({summary.ranges(worst.targets)}), "
        f"scored at {code(summary.place(worst.site))}."
    )
    yield f"Witness: {plain(summary.witness(finding))}."
    if finding.path:
        head, left_out, tail = summary.abridge(summary.fold(finding.path), _STEPS)
        steps = [_step(step) for step in head]
        if left_out:
            steps.append(f"... {summary.plural(left_out, 'step')} left out")
        yield from block([*steps, *(_step(step) for step in tail)])
    others = [f"{plain(g.kind)} at {code(summary.place(g.site))} ({len(g.targets):,})" for g in groups[1:4]]
    if others:
        more = f" and {len(groups) - 4:,} more sites" if len(groups) > 4 else ""
        yield f"Also: {', '.join(others)}{more}."


def _step(step: summary.Step) -> str:
    where = summary.place(step.site) + (f" in {step.site.function}" if step.site.function else "")
    line = f"{where}  [{step.site.phase}: {summary.arrows(step.ops, 3)}]"
    return f"{line}  {step.site.source}" if step.site.source else line


def _blocking(report: Report) -> Iterator[str]:
    blocking = [n for n in summary.notices(report) if n.blocking]
    if not blocking:
        return
    yield ""
    for notice in blocking[:4]:
        where = f" at {code(summary.place(notice.site))}" if notice.site else ""
        times = f" ({notice.count:,} times)" if notice.count > 1 else ""
        remedy = f" Remedy: {plain(notice.remedy)}" if notice.remedy else ""
        yield f"- Not proved: {plain(notice.message)}{where}{times}.{remedy}"
    if len(blocking) > 4:
        yield f"- and {len(blocking) - 4:,} more"


def _declassified(report: Report) -> Iterator[str]:
    """What the verdict takes the program's word for, on one line."""
    taken = [n for n in report.notes if n.kind == "CT098"]
    if taken:
        named = [f"{plain(n.message)} ({code(summary.place(n.site))}, {n.count:,} times)" for n in taken[:4]]
        more = f"; and {len(taken) - 4:,} more" if len(taken) > 4 else ""
        yield f"- Taken on trust: {'; '.join(named)}{more}."
