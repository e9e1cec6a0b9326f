"""A live line for long watches: how many positions are scored, what was found, for how long it has run.

Only on a terminal, after two seconds, and never among the program's own output: the line stands where the
next line of output will start, is wiped before the program writes, and is not drawn while the program is in
the middle of a line. It is drawn when a score is judged, a few times a second at most; there is no thread.
Output that does not go through ``sys.stdout`` or ``sys.stderr`` (C code, children) may follow the line.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from causaltrace.report.summary import plural

if TYPE_CHECKING:
    from causaltrace.watcher import Watch

#: Seconds of silence at first, and between two drawings.
PATIENCE, PAUSE = 2.0, 0.2
_WIPE = "\r\x1b[K"


class Progress:
    """Call it with the watch whenever a score was judged; ``shown``: there is a terminal to draw on."""

    def __init__(self) -> None:
        self.shown = _is_terminal(sys.stderr) and "CI" not in os.environ and os.environ.get("TERM") != "dumb"
        self._start = time.monotonic()
        self._next = self._start + PATIENCE
        self._drawn = False
        self._between_lines = True
        self._guarded: list[TextIO] = []

    def __enter__(self) -> Progress:
        if self.shown:
            self._write, self._flush = sys.stderr.write, sys.stderr.flush
            self._guarded = [s for s in {sys.stdout, sys.stderr} if _is_terminal(s)]
            for stream in self._guarded:
                vars(stream)["write"] = self._wiping(stream.write)
        return self

    def __exit__(self, *error: object) -> None:
        self._wipe()
        for stream in self._guarded:
            vars(stream).pop("write", None)

    def __call__(self, watch: Watch) -> None:
        now = time.monotonic()
        if now < self._next or not self._between_lines:
            return
        self._next = now + PAUSE
        line = _line(watch, int(now - self._start))
        self._write(_WIPE + line[: shutil.get_terminal_size().columns - 1])
        self._flush()
        self._drawn = True

    def _wiping(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def wiped_first(text: str) -> int:
            self._wipe()
            if text:
                self._between_lines = text.endswith("\n")
            return write(text)

        return wiped_first

    def _wipe(self) -> None:
        if self._drawn:
            self._drawn = False
            self._write(_WIPE)
            self._flush()


def _line(watch: Watch, seconds: int) -> str:
    now = watch.standing
    facts = (
        f"{now.scored:,} of {plural(now.labels, 'label')} scored",
        plural(now.findings, "finding"),
        plural(now.opaque, "opaque operation"),
        f"{seconds // 60}:{seconds % 60:02}",
    )
    return f"causaltrace: {', '.join(facts)}"


def _is_terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()
