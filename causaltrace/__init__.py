"""causaltrace: run an eval once and see which labels reached which scores."""

from causaltrace.custom import register_rule
from causaltrace.depends import dependencies
from causaltrace.report.model import Finding, Notice, Report
from causaltrace.watch import ViolationError, Watch, label, score, watch

__all__ = [
    "Finding",
    "Notice",
    "Report",
    "ViolationError",
    "Watch",
    "dependencies",
    "label",
    "register_rule",
    "score",
    "watch",
]
