"""What survives a step: every tensor and number that Python objects hold, by a readable path."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

#: How deep objects are looked into.
DEPTH = 12
#: Objects that hold nothing, and whole libraries.
OPAQUE = (type, ModuleType, BuiltinFunctionType, torch.dtype, torch.device, torch.Generator)
NUMBERS = (int, float, complex, str, bytes)


class Held:
    """What the roots hold. ``tensors`` and ``numbers`` by path; ``counts``: paths of the step counts of
    optimizers; ``modules``; and what is needed to put every container back as it is now."""

    def __init__(self, roots: Mapping[str, Any], beside: Held | None = None) -> None:
        """``beside``: what it holds is left out."""
        self.tensors: dict[str, Tensor] = {}
        self.numbers: dict[str, Any] = {}
        self.counts: set[str] = set()
        self.modules: list[nn.Module] = []
        self._undo: list[Callable[[], None]] = []
        self._known: dict[int, Any] = {} if beside is None else dict(beside._known)
        for name, value in roots.items():
            self._look(name, value, DEPTH)

    def restore(self) -> None:
        for undo in reversed(self._undo):
            undo()

    # -- looking --------------------------------------------------------------------------------------

    def _look(self, path: str, value: Any, depth: int) -> None:
        if value is None or isinstance(value, NUMBERS):
            self.numbers[path] = value
            return
        if isinstance(value, OPAQUE) or id(value) in self._known or not depth:
            return
        self._known[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, nn.Module):
            self._module(path, value, depth)
        elif isinstance(value, torch.optim.Optimizer):
            self._optimizer(path, value, depth)
        elif isinstance(value, Mapping):
            self._mapping(path, value, depth)
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            self._sequence(path, value, depth)
        elif isinstance(value, functools.partial):
            for i, part in enumerate((value.func, value.args, value.keywords)):
                self._look(f"{path}.{('func', 'args', 'keywords')[i]}", part, depth - 1)
        elif isinstance(value, MethodType):
            self._look(path, value.__self__, depth - 1)
            self._look(path, value.__func__, depth - 1)
        elif isinstance(value, FunctionType):
            self._function(path, value, depth)
        elif hasattr(value, "__dict__"):
            self._attributes(path, vars(value), depth)

    def _tensor(self, path: str, t: Tensor) -> None:
        self.tensors[path] = t
        if not t.is_leaf:
            return
        grad = t.grad
        self._undo.append(lambda: setattr(t, "grad", grad))
        if grad is not None and id(grad) not in self._known:
            self._known[id(grad)] = grad
            self.tensors[f"{path}.grad"] = grad

    def _module(self, path: str, module: nn.Module, depth: int) -> None:
        self.modules.append(module)
        attributes = vars(module)
        self._keep(attributes)
        for part in ("_parameters", "_buffers", "_modules"):
            held = attributes[part]
            self._keep(held)
            for name, value in held.items():
                if value is not None:
                    self._look(f"{path}.{name}", value, depth)
        self._attributes(path, {n: v for n, v in attributes.items() if n not in MODULE}, depth)

    def _optimizer(self, path: str, optimizer: torch.optim.Optimizer, depth: int) -> None:
        self._keep(vars(optimizer))
        self._look(f"{path}.param_groups", optimizer.param_groups, depth - 1)
        self._keep(optimizer.state)
        for i, entry in enumerate(optimizer.state.values()):
            self._look(f"{path}.state[{i}]", entry, depth - 1)
            if isinstance(entry, Mapping) and isinstance(entry.get("step"), Tensor):
                self.counts.add(f"{path}.state[{i}]['step']")

    def _mapping(self, path: str, value: Mapping[Any, Any], depth: int) -> None:
        if isinstance(value, dict):
            self._keep(value)
        for i, (key, item) in enumerate(value.items()):
            name = repr(key) if isinstance(key, NUMBERS) else str(i)
            self._look(f"{path}[{name}]", item, depth - 1)

    def _sequence(self, path: str, value: Any, depth: int) -> None:
        before = list(value)
        if isinstance(value, (list, set, deque)):

            def undo() -> None:
                value.clear()
                value.update(before) if isinstance(value, set) else value.extend(before)

            self._undo.append(undo)
        for i, item in enumerate(before):
            self._look(f"{path}[{i}]", item, depth - 1)

    def _function(self, path: str, fn: FunctionType, depth: int) -> None:
        if (fn.__module__ or "").partition(".")[0] in ("torch", "causaltrace"):
            return
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
            self._cell(name, cell, depth)
        used = inspect.getclosurevars(fn).globals
        names = {name: fn.__globals__[name] for name in used}
        self._undo.append(lambda: fn.__globals__.update(names))
        for name, value in names.items():
            self._look(name, value, depth - 1)
        for i, value in enumerate(fn.__defaults__ or ()):
            self._look(f"{fn.__name__}.__defaults__[{i}]", value, depth - 1)
        self._attributes(fn.__name__, vars(fn), depth)

    def _cell(self, name: str, cell: CellType, depth: int) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty
            return
        self._undo.append(lambda: setattr(cell, "cell_contents", value))
        self._look(name, value, depth - 1)

    def _attributes(self, path: str, attributes: dict[str, Any], depth: int) -> None:
        self._keep(attributes)
        for name, value in list(attributes.items()):
            self._look(f"{path}.{name}", value, depth - 1)

    def _keep(self, held: dict[Any, Any]) -> None:
        before = dict(held)

        def undo() -> None:
            if len(held) != len(before) or any(held.get(k, before) is not v for k, v in before.items()):
                held.clear()
                held.update(before)

        self._undo.append(undo)


#: What ``nn.Module`` keeps for itself.
MODULE = frozenset(vars(nn.Module()))


def reached(step: Any, state: Any) -> tuple[Held, Held]:
    """What is declared, and what else the step can reach: what it closes over, its object, its globals."""
    declared = Held({"state": state})
    return declared, Held({getattr(step, "__name__", "step"): step}, declared)


@contextlib.contextmanager
def restored(step: Any, state: Any) -> Iterator[None]:
    """Put every container that the step can reach back as it is now."""
    before = reached(step, state)
    try:
        yield
    finally:
        for held in before:
            held.restore()
