"""causaltrace: run an eval once and see which labels reached which scores."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from causaltrace.boundary.kernels import kernel_rule
    from causaltrace.custom import register_rule
    from causaltrace.depends import dependencies
    from causaltrace.report.model import Finding, Notice, Report
    from causaltrace.static.audit import audit
    from causaltrace.static.errors import AuditError
    from causaltrace.static.loop import audit_loop
    from causaltrace.watcher import ViolationError, Watch, declassify, label, label_files, score, watch

__all__ = [
    "AuditError",
    "Finding",
    "Notice",
    "Report",
    "ViolationError",
    "Watch",
    "audit",
    "audit_loop",
    "declassify",
    "dependencies",
    "kernel_rule",
    "label",
    "label_files",
    "register_rule",
    "score",
    "watch",
]

#: Modules of the public names. They are loaded when a name is first used: reading a report needs no torch.
_HOMES = {
    "boundary.kernels": ("kernel_rule",),
    "custom": ("register_rule",),
    "depends": ("dependencies",),
    "report.model": ("Finding", "Notice", "Report"),
    "static.audit": ("audit",),
    "static.errors": ("AuditError",),
    "static.loop": ("audit_loop",),
    "watcher": ("ViolationError", "Watch", "declassify", "label", "label_files", "score", "watch"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"causaltrace.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
