"""Is a rule right? ``check_rule(op, *inputs)`` compares it with what changes when the inputs change."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causaltrace.custom import operators
from causaltrace.depends import follow
from causaltrace.perturb import Refused, Truth, differs, drawn_again
from causaltrace.rules.call import tensors

__all__ = ["RuleCheck", "check_rule"]

#: Input elements that are told apart in one run, and values that are tried for each.
WINDOW, VALUES = 1024, 8
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
    attempts: int = 3,
    values: Mapping[int, Sequence[Any]] | None = None,
    seed: int = 0,
    **options: Any,
) -> RuleCheck:
    """Change elements of the inputs and see whether the rules name every output element that changes.

    Args:
        op: a function, an operator, or the name of one (``"mylib::norm"``). It is run on copies.
        inputs: its arguments. Tensors are changed; gradients of those that require grad are checked as well.
        elements: input elements that are changed, one at a time; a random choice if there are more.
        attempts: other inputs of the same kind at which all is done again.
        values: for the ``i``-th argument, the values that its elements may take. Default: large and near
            ones, zero, ties and the negative; for whole numbers those that may be an index of something.
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
    rng = random.Random(seed)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = _Subject(op, list(inputs), options, at, tuple(inputs[i] for i in at))
        total = sum(t.numel() for t in subject.inputs)
        start = rng.randrange(max(1, total - WINDOW + 1))
        window = range(start, min(start + WINDOW, total))
        columns = sorted(rng.sample(range(len(window)), min(elements, len(window))))
        found = _Found(subject, window, columns, {at.index(i): v for i, v in (values or {}).items()})
        found.look(subject.inputs, rng)
        for attempt in range(attempts):
            with contextlib.suppress(Refused):
                found.look(drawn_again(subject.inputs, attempt), rng)
    if found.missed:
        more = f"\n  ... and {len(found.missed) - LISTED} more" if len(found.missed) > LISTED else ""
        lines = "".join(f"\n  {line}" for line in list(found.missed)[:LISTED])
        raise AssertionError(f"the rules of {_title(op)} miss {len(found.missed)} flows:{lines}{more}")
    changed = found.changed.any(0)
    if not len(changed) or not bool(changed.any()):
        raise ValueError("no input element could be changed: give values=, or inputs that have others")
    reported, true = (int(pairs[:, changed].sum()) for pairs in (found.reach, found.hits))
    return RuleCheck(reported, true, int((~changed).sum()))


class _Found:
    """What was found at all inputs looked at: pairs ``[output element, column]`` that the rules name
    and that are real, columns that could be changed, and the flows that no rule names."""

    def __init__(
        self, subject: _Subject, window: range, columns: list[int], values: Mapping[int, Sequence[Any]]
    ) -> None:
        self.subject, self.window, self.columns, self.values = subject, window, columns, values
        self.reach = self.hits = self.changed = torch.zeros(subject.count, len(columns), dtype=torch.bool)
        self.missed: dict[str, None] = {}

    def look(self, inputs: tuple[Tensor, ...], rng: random.Random) -> None:
        subject, window = self.subject, self.window
        truth = Truth(subject, inputs, self.values)
        again = truth.at(inputs)
        if again is None or bool(differs(again, truth.base).any()):
            raise ValueError("the function gives other results when it is run again on the same inputs")
        if len(truth.base) != subject.count:
            return  # another number of results
        members, _, opaque = follow(subject, inputs, window)
        if opaque:
            raise AssertionError(f"no rule covers {', '.join(sorted(opaque))}: register one (docs/rules.md)")
        reach = torch.cat([m.reshape(-1, len(window)) for m in members])
        self.reach = self.reach | reach[:, self.columns]
        hits, changed = torch.zeros_like(self.hits), torch.zeros_like(self.changed)
        for k, c in enumerate(self.columns):
            hit = truth.column(window[c], truth.others(window[c], rng, VALUES))
            if hit is not None:
                hits[:, k], changed[:, k] = hit, True
                for r in (hit & truth.numbered & ~reach[:, c]).nonzero()[:, 0].tolist():
                    self._miss(r, subject.input(*truth.where[window[c]]))
        self.hits, self.changed = self.hits | hits, self.changed | changed
        for _ in range(0 if self.missed else TOGETHER):
            r = rng.randrange(subject.count)
            moved = truth.together([window[c] for c in (~reach[r]).nonzero()[:, 0].tolist()], rng)
            if moved is not None and bool(moved[r] & truth.numbered[r]):
                self._miss(r, "several elements that it does not name")

    def _miss(self, row: int, cause: str) -> None:
        self.missed[f"{self.subject.output(row)} changes with {cause}"] = None


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
        self.count = sum(torch.Size(shape).numel() for shape in self._shapes)
        if not self.count:
            raise ValueError("the results have no elements: give larger inputs")

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
