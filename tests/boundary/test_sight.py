"""Code that runs where a watch sees no operation stands in the way of ``clean``; what only looks like it does
not."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode

import causaltrace
from causaltrace.report.model import Report

Reading = Callable[[Tensor], Any]


def run(reading: Reading, around: AbstractContextManager[Any] | None = None) -> Report:
    """A label that is read by ``reading`` moves the scores that come before it."""
    tokens = torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5])
    weights = torch.randn(7, 7)
    with around or nullcontext(), causaltrace.watch(tokens) as trace:
        hint = reading(tokens[2:6])
        F.cross_entropy(weights[tokens[4:5]] + hint * torch.arange(7), tokens[5:6]).item()
    return trace.report


class Dispatching(TorchDispatchMode):
    kept = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.neg.default:
            self.kept = float((args[0] + 0).sum())
        return func(*args, **(kwargs or {}))


class Calling(TorchFunctionMode):
    kept: Any = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.neg:
            self.kept = (args[0] + 0).sum()
        return func(*args, **(kwargs or {}))


def through(mode: Any) -> Reading:
    def reading(x: Tensor) -> Any:
        x.neg()
        return mode.kept

    return reading


def test_a_mode_that_is_older_than_the_watch_is_named() -> None:
    mode = Dispatching()
    report = run(through(mode), mode)
    assert report.status == "unverified"
    (note,) = (n for n in report.notes if "Dispatching" in n.message)
    assert note.blocking and "inside the watch" in note.remedy


def test_what_older_handlers_of_functions_do_is_seen() -> None:
    mode = Calling()
    assert run(through(mode), mode).status == "violation"
    assert run(lambda x: 0, Calling()).status == "clean"


def test_a_mode_inside_the_watch_is_seen() -> None:
    def reading(x: Tensor) -> Any:
        with Dispatching() as mode:
            return through(mode)(x)

    report = run(reading)
    assert report.status == "unverified" and report.escapes
    with_one = run(lambda x: [Dispatching().__enter__().__exit__(None, None, None), 0][1])
    assert with_one.status == "clean"


@pytest.mark.parametrize(
    "around", [FlopCounterMode(display=False), torch.device("cpu")], ids=["flops", "device"]
)
def test_modes_of_torchs_own_that_read_nothing(around: Any) -> None:
    assert run(lambda x: 0, around).status == "clean"


@contextmanager
def popped() -> Iterator[None]:
    mode = torch._C._pop_torch_dispatch_stack(None)
    try:
        yield
    finally:
        torch._C._push_on_torch_dispatch_stack(mode)


def python_key() -> AbstractContextManager[Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
    return torch._C._ExcludeDispatchKeyGuard(keys)


HIDING: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no modes, by name": lambda: _disable_current_modes(),
    "no modes": lambda: _python_dispatch._disable_current_modes(),
    "no mode on top": lambda: _python_dispatch._pop_mode_temporarily(),
    "popped": popped,
    "no dispatch, by name": lambda: no_dispatch(),
    "no dispatch": lambda: torch._C._DisableTorchDispatch(),
    "no key": python_key,
}


@pytest.mark.parametrize("hiding", HIDING.values(), ids=HIDING)
def test_where_modes_are_off_is_told(hiding: Callable[[], AbstractContextManager[Any]]) -> None:
    def reading(x: Tensor) -> Any:
        with hiding():
            return (x + 0).sum().item()

    report = run(reading)
    assert report.status == "unverified"
    assert any(n.blocking and "test_sight.py" in n.message for n in report.notes)
    assert no_dispatch is torch._C._DisableTorchDispatch, "it is what it was"


def test_other_keys_may_be_left_out() -> None:
    def reading(x: Tensor) -> int:
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return 0

    assert run(reading).status == "clean"


def test_what_torch_does_itself_is_not_told() -> None:
    def reading(x: Tensor) -> int:
        str(torch.ones(3))
        torch.vmap(torch.sin)(torch.ones(3))
        return 0

    assert run(reading).status == "clean"


TRACING: dict[str, Callable[[Any], None]] = {
    "trace": sys.settrace,
    "profile": sys.setprofile,
    "trace of threads": threading.settrace,
    "profile of threads": threading.setprofile,
}


@pytest.mark.parametrize("name", TRACING)
def test_a_function_that_python_calls_at_every_line_is_told(name: str) -> None:
    of_threads = "of threads" in name
    owner: Any = threading if of_threads else sys
    kind = name.split()[0]
    before = getattr(sys, f"get{kind}")()

    def reading(x: Tensor) -> Any:
        found: list[Any] = []

        def look(frame: Any, event: str, arg: Any) -> Any:
            if frame.f_code.co_name == "__torch_dispatch__" and not found:
                args = frame.f_locals["args"]
                found.append(float(args[0].sum() - args[0].numel()))
            return look

        def work() -> None:
            x.neg()

        getattr(owner, f"set{kind}")(look)
        try:
            if of_threads:
                thread = threading.Thread(target=work)
                thread.start()
                thread.join()
            else:
                work()
        finally:
            getattr(owner, f"set{kind}")(None if of_threads else before)
        return found[0] if found else 0

    report = run(reading)
    assert report.status == "unverified"
    assert any("tracing function" in n.message and n.blocking for n in report.notes)
    assert getattr(owner, f"set{kind}") is TRACING[name]


@pytest.mark.parametrize("set_it", [sys.settrace, sys.setprofile])
def test_one_that_only_counts_is_not(set_it: Callable[[Any], None]) -> None:
    before = {sys.settrace: sys.gettrace, sys.setprofile: sys.getprofile}[set_it]()
    calls: dict[str, int] = {}

    def reading(x: Tensor) -> int:
        def count(frame: Any, event: str, arg: Any) -> Any:
            calls[event] = calls.get(event, 0) + 1
            return count

        getattr(sys, set_it.__name__)(count)
        x.neg()
        getattr(sys, set_it.__name__)(before)
        return 0

    report = run(reading)
    assert report.status == "clean" and not report.notes
    assert calls["call"] > 1 and ("line" in calls) == (set_it is sys.settrace)
