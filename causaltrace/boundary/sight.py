"""Code that runs where a watch sees no operation: modes that are older than it, contexts in which no mode is
on, and functions that Python calls at every line, also of a watch's own. What they do is not followed; that
they were there is told, and stands in the way of ``clean``."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from causaltrace._compat import HARMLESS_MODES, UNSEEING, hides_python, modes
from causaltrace.places import site, torchs
from causaltrace.tracer import Tracer

#: Told to the report: a message, a remedy, and whether it stands in the way of ``clean``.
Note = Callable[[str, str, bool], None]

#: Functions that set one that Python calls at every line, or at every call; new threads call them, too.
TRACING = (sys.settrace, sys.setprofile)


def older(note: Note) -> None:
    """Modes that were entered before the watch: only those around them see what their handlers do."""
    for kind in map(type, modes()):
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name not in HARMLESS_MODES:
            note(
                f"{name} was entered before the watch: what its handler does is not seen",
                "enter the mode inside the watch",
                True,
            )


def functions(tracer: Tracer, note: Note) -> dict[int, Callable[..., Any]]:
    """What takes the place of functions of modules, by their ids."""
    noted: set[str] = set()

    def tell(what: str) -> None:
        message = f"{what} at {site(what, 'host')}: what runs there is not seen"
        if message not in noted:
            noted.add(message)
            note(message, "leave it out of the watched block, or watch without it", True)

    made = {id(fn): _telling(fn, tell) for fn in UNSEEING}
    return made | {id(fn): _tracing(fn, _Alarm(tracer, tell)) for fn in TRACING}


def _telling(original: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(original, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torchs(sys._getframe(1)) and hides_python(args):
            tell(f"{original.__name__} was called")
        return original(*args, **kwargs)

    return wrapper


class _Alarm(TorchDispatchMode):
    """Tells of operations where the watch's own code runs, which sees none."""

    def __init__(self, tracer: Tracer, tell: Callable[[str], None]) -> None:
        super().__init__()
        self._tracer, self._tell = tracer, tell

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._tell(f"{func} was called by a tracing function")
        return func(*args, **(kwargs or {}))

    def around(self, look: Any) -> Any:
        """A tracing function, and those that it returns for single calls."""
        if not callable(look):
            return look

        @functools.wraps(look, updated=())
        def looking(frame: Any, event: str, argument: Any) -> Any:
            if self._tracer.over or any(mode is self._tracer for mode in modes()):
                return self.around(look(frame, event, argument))
            with self:
                return self.around(look(frame, event, argument))

        return looking


def _tracing(original: Callable[..., Any], alarm: _Alarm) -> Callable[..., Any]:
    older = sys.gettrace(), sys.getprofile()

    @functools.wraps(original)
    def wrapper(function: Any) -> None:
        original(function if any(function is known for known in older) else alarm.around(function))

    return wrapper
