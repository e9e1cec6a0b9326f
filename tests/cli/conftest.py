"""A stand-in for the engine, so that the command line is tested by itself."""

from __future__ import annotations

import pytest

import causaltrace
from causaltrace.cli import watching
from tests.report import samples


class Watch:
    """Judges nothing: its report is the sample that ``verdict`` names, or a partial one after an error."""

    open: Watch | None = None

    def __init__(self, verdict: str = "clean") -> None:
        self.verdict = verdict
        self.report = None

    def __enter__(self):
        if Watch.open is not None:
            raise RuntimeError("watches cannot be nested")
        Watch.open = self
        return self

    def __exit__(self, kind, error, tb) -> None:
        Watch.open = None
        self.report = getattr(samples, self.verdict)()
        if error is not None:
            self.report.error = f"{kind.__name__}: {error}"
        watching.finished.append(self.report)

    def follow(self, tell) -> None:
        self.tell = tell

    def raise_if_violation(self) -> None:
        if self.report.status == "violation":
            raise causaltrace.ViolationError("violation")


def label(t):
    if Watch.open is not None and t == "bad":
        Watch.open.verdict = "violation"
    return t


@pytest.fixture
def engine(monkeypatch):
    monkeypatch.setattr(Watch, "open", None)
    monkeypatch.setattr(watching, "finished", [])
    monkeypatch.setattr(watching, "current", lambda: Watch.open)
    monkeypatch.setattr(causaltrace, "watch", Watch)
    monkeypatch.setattr(causaltrace, "label", label)
    yield
    assert (causaltrace.watch, causaltrace.label) == (Watch, label)
