"""Threads that the watched program starts: their operations are followed, too.

Dispatch modes belong to a thread. A thread that is started where the watch sees operations gets the watch's
mode for as long as it runs, and so does every task that is given to a pool of threads.
"""

from __future__ import annotations

import _thread
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

from causaltrace._compat import modes
from causaltrace.tracer import Tracer

Starter = Callable[..., Any]
_END = object()


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


def _thread_starts(tracer: Tracer, original: Starter) -> Starter:
    @functools.wraps(original)
    def start(thread: threading.Thread) -> Any:
        if _seen(tracer):
            vars(thread)["run"] = _followed(tracer, thread.run)
        return original(thread)

    return start


def _task_is_given(tracer: Tracer, original: Starter) -> Starter:
    @functools.wraps(original)
    def submit(pool: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return original(pool, _followed(tracer, fn) if _seen(tracer) else fn, *args, **kwargs)

    return submit


def _items(tracer: Tracer, iterable: Iterable[Any]) -> Iterator[Any]:
    items, take = iter(iterable), _followed(tracer, next)
    while (item := take(items, _END)) is not _END:
        yield item


def _tasks_are_given(tracer: Tracer, original: Starter) -> Starter:
    """``imap``: the pool takes what it needs of the iterable, on a thread of its own."""
    submit = _task_is_given(tracer, original)

    @functools.wraps(original)
    def imap(pool: Any, func: Callable[..., Any], iterable: Iterable[Any], *args: Any, **kwargs: Any) -> Any:
        return submit(pool, func, _items(tracer, iterable) if _seen(tracer) else iterable, *args, **kwargs)

    return imap


def function_starts(tracer: Tracer, original: Starter) -> Starter:
    @functools.wraps(original)
    def start(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(_followed(tracer, fn) if _seen(tracer) else fn, *args, **kwargs)

    return start


#: What starts threads, or gives them work: owner, name, and what takes its place for the time of a watch.
#: What starts inside the kernel of an operation is not followed: the operation is.
STARTING: tuple[tuple[Any, str, Callable[[Tracer, Starter], Starter]], ...] = (
    (threading.Thread, "start", _thread_starts),
    (ThreadPoolExecutor, "submit", _task_is_given),
    (ThreadPool, "apply_async", _task_is_given),
    (ThreadPool, "_map_async", _task_is_given),
    (ThreadPool, "imap", _tasks_are_given),
    (ThreadPool, "imap_unordered", _tasks_are_given),
)
#: Functions that do, by whatever name a module has them, whether it is old or new.
_NAMES = ("start_new_thread", "start_new", "start_joinable_thread")
FUNCTIONS = tuple(getattr(_thread, name) for name in _NAMES if hasattr(_thread, name))
