from __future__ import annotations

import io

from rich.console import Console

from causaltrace.report import operations
from causaltrace.report.model import OpUse, Report
from tests.report import samples


def text(report: Report) -> str:
    buffer = io.StringIO()
    operations.render(report, Console(file=buffer, width=90, color_system=None))
    return buffer.getvalue()


def test_the_table_names_sites_and_remedies() -> None:
    report = samples.unverified()
    report.ops = [
        OpUse("mylib.fused_norm.default", 12, "conservative"),
        OpUse("mylib.rope.default", 3, "registered", "my_rules.py:7"),
        OpUse("aten.add_.Tensor", 1234, "derived", "add, in place"),
        OpUse("aten.mm.default", 40, "rule"),
    ]
    lines = [line.rstrip() for line in text(report).splitlines()]
    assert lines[:2] == [
        "causaltrace: UNVERIFIED",
        "4 operations, 1,289 calls: 1 conservative, 1 registered, 1 derived, 1 rule.",
    ]
    assert "   12  mylib.fused_norm  conservative  all inputs may reach all outputs" in lines
    assert "    3  mylib.rope        registered    my_rules.py:7" in lines
    assert "1,234  add_.Tensor       derived       add, in place" in lines
    assert any("samples.py:6" in line for line in lines)
    assert any("remedy: register one with causaltrace.register_rule" in line for line in lines)


def test_a_conservative_operation_that_no_label_reached() -> None:
    report = samples.clean()
    report.ops = [OpUse("mylib.init.default", 1, "conservative")]
    assert "No label reached a conservative operation." in text(report)
    report.ops = [OpUse("aten.mm.default", 1, "rule")]
    assert "onservative" not in text(report)
