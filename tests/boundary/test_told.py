"""Ways out of torch that are no operations, under all of their names, and that nothing is left behind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, as_tensor, tensor
from torch.utils.dlpack import to_dlpack

import causaltrace

to_list, to_numpy = Tensor.tolist, Tensor.numpy
BASE = torch._C.TensorBase


def stream() -> Tensor:
    return torch.tensor([3, 1, 4, 1, 5, 2, 6, 0, 3, 5])


def state_with(x: Tensor) -> Tensor:
    state = torch.Generator().get_state()
    state[24 + 8 * 397] = x[-1]
    return state


def caught(x: Tensor) -> None:
    with pytest.raises(RuntimeError):
        F.one_hot(x, 3)


WAYS: dict[str, Callable[[Tensor], object]] = {
    "repr": lambda x: repr(x),
    "str": lambda x: str(x),
    "format": lambda x: f"{x}",
    "list of tensors as text": lambda x: str([x]),
    "apply_": lambda x: x.clone().apply_(lambda v: v),
    "map_": lambda x: torch.zeros(len(x), dtype=torch.long).map_(x, lambda a, b: a),
    "capsule": lambda x: to_dlpack(x),
    "generator state": lambda x: torch.Generator().set_state(state_with(x)),
    "poisson": lambda x: torch.poisson(x.double()),
    "scale": lambda x: torch.quantize_per_tensor(
        x.float(), x.double().max(), torch.tensor(0), torch.qint8
    ).q_scale(),
    "tolist by name": lambda x: to_list(x),
    "tolist of the base": lambda x: BASE.tolist(x),
    "an error that is caught": caught,
}


def told(run: Callable[[Tensor], object]) -> bool:
    """Does the watch hear that a label left?"""
    tokens = stream()
    with causaltrace.watch(tokens) as trace:
        run(tokens[2:7])
    return bool(trace.report.escapes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_watch_is_told(way: Callable[[Tensor], object]) -> None:
    assert told(way)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_of_what_has_no_label_nothing_is_told(way: Callable[[Tensor], object]) -> None:
    assert not told(lambda _: way(torch.arange(5)))


FOLLOWED: dict[str, Callable[[Tensor], Any]] = {
    "array by name": lambda x: to_numpy(x),
    "array of the base": lambda x: BASE.numpy(x),
    "constructors by name": lambda x: as_tensor(tensor([x[-1], x[0]]).numpy()),
}


@pytest.mark.parametrize("way", FOLLOWED.values(), ids=FOLLOWED)
def test_what_is_made_is_followed(way: Callable[[Tensor], Any]) -> None:
    tokens, weights = stream(), torch.randn(7, 7)
    with causaltrace.watch(tokens) as trace:
        hint = torch.as_tensor(way(tokens[2:6])).sum()
        F.cross_entropy((weights[tokens[4:5]] + hint * torch.arange(7)), tokens[5:6]).item()
    assert trace.report.status == "violation"


def looks() -> list[object]:
    here = sys.modules[__name__]
    names = ("to_list", "to_numpy", "to_dlpack", "tensor", "as_tensor")
    methods = ("tolist", "numpy", "apply_", "__repr__", "q_scale", "data_ptr", "__getitem__")
    base = [vars(BASE).get(name) for name in methods]
    own = [vars(Tensor).get(name) for name in methods]
    return [getattr(here, n) for n in names] + base + own + [vars(torch.Generator)["set_state"], torch.tensor]


def test_everything_is_as_it_was() -> None:
    before = looks()
    with causaltrace.watch(stream()):
        assert looks() != before
    assert all(a is b for a, b in zip(before, looks(), strict=True))
    with pytest.raises(ZeroDivisionError), causaltrace.watch(stream()):
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, looks(), strict=True))


@pytest.mark.parametrize("ignored", [-100, 3, 9])
def test_a_class_that_is_charged_nothing(ignored: int) -> None:
    """Where it is one of the classes, the others are charged as if it were one: too little in all."""
    tokens, weights = stream(), torch.randn(7, 7)
    with causaltrace.watch(tokens) as trace:
        loss = F.cross_entropy(weights[tokens[:-1]], tokens[1:], reduction="none", ignore_index=ignored)
        loss.sum().item()
    found = {f.kind for f in trace.report.violations}
    assert ("CT005" in found) == (ignored == 3)
    assert trace.report.status == ("violation" if ignored == 3 else "clean")
