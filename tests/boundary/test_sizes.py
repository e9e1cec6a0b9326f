"""How many elements a mask chose is told as soon as anything can know it, and not before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.report.model import Report

CLASSES, LENGTH, CHUNK = 8, 48, 12


def caught(fn: Callable[[], Any]) -> float:
    try:
        fn()
    except (RuntimeError, ValueError, IndexError):
        return 1.0
    return 0.0


def saved(x: Any) -> int:
    file = io.BytesIO()
    pickle.dump(x, file)
    return file.tell()


def put(v: Tensor) -> Tensor:
    out = torch.zeros(64)
    out[: len(v)] = 1
    return out.sum()


@torch.jit.script
def scripted(v: Tensor) -> int:
    return v.size(0)


@torch.jit.script
def scripted_mask(v: Tensor) -> Tensor:
    return torch.ones(1) * v[v > -1.0].size(0)


TORCH: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda v: v.shape[0],
    "len": len,
    "size": lambda v: v.size(0),
    "sizes": lambda v: v.size()[0],
    "numel": lambda v: v.numel(),
    "nelement": lambda v: v.nelement(),
    "torch_numel": lambda v: torch.numel(v),
    "nbytes": lambda v: v.nbytes,
    "squeezed": lambda v: v.squeeze().ndim,
    "squeezed_dim": lambda v: v[:, None].squeeze().dim(),
    "stride": lambda v: v.expand(2, -1).clone().stride(0),
    "iteration": lambda v: sum(1 for _ in v),
    "unbind": lambda v: len(v.unbind()),
    "split": lambda v: len(v.split(1)),
    "chunk": lambda v: len(v.chunk(99)),
    "tensor_split": lambda v: v.tensor_split(2)[0].shape[0],
    "tolist": lambda v: len(v.tolist()),
    "ones_like": lambda v: torch.ones_like(v).sum(),
    "full_like": lambda v: torch.full_like(v, 2.0).sum(),
    "new_ones": lambda v: v.new_ones(v.shape).sum(),
    "expand_as": lambda v: torch.ones(1).expand_as(v).sum(),
    "broadcast_tensors": lambda v: torch.broadcast_tensors(torch.ones(1), v)[0].sum(),
    "broadcast_to": lambda v: torch.ones(1).broadcast_to(v.shape).sum(),
    "meshgrid": lambda v: torch.meshgrid(torch.ones(1), v, indexing="ij")[0].sum(),
    "view_as": lambda v: caught(lambda: torch.ones(3).view_as(v)),
    "reshape_as": lambda v: caught(lambda: torch.ones(3).reshape_as(v)),
    "zeroed": lambda v: v.zero_().add_(1).sum(),
    "zeroed_and_read": lambda v: v.zero_().shape[0],
    "finite": lambda v: v.isfinite().sum(),
    "constant": lambda v: (v * 0 + 1).sum(),
    "mean": lambda v: 1 / (v * 0 + 1).cumsum(0).mean().nan_to_num(9.0),
    "running": lambda v: (v * 0 + 1).cumsum(0).max() if caught(lambda: v[0]) == 0 else 0.0,
    "padded": lambda v: F.pad(v, (0, 2)).shape[0],
    "concatenated": lambda v: torch.cat([v, torch.ones(2)]).shape[0],
    "stacked": lambda v: torch.stack([v, v]).shape[1],
    "as_index": lambda v: torch.ones(3)[(v * 0).long()].sum(),
    "embedding": lambda v: F.embedding((v * 0).long(), torch.ones(3, 1)).sum(),
    "index_add": lambda v: torch.zeros(3).index_add(0, (v * 0).long(), torch.ones_like(v)).sum(),
    "bincount": lambda v: torch.bincount((v * 0).long(), minlength=2).sum(),
    "histc": lambda v: torch.histc(v * 0, 4, -1, 1).sum(),
    "product": lambda v: (v * 0 + 1) @ (v * 0 + 1),
    "outer": lambda v: torch.outer(torch.ones(2), v * 0 + 1).sum(),
    "sorted": lambda v: v.sort().values.shape[0],
    "unique": lambda v: v.unique().shape[0],
    "nonzero": lambda v: (v * 0 + 1).nonzero().shape[0],
    "masked_again": lambda v: v[v > -1].shape[0],
    "where": lambda v: torch.where(v > -1, 1.0, 0.0).sum(),
    "any": lambda v: float((v * 0 == 0).any()),
    "equal": lambda v: float(torch.equal(v * 0, torch.zeros(2))),
    "same_size": lambda v: float(v.is_same_size(torch.zeros(2))),
    "sliced": lambda v: v[:1].shape[0],
    "sliced_and_summed": lambda v: torch.ones_like(v[1:]).sum(),
    "viewed": lambda v: caught(lambda: v.view(2)),
    "added": lambda v: caught(lambda: v + torch.ones(2)),
    "resized": lambda v: torch.zeros(2).resize_as_(v).fill_(1).sum(),
    "into": lambda v: torch.neg(v, out=torch.zeros(0)).shape[0],
    "put_into": put,
    "copied": lambda v: v.clone().shape[0],
    "copied_deeply": lambda v: copy.deepcopy(v).shape[0],
    "detached": lambda v: v.detach().shape[0],
    "data": lambda v: v.data.shape[0],
    "cast": lambda v: v.double().half().shape[0],
    "transposed": lambda v: v[:, None].t().shape[1],
    "reshaped": lambda v: v.reshape(-1, 1).shape[0],
    "repeated": lambda v: v.repeat(2).shape[0],
    "parameter": lambda v: torch.nn.Parameter(v).shape[0],
    "pickled": saved,
    "text": lambda v: len(repr(v)),
    "storage": lambda v: v.untyped_storage().nbytes(),
    "typed_storage": lambda v: v.storage().size(),
    "numpy": lambda v: v.numpy().shape[0],
    "asarray": lambda v: np.asarray(v).size,
    "tensor_of_it": lambda v: v.new_tensor(v.numpy()).shape[0],
    "gradient": lambda v: torch.autograd.grad((v.requires_grad_() * 2).sum(), v)[0].sum(),
    "vmapped": lambda v: torch.vmap(lambda a: a * 0 + 1, in_dims=1)(v[:, None]).sum(),
    "mapped": lambda v: sum(map(len, [v])),
    "broadcast_shapes": lambda v: torch.broadcast_shapes(v.shape, (1,))[0],
    "dropped_out": lambda v: F.dropout(v * 0 + 1, 0.5, training=False).sum(),
    "log_softmax": lambda v: F.log_softmax(v * 0, 0).exp().shape[0],
    "softmax": lambda v: F.softmax(v * 0, 0).square().sum(),
    "item": lambda v: caught(lambda: v.item()),
    "boolean": lambda v: caught(lambda: bool(v)),
    "number": lambda v: caught(lambda: float(v)),
    "func_grad": lambda v: torch.func.grad(lambda a: a.sum() * a.shape[0])(v * 0 + 1).sum(),
    "func_jvp": lambda v: torch.func.jvp(lambda a: a * a.shape[0], (v,), (v,))[1].sum(),
    "set_wrongly": lambda v: caught(lambda: torch.zeros(5).__setitem__(slice(0, 3), v)),
    "scripted": scripted,
    "scripted_mask": scripted_mask,
    "random": lambda v: (torch.rand_like(v) * 0 + 1).sum(),
}
NUMPY: dict[str, Callable[[Any], Any]] = {
    "shape": lambda v: v.shape[0],
    "len": len,
    "size": lambda v: v.size,
    "nbytes": lambda v: v.nbytes,
    "ndim": lambda v: v.squeeze().ndim,
    "strides": lambda v: v[:, None].repeat(2, 1).T.copy().strides[0],
    "shape_of": lambda v: np.shape(v)[0],
    "size_of": lambda v: np.size(v),
    "iteration": lambda v: sum(1 for _ in v),
    "enumerate": lambda v: len(list(enumerate(v))),
    "tolist": lambda v: len(v.tolist()),
    "list": lambda v: len(list(v)),
    "flat": lambda v: len(list(v.flat)),
    "ones_like": lambda v: np.ones_like(v).sum(),
    "full_like": lambda v: np.full_like(v, 2).sum(),
    "zeros_like": lambda v: np.zeros_like(v).size,
    "empty_like": lambda v: np.empty_like(v).shape[0],
    "broadcast_to": lambda v: np.broadcast_to(np.ones(1), v.shape).sum(),
    "broadcast_arrays": lambda v: np.broadcast_arrays(np.ones(1), v)[0].sum(),
    "broadcast": lambda v: np.broadcast(np.ones(1), v).size,
    "constant": lambda v: (v * 0 + 1).sum(),
    "added_up": lambda v: np.add.reduce(v * 0 + 1),
    "running": lambda v: np.cumsum(v * 0 + 1).shape[0],
    "fill": lambda v: (v.fill(1), v.sum())[1],
    "written": lambda v: np.multiply(v, 0, out=v).shape[0],
    "finite": lambda v: np.isfinite(v).sum(),
    "counted": lambda v: np.count_nonzero(v * 0 == 0),
    "concatenated": lambda v: np.concatenate([v, np.ones(2)]).shape[0],
    "appended": lambda v: np.append(v, 1.0).size,
    "stacked": lambda v: np.stack([v, v]).shape[1],
    "padded": lambda v: np.pad(v, 1).size,
    "repeated": lambda v: np.repeat(v, 2).size,
    "tiled": lambda v: np.tile(v, 2).size,
    "split": lambda v: np.array_split(v, 2)[0].size,
    "as_index": lambda v: np.ones(3)[(v * 0).astype(int)].sum(),
    "taken": lambda v: np.ones(3).take((v * 0).astype(int)).sum(),
    "bincount": lambda v: np.bincount((v * 0).astype(int), minlength=2).sum(),
    "histogram": lambda v: np.histogram(v * 0, 4, (-1, 1))[0].sum(),
    "product": lambda v: (v * 0 + 1) @ (v * 0 + 1),
    "einsum": lambda v: np.einsum("i,i", v * 0 + 1, v * 0 + 1),
    "outer": lambda v: np.outer(np.ones(2), v * 0 + 1).sum(),
    "sorted": lambda v: np.sort(v).shape[0],
    "unique": lambda v: np.unique(v * 0).size,
    "nonzero": lambda v: np.nonzero(v * 0 + 1)[0].size,
    "masked_again": lambda v: v[v > -1].shape[0],
    "where": lambda v: np.where(v > -1, 1.0, 0.0).sum(),
    "any": lambda v: float((v * 0 == 0).any()),
    "equal": lambda v: float(np.array_equal(v * 0, np.zeros(2))),
    "sliced": lambda v: v[:1].shape[0],
    "reshaped": lambda v: caught(lambda: v.reshape(2)),
    "added": lambda v: caught(lambda: v + np.ones(2)),
    "copied": lambda v: v.copy().size,
    "copied_deeply": lambda v: copy.deepcopy(v).size,
    "array": lambda v: np.array(v).size,
    "list_of_it": lambda v: np.array([v]).size,
    "asarray": lambda v: np.asarray(v).size,
    "view": lambda v: v.view(np.ndarray).size,
    "bytes": lambda v: v.view(np.uint8).size,
    "cast": lambda v: v.astype(np.float32).size,
    "transposed": lambda v: v[:, None].T.shape[1],
    "pickled": saved,
    "text": lambda v: len(repr(v)),
    "buffer": lambda v: memoryview(v).nbytes,
    "tobytes": lambda v: len(v.tobytes()),
    "from_numpy": lambda v: torch.from_numpy(v).shape[0],
    "tensor": lambda v: torch.tensor(v).shape[0],
    "as_tensor": lambda v: torch.as_tensor(v).numel(),
    "dlpack": lambda v: torch.from_dlpack(v).numel(),
    "shuffled": lambda v: np.random.default_rng(0).permutation(v * 0 + 1).sum(),
    "drawn": lambda v: np.random.default_rng(0).normal(v * 0, 0).size,
    "vectorized": lambda v: np.vectorize(lambda a: 1.0, otypes=[float])(v).sum(),
    "applied": lambda v: np.apply_along_axis(len, 0, v).sum(),
    "nditer": lambda v: sum(1 for _ in np.nditer(v, flags=["zerosize_ok"])),
    "ndenumerate": lambda v: sum(1 for _ in np.ndenumerate(v)),
    "median": lambda v: 1 / np.median(np.arange(len(v)) + 1.0) if len(v) else 9.0,
    "boolean": lambda v: np.logical_and.reduce(v * 0 == 1),
    "maximum": lambda v: caught(lambda: v.max()),
    "interp": lambda v: np.interp(v * 0, [0.0, 1.0], [1.0, 2.0]).sum(),
    "digitize": lambda v: np.digitize(v * 0, [0.5]).shape[0],
    "mapped": lambda v: sum(map(len, [v])),
    "sizeof": lambda v: v.__sizeof__(),
    "flags": lambda v: v[:, None].repeat(2, 1).flags.f_contiguous,
    "shape_set": lambda v: caught(lambda: setattr(v, "shape", (2,))),
    "iterator": lambda v: len(list(iter(v))),
    "reversed": lambda v: len(list(reversed(v))),
    "zipped": lambda v: len(list(zip(v, range(99), strict=False))),
    "contained": lambda v: 1.0 in v * 0 + 1,
    "structured": lambda v: v.view([("a", v.dtype)]).size,
    "piecewise": lambda v: np.piecewise(v, [v > -1], [1.0]).sum(),
}


def judged(seen: Callable[[Any], Any], numbers: bool, threshold: int, nothing: bool = False) -> Report:
    """Each chunk is scored with a row that depends on ``seen`` of what a mask of its labels chooses; which
    labels that are says ``threshold``: none is below 0, some are below 4."""
    tokens = torch.randint(0, CLASSES, (LENGTH,), generator=torch.Generator().manual_seed(0))
    with causaltrace.watch(tokens) as trace:
        nats = torch.zeros(())
        for start in range(0, LENGTH, CHUNK):
            y = tokens[start : start + CHUNK]
            if numbers:
                v: Any = np.ones(len(y), np.float64)[y.numpy() > threshold]
            else:
                v = torch.ones(len(y))[y > threshold]
            n = 0.0 if nothing else seen(v)
            del v
            row = torch.zeros(CLASSES)
            row[0] = n if isinstance(n, Tensor) else float(n)
            nats += F.cross_entropy(row.expand(len(y), -1), y, reduction="sum")
    return trace.report


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("threshold", [3, 90], ids=["some", "none"])
@pytest.mark.parametrize("name", TORCH)
def test_a_size_of_a_tensor_is_told(name: str, threshold: int) -> None:
    assert judged(TORCH[name], False, threshold).status != "clean"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("threshold", [3, 90], ids=["some", "none"])
@pytest.mark.parametrize("name", NUMPY)
def test_a_size_of_an_array_is_told(name: str, threshold: int) -> None:
    assert judged(NUMPY[name], True, threshold).status != "clean"


@pytest.mark.parametrize("numbers", [False, True], ids=["torch", "numpy"])
def test_an_error_tells_of_a_size(numbers: bool) -> None:
    assert judged(lambda v: caught(lambda: v[0]), numbers, 90).status != "clean"


@pytest.mark.parametrize("numbers", [False, True], ids=["torch", "numpy"])
@pytest.mark.parametrize("threshold", [3, 90], ids=["some", "none"])
def test_a_size_that_nobody_asks_for_is_not(threshold: int, numbers: bool) -> None:
    assert judged(lambda v: None, numbers, threshold, nothing=True).status == "clean"
