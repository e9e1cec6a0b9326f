"""Threads that the watched program starts: their operations are followed, too.

Dispatch modes belong to a thread. A thread that is started where the watch sees operations gets the watch's
mode for as long as it runs, and so does every task that is given to a pool of threads.
"""

from __future__ import annotations

import _thread
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from causaltrace._compat import modes
from causaltrace.tracer import Tracer

#: What starts threads, or gives them work: owner and name.
STARTING: tuple[tuple[Any, str], ...] = (
    (threading.Thread, "start"),
    (ThreadPoolExecutor, "submit"),
    (_thread, "start_new_thread"),
)


def starting(tracer: Tracer, owner: Any, name: str) -> Callable[..., Any]:
    """``owner.name`` for the time of a watch. What starts inside the kernel of an operation is not followed:
    the operation is."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def start(thread: threading.Thread) -> Any:
        if _seen(tracer):
            thread.run = _followed(tracer, thread.run)  # type: ignore[method-assign]
        return original(thread)

    @functools.wraps(original)
    def submit(pool: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(pool, _followed(tracer, fn) if _seen(tracer) else fn, *args, **kwargs)

    @functools.wraps(original)
    def start_new_thread(fn: Callable[..., Any], *args: Any) -> Any:
        return original(_followed(tracer, fn) if _seen(tracer) else fn, *args)

    made: dict[str, Callable[..., Any]] = {
        "start": start,
        "submit": submit,
        "start_new_thread": start_new_thread,
    }
    return made[name]


def _seen(tracer: Tracer) -> bool:
    """Are the operations of this thread seen?"""
    return any(mode is tracer for mode in modes())


def _followed(tracer: Tracer, fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if tracer.over or _seen(tracer):
            return fn(*args, **kwargs)
        with tracer:
            return fn(*args, **kwargs)

    return run
