"""Ground truth for tests: what changes when inputs change. No watch and no verdict uses it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causaltrace.rules.call import tensors

#: What an operation may raise for values that it does not take.
REFUSALS = (RuntimeError, ValueError, IndexError, AssertionError)


def flat(value: Any) -> Tensor:
    """All results as one vector of complex numbers; -0.0 is 0.0."""
    parts = [t.detach().resolve_conj().to(torch.complex128).reshape(-1).cpu() for t in tensors(value)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.complex128)


def differs(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())


def others(t: Tensor, e: int, rng: random.Random) -> list[Any]:
    """Other values for element ``e``: large ones, a near one, another element's (a tie), a random one, 0.
    Whole numbers take what else is in the tensor, which is valid wherever it stands."""
    whole = t.reshape(-1)
    old = whole[e].item()
    if t.dtype == torch.bool:
        return [not old]
    tie = whole[rng.randrange(len(whole))].item()
    if not (t.dtype.is_floating_point or t.dtype.is_complex):
        options = list(dict.fromkeys([*whole.tolist(), old + 1, max(old - 1, 0)]))[:12]
    else:
        options = [9.0, -9.0, old * 1.02 + 0.01, tie, rng.gauss(0, 1), -old, 0.0, old + 1]
        if t.dtype.is_complex:
            options.append(old * 1j)
    return [v for v in options if v != old]


class _Plain(TorchDispatchMode):
    """Does nothing. Some backward formulas choose another algorithm under any dispatch mode (prod)."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Perturbed:
    """The results of a function at some inputs, and around them."""

    def __init__(self, fn: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self.fn, self.inputs = fn, tuple(inputs)
        with _Plain():
            self.base, again = (flat(fn(*[t.clone() for t in inputs])) for _ in range(2))
        if self.base.shape != again.shape or bool(differs(self.base, again).any()):
            raise ValueError("the function gives other results when it is run again on the same inputs")

    def at(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """None where the function refuses these values, or gives another number of results."""
        try:
            with _Plain():
                out = flat(self.fn(*[t.clone() for t in inputs]))
        except REFUSALS:
            return None
        return out if out.shape == self.base.shape else None

    def column(self, which: int, e: int, values: Sequence[Any]) -> Tensor | None:
        """Which results change with element ``e`` of one input; None if no other value was accepted."""
        hit = None
        for value in values:
            out = self.at(self._with({which: {e: value}}))
            if out is not None:
                changed = differs(out, self.base)
                hit = changed if hit is None else hit | changed
        return hit

    def together(
        self, free: Sequence[Tensor], values: Mapping[int, Sequence[Any]], rng: random.Random
    ) -> Tensor | None:
        """The results when many of the elements in these masks change at once."""
        new: dict[int, dict[int, Any]] = {}
        for i, (t, mask) in enumerate(zip(self.inputs, free, strict=True)):
            for e in mask.reshape(-1).nonzero()[:, 0].tolist():
                options = values.get(i) or others(t, e, rng)
                if options and rng.random() < 0.8:
                    new.setdefault(i, {})[e] = rng.choice(options)
        return self.at(self._with(new)) if new else None

    def _with(self, values: dict[int, dict[int, Any]]) -> list[Tensor]:
        out = []
        for i, t in enumerate(self.inputs):
            if i in values:
                t = t.clone(memory_format=torch.contiguous_format)
                for e, value in values[i].items():
                    t.view(-1)[e] = value
            out.append(t)
        return out
