"""The report as a comment on a pull request: at most 40 lines of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from causaltrace.report import summary
from causaltrace.report.model import KINDS, Report

_STEPS = 6
_VERDICT = {"pass": "PASS", "fail": "FAIL", "not covered": "NOT COVERED"}


def to_markdown(report: Report) -> str:
    """Conditions, both orders, one witness with its file:line chain, and the limits."""
    groups = summary.group(report.violations)
    lines = [
        f"**causaltrace: {report.status}.** {summary.headline(report)}",
        "",
        "| condition | verdict | why |",
        "|---|---|---|",
        *(
            f"| {c} {name} | {_VERDICT.get(verdict, verdict)} | {_cell(why)} |"
            for c, name, verdict, why in summary.conditions(report, groups)
        ),
        "",
        "; ".join(f"{order} order: **{status}**" for order, status in report.orders.items()),
        *_worst(groups),
        *_blocking(report),
        "",
        f"Limits: {summary.SCOPE}",
    ]
    if report.error is not None:
        lines.append(f"The watched block raised `{_one_line(report.error)}`; this report is partial.")
    return "\n".join(lines) + "\n"


def _worst(groups: Sequence[summary.Group]) -> Iterator[str]:
    if not groups or groups[0].witness is None:
        return
    worst = groups[0]
    finding = groups[0].witness
    yield ""
    yield (
        f"**{worst.kind}** {KINDS.get(worst.kind, '')}: "
        f"{summary.plural(len(worst.targets), 'scored position')} ({summary.ranges(worst.targets)}), "
        f"scored at `{summary.place(worst.site)}`."
    )
    yield f"Witness: {summary.witness(finding)}."
    if finding.path:
        yield "```"
        head, left_out, tail = summary.abridge(summary.fold(finding.path), _STEPS)
        yield from (_step(step) for step in head)
        if left_out:
            yield f"... {summary.plural(left_out, 'step')} left out"
        yield from (_step(step) for step in tail)
        yield "```"
    others = [f"{g.kind} at `{summary.place(g.site)}` ({len(g.targets):,})" for g in groups[1:4]]
    if others:
        more = f" and {len(groups) - 4:,} more sites" if len(groups) > 4 else ""
        yield f"Also: {', '.join(others)}{more}."


def _step(step: summary.Step) -> str:
    where = summary.place(step.site) + (f" in {step.site.function}" if step.site.function else "")
    line = f"{where}  [{step.site.phase}: {summary.arrows(step.ops, 3)}]"
    source = step.site.source.replace("```", "'''")
    return f"{line}  {source}" if source else line


def _blocking(report: Report) -> Iterator[str]:
    blocking = [n for n in summary.notices(report) if n.blocking]
    if not blocking:
        return
    yield ""
    for notice in blocking[:4]:
        where = f" at `{summary.place(notice.site)}`" if notice.site else ""
        times = f" ({notice.count:,} times)" if notice.count > 1 else ""
        remedy = f" Remedy: {_one_line(notice.remedy)}" if notice.remedy else ""
        yield f"- Not proved: {_one_line(notice.message)}{where}{times}.{remedy}"
    if len(blocking) > 4:
        yield f"- and {len(blocking) - 4:,} more"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")
