from __future__ import annotations

import pytest

from causaltrace.report.model import Report
from examples import demo
from examples.common import ModelConfig, build_model, byte_tokens, load_text


@pytest.fixture(scope="session")
def example_reports() -> dict[str, Report]:
    """The report of every example, at a small size and untrained."""
    window, stride, windows = 16, 4, 5
    tokens = byte_tokens(load_text())[: 1 + window + windows * stride].clone()
    model = build_model(ModelConfig(context=window, layers=1, heads=2, dim=8), 0)
    runs = demo.examples(window, stride, windows)
    return {run.name: demo.judge(run, model, tokens).report for run in runs}
