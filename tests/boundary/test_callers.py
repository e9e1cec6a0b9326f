"""Whoever calls what hands out the values of a tensor: torch's own bookkeeping alone tells nothing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.data import DataLoader

import causaltrace
from causaltrace._compat import PICKLING
from tests.laundering import Program, carried, stream, verdict
from tests.small import Toy, nll
from tests.small import stream as longer

pytestmark = pytest.mark.filterwarnings("ignore")


class Listing(torch.nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x.tolist()


class Around(contextlib.ContextDecorator):
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


class Loaded(torch.utils.data.Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> Tensor:
        return self.x


def loaded(x: Tensor) -> list[int]:
    return next(iter(DataLoader(Loaded(x), batch_size=None, collate_fn=Tensor.tolist)))


def run_as_frozen(x: Tensor) -> list[int]:
    space: dict[str, Any] = {}
    exec(compile("def read(x): return x.tolist()", "<frozen thing>", "exec"), space)
    return space["read"](x)


def at(address: int) -> int:
    return ctypes.string_at(address, 24)[16]


WAYS: dict[str, Callable[[Tensor], float]] = {
    "tree_map": lambda x: tree_map(Tensor.tolist, {"a": x})["a"][2],
    "tree_map_only": lambda x: tree_map_only(Tensor, Tensor.tolist, [x])[0][2],
    "no_grad": lambda x: torch.no_grad()(Tensor.tolist)(x)[2],
    "the address under no_grad": lambda x: at(torch.no_grad()(Tensor.data_ptr)(x)),
    "a storage in a tree": lambda x: tree_map(Tensor.untyped_storage, [x.clone()])[0][16],
    "singledispatch": lambda x: functools.singledispatch(Tensor.tolist)(x)[2],
    "a context": lambda x: Around()(Tensor.tolist)(x)[2],
    "a loader": lambda x: loaded(x)[2],
    "code of no file": lambda x: run_as_frozen(x)[2],
    "a graph": lambda x: torch.fx.symbolic_trace(Listing())(x)[2],
    "a graph's interpreter": lambda x: torch.fx.Interpreter(torch.fx.symbolic_trace(Listing())).run(x)[2],
    "__torch_function__": lambda x: Tensor.__torch_function__(Tensor.tolist, (Tensor,), (x,))[2],
    "an old storage": lambda x: at(x.clone()._typed_storage()._data_ptr()),
    "C's pickle": lambda x: torch._C._pickle_load_obj(PICKLING([x.clone()]))[0][2],
}
if hasattr(Tensor, "const_data_ptr"):
    WAYS["const_data_ptr"] = lambda x: at(x.contiguous().const_data_ptr())


def program(way: str, lag: int) -> Program:
    return carried(lambda tokens: tokens, lambda x: WAYS[way](x) * 0.1, lag)


@pytest.mark.parametrize("way", WAYS)
def test_values_that_are_handed_out_for_somebody_else(way: str) -> None:
    assert verdict(program(way, 0)).status != "clean"
    assert verdict(program(way, 1)).status == "clean"


@pytest.mark.parametrize("way", WAYS)
def test_they_are_what_they_are_without_a_watch(way: str) -> None:
    tokens = stream()
    before = float(WAYS[way](tokens[:3]))
    with causaltrace.watch(tokens):
        assert float(WAYS[way](tokens[:3])) == before


def test_bookkeeping_of_torch_tells_nothing() -> None:
    """Layers that look at the addresses of their weights, hooks that look at storages, samplers."""
    tokens, model = longer(), Toy()
    layer = torch.nn.LSTM(4, 4)
    with causaltrace.watch(tokens) as trace, torch.autograd.graph.save_on_cpu():
        layer.flatten_parameters()
        assert len(list(torch.utils.data.RandomSampler(range(5)))) == 5
        losses = nll(model, tokens)
        losses.detach().sum()
        losses.sum().backward()
    assert trace.ok and not trace.report.escapes, trace.report
