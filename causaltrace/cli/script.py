"""Run somebody's script or module as ``python`` would run it."""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType


@dataclass(frozen=True, slots=True)
class Script:
    """A program to run: a file, or (``module=True``) the name of a module, and its arguments.

    ``folder`` is where a module is looked for first; default: the working directory.
    """

    target: str
    args: Sequence[str] = ()
    module: bool = False
    folder: Path | None = None

    def run(self) -> BaseException | None:
        """Run the program as ``__main__`` and return the exception it ended with, if any.

        ``sys.exit()`` and ``sys.exit(0)`` are a normal end.
        """
        try:
            with self._interpreter_state():
                if self.module:
                    runpy.run_module(self.target, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(self.target, run_name="__main__")
        except SystemExit as error:
            return None if error.code in (None, 0) else error
        except BaseException as error:
            return error
        return None

    @contextmanager
    def _interpreter_state(self) -> Iterator[None]:
        """``sys.argv`` and ``sys.path[0]`` as ``python target args...`` would set them."""
        argv, path = sys.argv, list(sys.path)
        sys.argv = [self.target, *self.args]
        home = self.folder or Path.cwd() if self.module else Path(self.target).resolve().parent
        sys.path.insert(0, str(home))
        try:
            yield
        finally:
            sys.argv, sys.path[:] = argv, path


def format_error(error: BaseException) -> str:
    """The traceback from the script's own first frame on.

    One line for ``sys.exit(3)``, and for a script that did not start.
    """
    if isinstance(error, SystemExit):
        text = error.code if isinstance(error.code, str) else f"the script exited with status {error.code}"
        return f"{text}\n"
    frames = _own_frames(error.__traceback__)
    if frames is None:
        return "".join(traceback.format_exception_only(error))
    return "".join(traceback.format_exception(type(error), error, frames))


def _own_frames(tb: TracebackType | None) -> TracebackType | None:
    machinery = {__file__, runpy.__file__, "<frozen runpy>"}
    while tb is not None and tb.tb_frame.f_code.co_filename in machinery:
        tb = tb.tb_next
    return tb
