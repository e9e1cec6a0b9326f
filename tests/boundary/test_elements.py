"""Tensors that torch makes of sequences: it reads the tensors in them where no operation is seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, overload

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import causaltrace
from tests.laundering import Program, carried, stream, verdict
from tests.small import Toy, nll
from tests.small import stream as longer

pytestmark = pytest.mark.filterwarnings("ignore")


class Few(Sequence[Tensor]):
    """A sequence that is no list."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    @overload
    def __getitem__(self, i: int) -> Tensor: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, i: Any) -> Any:
        if i >= len(self.x):
            raise IndexError
        return self.x[i]


def loaded(x: Tensor) -> Tensor:
    return next(iter(DataLoader(list(x), batch_size=3, collate_fn=torch.LongTensor)))  # type: ignore[arg-type]


#: Ways to make a tensor of some labels.
MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "tensor": lambda x: torch.tensor(list(x)),
    "tensor of a tuple": lambda x: torch.tensor(tuple(x)),
    "tensor of a deque": lambda x: torch.tensor(deque(x)),
    "tensor of a sequence": lambda x: torch.tensor(Few(x)),
    "as_tensor": lambda x: torch.as_tensor(deque(x)),
    "asarray": lambda x: torch.asarray(Few(x)),
    "new_tensor": lambda x: x.new_tensor(deque(x)),
    "LongTensor": lambda x: torch.LongTensor(list(x)),
    "Tensor": lambda x: torch.Tensor(list(x)).long(),
    "FloatTensor": lambda x: torch.FloatTensor([v.float() for v in x]).long(),
    "new": lambda x: x.new(list(x)),
    "rows": lambda x: torch.LongTensor([list(x), list(x)])[1],
    "complex": lambda x: torch.tensor(list(x), dtype=torch.cfloat).real.long(),
    "a loader": loaded,
}
#: Those of which torch makes something else.
USED: dict[str, Callable[[Tensor], Tensor]] = {
    "indices": lambda x: torch.arange(14).view(2, 7)[[0, 1, 1], list(x)],
    "indices of a sparse tensor": lambda x: (
        torch.sparse_coo_tensor([list(x)], [1.0] * len(x), (7,)).to_dense() * torch.arange(7)
    ),
    "values of a sparse tensor": lambda x: torch.sparse_coo_tensor([[0, 1, 2]], list(x), (7,)).to_dense(),
    "values of sparse rows": lambda x: torch.sparse_csr_tensor(
        [0, 1, 2, 3], [0, 1, 2], list(x.double()), (3, 3)
    ).to_dense(),
    "numbers beside them": lambda x: torch.LongTensor([5, *x, 6]),
}


def program(way: str, lag: int) -> Program:
    make = (MADE | USED)[way]
    return carried(lambda tokens: tokens, lambda x: make(x).double().sum() * 0.1, lag)


@pytest.mark.parametrize("way", MADE | USED)
def test_what_is_made_of_a_future_label_is_never_clean(way: str) -> None:
    assert verdict(program(way, 0)).status != "clean"
    assert verdict(program(way, 1)).status == "clean"


@pytest.mark.parametrize("way", MADE)
def test_the_values_and_the_class_are_those_without_a_watch(way: str) -> None:
    tokens = stream()
    before = MADE[way](tokens[:3])
    with causaltrace.watch(tokens):
        inside = MADE[way](tokens[:3])
    assert type(inside) is type(before) and inside.dtype == before.dtype and torch.equal(inside, before)


@pytest.mark.parametrize("make", [torch.tensor, torch.LongTensor, lambda x: torch.tensor([x])[0]])
def test_a_stream_that_is_put_together_again_is_the_stream(make: Callable[[Any], Tensor]) -> None:
    tokens, model = longer(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        ids = make(list(tokens))
        nll(model, ids).sum().item()
    assert trace.report.status == "clean" and trace.report.scored == len(tokens) - 1, trace.report


def test_the_methods_are_put_back() -> None:
    names = ("__index__", "__float__", "__complex__")
    before = [getattr(Tensor, name) for name in names]
    with causaltrace.watch(stream()):
        assert all(getattr(Tensor, name) is not old for name, old in zip(names, before, strict=True))
    assert [getattr(Tensor, name) for name in names] == before
    assert not set(names) & set(vars(Tensor))
