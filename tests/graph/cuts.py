"""Cut an eval at a line: what the line computes is replaced by what it computed before a label was flipped.

Independent of supports: two runs, one with another label, and a mode that keeps the results of the operations
at a line or puts them back. If a label reaches a score by way of that line only, the cut run gives the score
of the unflipped one.
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict, deque
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from causaltrace._compat import current_node
from causaltrace.places import internal
from causaltrace.site import Site
from tests import flips
from tests.flips import Case


class Line(NamedTuple):
    """The operations of one phase at one line."""

    phase: str
    file: str
    line: int


def line_of(where: Site) -> Line:
    """The line of a hop; readouts and scores are made by forward operations."""
    phase = where.phase if where.phase in ("backward", "update") else "forward"
    return Line(phase, where.file, where.line)


class Run(TorchDispatchMode):
    """``keep``: keeps the results of every line. ``kept``: puts results back, in the same order. All
    log-probabilities are kept in any case."""

    def __init__(self, keep: bool = False, kept: dict[Line, list[list[Tensor]]] | None = None) -> None:
        super().__init__()
        self.results: dict[Line, list[list[Tensor]]] = defaultdict(list)
        self.rows: list[Tensor] = []
        self._keep = keep
        self._kept = {line: deque(results) for line, results in (kept or {}).items()}
        self._steps = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[Run]:
        def steps(by: int) -> Any:
            def hook(*_: Any) -> None:
                self._steps += by

            return hook

        hooks = (
            register_optimizer_step_pre_hook(steps(1)),
            register_optimizer_step_post_hook(steps(-1)),
        )
        try:
            with self:
                yield self
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        if self._keep or self._kept:
            phase = "backward" if current_node() else "update" if self._steps else "forward"
            line = Line(phase, *_here())
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor)] + _written(func, args, kwargs)
            if self._keep:
                self.results[line].append([t.detach().clone() for t in made])
            if line in self._kept:
                before = self._kept[line].popleft()
                with torch.no_grad():
                    for t, value in zip(made, before, strict=True):
                        t.copy_(value)
        if func is torch.ops.aten._log_softmax.default:
            self.rows.append(out.detach().clone().flatten(0, -2))
        return out


def _here() -> tuple[str, int]:
    """File and line of the innermost frame that is neither torch's nor this file's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and not internal(file):
            return file, frame.f_lineno
        frame = frame.f_back
    return "", 0


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return found


class Result(NamedTuple):
    """Log-probabilities of the row that scored the target, and what the eval returned."""

    row: Tensor
    value: float


def evaluated(case: Case, tokens: Tensor, target: int, run: Run) -> Result:
    slot = next(s for s in case.schedule(case.config, len(tokens)) if s.position == target)
    with flips.single_threaded(), run.running():
        value = case.evaluate(case.make_model(), tokens, case.config)
    return Result(run.rows[slot.call][slot.row], float(value))


def flipped(case: Case, label: int, by: int = 1) -> Tensor:
    tokens = case.tokens.clone()
    tokens[label] = (tokens[label] + by) % case.vocab
    return tokens
