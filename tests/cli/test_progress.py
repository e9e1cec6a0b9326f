"""The live line: on a terminal only, and never in the way of the program's output."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

import causaltrace
from causaltrace.cli import progress
from causaltrace.cli.progress import Progress
from causaltrace.watcher import Standing

SLOW = """
import time, torch, causaltrace
torch.manual_seed(0)
tokens = torch.randint(0, 11, (65,))
emb, head = torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11)
total = 0.0
with causaltrace.watch(tokens), torch.no_grad():
    for i in range(64):
        loss = torch.nn.functional.cross_entropy(head(emb(tokens[i : i + 1])), tokens[i + 1 : i + 2])
        total += loss.item()
        time.sleep(0.05)
        if i % 16 == 0:
            print(f"step {i}", flush=True)
print(f"nats {total:.4f}")
"""
WATCH = types.SimpleNamespace(standing=Standing(1_200, 5_000, 3, 1))


class Terminal:
    """A text stream with a write that can be replaced, as those of Python have."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, text: str) -> int:
        self.written += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    both = Terminal()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stdout=both, stderr=both))
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "PAUSE", 0)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return both


LINE = "causaltrace: 1,200 of 5,000 labels scored, 3 findings, 1 opaque operation, 0:00"


def test_the_line_is_wiped_before_the_program_writes_and_at_the_end(terminal):
    with Progress() as tell:
        tell(WATCH)
        print("step 1", file=terminal)
        tell(WATCH)
    wipe = "\r\x1b[K"
    assert terminal.written == f"{wipe}{LINE}{wipe}step 1\n{wipe}{LINE}{wipe}"
    assert "write" not in vars(terminal)


def test_nothing_is_drawn_in_the_middle_of_a_line(terminal):
    with Progress() as tell:
        print("step", end=" ", file=terminal)
        tell(WATCH)
        print("1", file=terminal)
    assert terminal.written == "step 1\n"


def test_the_line_is_no_wider_than_the_terminal(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    with Progress() as tell:
        tell(WATCH)
    assert f"{LINE[:29]}\r" in terminal.written


def test_quick_runs_and_quick_scores_are_silent(terminal, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60)
    with Progress() as tell:
        tell(WATCH)
    assert terminal.written == ""
    monkeypatch.setattr(progress, "PATIENCE", 0)
    monkeypatch.setattr(progress, "PAUSE", 60)
    with Progress() as tell:
        for _ in range(5):
            tell(WATCH)
    assert terminal.written.count(LINE) == 1


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_no_line_in_ci_or_on_a_dumb_terminal(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert not Progress().shown


def test_no_line_without_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stdout=None, stderr=None))
    assert not Progress().shown


def run(script: Path, stderr: int) -> subprocess.CompletedProcess[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    environment |= {
        "PYTHONPATH": str(Path(causaltrace.__file__).parents[1]),
        "TERM": "xterm",
        "COLUMNS": "80",
    }
    command = [sys.executable, "-m", "causaltrace", "run", str(script)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, cwd=script.parent, env=environment, check=False
    )


def drained(terminal: int) -> str:
    """All that was written to a terminal that nobody has open any more."""
    found = b""
    with contextlib.suppress(OSError):
        while piece := os.read(terminal, 100_000):
            found += piece
    os.close(terminal)
    return found.decode()


def test_a_long_run_on_a_terminal(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    ours, theirs = pty.openpty()
    started = time.monotonic()
    seen = run(script, theirs)
    os.close(theirs)
    line = drained(ours)
    assert time.monotonic() - started > 3
    assert "of 65 labels scored, 0 findings" in line
    assert line.endswith("\r\x1b[K"), "the line is gone at the end"
    unseen = run(script, subprocess.PIPE)
    assert unseen.stderr == b""
    own, theirs = (done.stdout.split(b"\ncausaltrace: CLEAN")[0] for done in (seen, unseen))
    assert own == theirs and own.startswith(b"step 0\nstep 16\n")
    assert seen.returncode == unseen.returncode == 0
