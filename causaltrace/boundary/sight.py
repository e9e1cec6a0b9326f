"""Code that runs where a watch sees no operation: modes that are older than it, contexts in which no mode is
on, and functions that Python calls at every line, also of a watch's own. What they do is not followed; that
they were there is told, and stands in the way of ``clean``."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from causaltrace._compat import HARMLESS_MODES, UNSEEING, hides_python, modes
from causaltrace.places import site, torchs

#: Told to the report: a message, a remedy, and whether it stands in the way of ``clean``.
Note = Callable[[str, str, bool], None]

#: Functions that set one that Python calls at every line, or at every call.
TRACING = (sys.settrace, sys.setprofile, threading.settrace, threading.setprofile)


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


def functions(note: Note) -> dict[int, Callable[..., Any]]:
    """What takes the place of functions of modules, by their ids."""
    noted: set[str] = set()

    def tell(what: str) -> None:
        message = f"{what} was called at {site(what, 'host')}: what runs there is not seen"
        if message not in noted:
            noted.add(message)
            note(message, "leave it out of the watched block, or watch without it", True)

    made = {id(fn): _telling(fn, tell) for fn in UNSEEING}
    return made | {id(fn): _tracing(fn, tell) for fn in TRACING}


def _telling(original: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(original, updated=())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not torchs(sys._getframe(1)) and hides_python(args):
            tell(original.__name__)
        return original(*args, **kwargs)

    return wrapper


def _tracing(original: Callable[..., Any], tell: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapper(func: Any) -> None:
        # what a thread begins with was told of when it was set
        if func is not None and sys._getframe(1).f_globals is not vars(threading):
            tell(f"{original.__module__}.{original.__name__}")
        original(func)

    return wrapper
