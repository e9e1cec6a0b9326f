"""Is a rule right? ``check_rule(op, *inputs)`` compares it with what changes when the inputs change."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causaltrace.custom import operators
from causaltrace.depends import trace
from causaltrace.perturb import Perturbed, differs, others
from causaltrace.rules.call import tensors

__all__ = ["RuleCheck", "check_rule"]

#: Changes of all that an output element is said not to depend on, at once.
TOGETHER = 16
#: Missed flows that a message lists.
LISTED = 8


@dataclass(frozen=True, slots=True)
class RuleCheck:
    """A rule that missed nothing. ``reported`` and ``true``: pairs of an output element and an input element
    that were changed: those that the rule names, and those where the output changed. ``unchanged``: input
    elements for which no other value was accepted."""

    reported: int
    true: int
    unchanged: int = 0

    @property
    def exact(self) -> bool:
        return self.reported == self.true

    @property
    def ratio(self) -> float:
        """How much larger than the truth: 1.0 is exact."""
        return self.reported / self.true if self.true else 1.0 if self.exact else float("inf")


def check_rule(
    op: Callable[..., Any] | str,
    *inputs: Any,
    elements: int = 200,
    values: Mapping[int, Sequence[float]] | None = None,
    seed: int = 0,
    **options: Any,
) -> RuleCheck:
    """Change elements of the inputs and see whether the rules name every output element that changes.

    Args:
        op: a function, an operator, or the name of one (``"mylib::norm"``). It is run on copies.
        inputs: its arguments. Tensors are changed; gradients of those that require grad are checked as well.
        elements: input elements that are changed, one at a time; a random choice if there are more.
        values: for the ``i``-th argument, the values that its elements may take. Default: large and near
            ones, zero, ties and the negative; for whole numbers those that are in the tensor, and the next.
        seed: of the choices.
        options: keyword arguments of ``op``.

    Returns:
        How much larger than the truth the rules are. A few values do not show every dependence, so
        ``exact`` is proved and a ratio above 1 is not.

    Raises:
        AssertionError: an output changed with an input element that its rule does not name, or an operation
            has no rule.
        ValueError: ``op`` gives other results when it is run again, or nothing could be changed.
    """
    if isinstance(op, str):
        (op, *_) = operators(op)
    at = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    given = tuple(inputs[i] for i in at)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = _Subject(op, list(inputs), options, at, given)
        around = Perturbed(subject, subject.inputs)
        if not len(around.base):
            raise ValueError("the results have no elements: give larger inputs")
        members, _, opaque = trace(subject, *subject.inputs)
    if opaque:
        raise AssertionError(f"no rule covers {', '.join(sorted(opaque))}: register one (docs/rules.md)")
    sizes = [t.numel() for t in subject.inputs]
    reach = torch.cat(
        [torch.cat([p.reshape(-1, n) for p, n in zip(row, sizes, strict=True)], 1) for row in members]
    )
    rng = random.Random(seed)
    candidates = {at.index(i): list(v) for i, v in (values or {}).items()}
    where = [(i, e) for i, n in enumerate(sizes) for e in range(n)]
    columns = sorted(rng.sample(range(len(where)), min(elements, len(where))))
    reported = true = unchanged = 0
    missed: list[str] = []
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for c in columns:
            i, e = where[c]
            hit = around.column(i, e, candidates.get(i) or others(subject.inputs[i], e, rng))
            if hit is None:
                unchanged += 1
                continue
            true += int(hit.sum())
            reported += int(reach[:, c].sum())
            for r in (hit & ~reach[:, c]).nonzero()[:, 0].tolist():
                missed.append(f"{subject.output(r)} changes with {subject.input(i, e)}")
        for _ in range(0 if missed else TOGETHER):
            r = rng.randrange(len(reach))
            free = (~reach[r]).split(sizes)
            changed = around.together(list(free), candidates, rng)
            if changed is not None and bool(differs(changed, around.base)[r]):
                missed.append(f"{subject.output(r)} changes with several elements that it does not name")
    if missed:
        more = f"\n  ... and {len(missed) - LISTED} more" if len(missed) > LISTED else ""
        lines = "".join(f"\n  {line}" for line in missed[:LISTED])
        raise AssertionError(f"the rules of {_title(op)} miss {len(missed)} flows:{lines}{more}")
    if unchanged == len(columns):
        raise ValueError("no input element could be changed: give values=, or inputs that have others")
    return RuleCheck(reported, true, unchanged)


def _title(op: object) -> str:
    return str(getattr(op, "_qualname", None) or getattr(op, "__qualname__", None) or op)


class _Subject:
    """An operation as a function of its tensors (and of the gradients of its results) that gives its results,
    the arguments that it wrote, and the gradients of its arguments."""

    def __init__(
        self,
        op: Callable[..., Any],
        inputs: list[Any],
        options: dict[str, Any],
        at: list[int],
        given: tuple[Tensor, ...],
    ) -> None:
        self._op, self._given, self._options, self._at = op, inputs, options, at
        self._wrt = [i for i, t in enumerate(given) if t.requires_grad]
        _, copies = self._copies(given)
        versions = [t._version for t in copies]
        outs = self._run(copies)
        self._written = [i for i, t in enumerate(copies) if t._version != versions[i]]
        self._results = len(outs)
        self._seeded = [i for i, t in enumerate(outs) if t.requires_grad]
        seeds = [torch.randn(outs[i].shape, dtype=outs[i].dtype, device=outs[i].device) for i in self._seeded]
        self.inputs = (*[t.detach() for t in given], *seeds)
        self._shapes = [tuple(t.shape) for t in self(*self.inputs)]

    def _copies(self, given: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Leaves, and what the operation gets: a leaf that requires grad could not be written."""
        leaves = [t.detach().clone().requires_grad_(i in self._wrt) for i, t in enumerate(given)]
        return leaves, [t.clone() if t.requires_grad else t for t in leaves]

    def _run(self, copies: Sequence[Tensor]) -> list[Tensor]:
        arguments = list(self._given)
        for i, t in zip(self._at, copies, strict=True):
            arguments[i] = t
        torch.manual_seed(0)
        return tensors(self._op(*arguments, **self._options))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        count = len(self._at)
        leaves, copies = self._copies(inputs[:count])
        outs = self._run(copies)
        results = [*outs, *[copies[i] for i in self._written]]
        if self._seeded:
            wrt = [leaves[i] for i in self._wrt]
            seeded = [outs[i] for i in self._seeded]
            results += torch.autograd.grad(seeded, wrt, inputs[count:], materialize_grads=True)
        return [t.detach() for t in results]

    def output(self, row: int) -> str:
        """The name of an element of the results."""
        which, place = _place(row, self._shapes)
        if which < self._results:
            return f"output {which} {place}"
        which -= self._results
        if which < len(self._written):
            return f"argument {self._at[self._written[which]]}, written, {place}"
        return f"gradient of argument {self._at[self._wrt[which - len(self._written)]]} {place}"

    def input(self, which: int, element: int) -> str:
        """The name of an element of the inputs."""
        place = _place(element, [tuple(self.inputs[which].shape)])[1]
        if which < len(self._at):
            return f"argument {self._at[which]} {place}"
        return f"gradient of output {self._seeded[which - len(self._at)]} {place}"


def _place(element: int, shapes: Sequence[tuple[int, ...]]) -> tuple[int, list[int]]:
    """Which tensor a flat index is in, and where."""
    which = 0
    while element >= (size := torch.Size(shapes[which]).numel()):
        element -= size
        which += 1
    return which, [int(i) for i in torch.unravel_index(torch.tensor(element), shapes[which])]
