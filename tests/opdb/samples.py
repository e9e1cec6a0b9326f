"""PyTorch's own test database as functions of tensors: forward, and backward where the op has one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from causaltrace.perturb import Truth

#: Elements of all inputs together.
LARGEST = 1 << 17
#: Ops that no perturbation can judge, with the reason.
EXCLUDED = {
    "empty": "uninitialised memory",
    "empty_like": "uninitialised memory",
    "empty_permuted": "uninitialised memory",
    "empty_strided": "uninitialised memory",
    "new_empty": "uninitialised memory",
    "new_empty_strided": "uninitialised memory",
    "item": "gives Python a number, no tensor",
    "equal": "gives Python a bool, no tensor",
    "allclose": "gives Python a bool, no tensor",
}
#: Ops whose kernels trust their whole numbers and read or write past the end: only floats are changed.
TRUSTING = (
    "_segment_reduce.lengths",
    "_segment_reduce.offsets",
    "linalg.ldl_solve",
    "linalg.lu_solve",
    "lu_solve",
    "nn.functional.ctc_loss",
)
#: Ops whose kernels make places of floats without a look: these stay finite.
PLACING = ("grid_sampler_2d", "grid_sampler_3d", "nn.functional.grid_sample")
_WHY = {
    "which row becomes a pivot is decided by values: whole columns are joined": (
        "lu lu_unpack lu_solve linalg.lu linalg.lu_factor linalg.lu_factor_ex linalg.lu_solve "
        "linalg.ldl_factor linalg.ldl_factor_ex linalg.ldl_solve"
    ),
    "backward is not told the windows: a gradient may go anywhere in the plane": (
        "nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d"
    ),
    "a gradient of the image may come from any place that the grid could point at": (
        "nn.functional.grid_sample grid_sampler_2d grid_sampler_3d"
    ),
    "Python checks that no variance is negative: all of them decide": "nn.functional.gaussian_nll_loss",
    "a number is drawn for each value below 0: all values decide what is drawn next": "nn.functional.rrelu",
    "too large to follow weight by weight: channels are joined": "nn.functional.conv_transpose3d",
    "how far the source is used up depends on all of the mask": "masked_scatter",
    "the gradient compares the result with self even where that is self": (
        "scatter_reduce.amax scatter_reduce.amin index_reduce.amax index_reduce.amin"
    ),
    "a zero that is added vouches for its index wherever that could point": "index_reduce.prod",
    "every bin reads every value and all borders": "histogram histogramdd histc",
    "a row of one element is its bias but for rounding, which differs between kernels": (
        "nn.functional.layer_norm native_layer_norm"
    ),
    "keys and values are joined row by row, also where a weight is 0 by underflow or by dropout, or 1": (
        "nn.functional.scaled_dot_product_attention nn.functional.multi_head_attention_forward"
    ),
    "all classes and steps of a sequence are joined": "nn.functional.ctc_loss",
    "a result is compared with the only element that it can be, which no rule knows": (
        "max.reduction_no_dim min.reduction_no_dim amax amin aminmax median nanmedian nanmean quantile "
        "nanquantile masked.amax masked.amin masked.norm"
    ),
    "parts that are 0 for reals, or by a sine that is": (
        "fft.hfft fft.hfft2 fft.hfftn fft.irfft fft.irfft2 fft.irfftn stft istft"
    ),
    "right-hand sides are scaled together": "linalg.lstsq linalg.lstsq.grad_oriented",
    "much cancels in the gradient of a factorisation": "qr linalg.qr linalg.pinv",
    "a tolerance of 1 leaves no rank": "linalg.matrix_rank",
    "how many there are is a shape that Python sees; rows that differ in one place are rarely met": (
        "unique unique_consecutive"
    ),
    "a mask of the only element": "masked.softmax masked.softmin masked.log_softmax",
    "a remainder by 1 is 0": "unravel_index",
    "some pairs show at very few inputs": (
        "nn.functional.max_pool2d max_pool2d_with_indices_backward nn.functional.max_pool3d "
        "nn.functional.max_unpool2d nn.functional.max_unpool3d mode nonzero_static "
        "nn.functional.adaptive_max_pool3d masked.argmax masked.argmin"
    ),
}
#: Why a rule is larger than the truth.
LARGER = {name: why for why, names in _WHY.items() for name in names.split()}


#: Parts of the names of ops that are given -inf for what is masked.
MASKED = ("softmax", "softmin", "logsumexp")


class Sample(NamedTuple):
    """One call. ``inputs`` are what is followed and perturbed: the tensors among the arguments, and for a
    backward pass the gradients that it starts from."""

    op: str
    number: int
    backward: bool
    fn: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    text: str
    numbers: tuple[float, ...] = ()  #: among the arguments

    def truth(self, inputs: tuple[Tensor, ...]) -> Truth:
        """Its results at, and around, some inputs."""
        masks = any(part in self.op for part in MASKED)
        return Truth(self.fn, inputs, numbers=self.numbers, masks=masks, finite=self.op in PLACING)


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def dtype_of(op: Any, wanted: torch.dtype | None = None) -> torch.dtype | None:
    """``wanted`` if the op takes it; without one float32, or the first dtype that the op takes."""
    usual = (torch.float32, torch.float64, torch.complex64, torch.int64, torch.bool, torch.bfloat16)
    order = usual if wanted is None else (wanted,)
    return next((d for d in order if op.supports_dtype(d, "cpu")), None)


def all_ops() -> dict[str, Any]:
    return {name_of(op): op for op in op_db}


def samples(
    name: str, op: Any, limit: int | None = None, wanted: torch.dtype | None = None
) -> Iterator[Sample]:
    """The op's samples, at most ``limit``; an op that a dtype is missing for has none."""
    dtype = dtype_of(op, wanted)
    if dtype is None or name in EXCLUDED:
        return
    torch.manual_seed(0)
    backward = op.supports_autograd and dtype.is_floating_point
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = iter(op.sample_inputs("cpu", dtype, requires_grad=backward))
    for number in range(10**6 if limit is None else limit):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sample = next(made, None)
        if sample is None:
            return
        given = (sample.input, sample.args, sample.kwargs)
        leaves, spec = tree_flatten(given)
        at = [i for i, v in enumerate(leaves) if isinstance(v, Tensor)]
        tensors = [leaves[i] for i in at]
        if name in TRUSTING:
            at = [i for i in at if leaves[i].is_floating_point()]
            tensors = [leaves[i] for i in at]
        if sample.kwargs.get("include_last_offset"):  # trusted to be how many indices there are
            at = [i for i in at if leaves[i] is not sample.kwargs["offsets"]]
            tensors = [leaves[i] for i in at]
        if any(t.layout != torch.strided or t.is_nested for t in tensors):
            continue
        if not tensors or sum(t.numel() for t in tensors) > LARGEST:
            continue
        if sample.kwargs.get("driver") == "gelsy":  # its pivots begin as uninitialised memory
            continue

        def call(*inputs: Tensor, leaves: list[Any] = leaves, at: list[int] = at, spec: Any = spec) -> Any:
            values = list(leaves)
            for i, t in zip(at, inputs, strict=True):
                values[i] = t
            first, args, kwargs = tree_unflatten(values, spec)
            torch.default_generator.manual_seed(0)  # torch.manual_seed looks for every other device first
            return op(first, *args, **kwargs)

        text = f"{name}({', '.join(_brief(v) for v in leaves)})"
        numbers = tuple(v for v in leaves if isinstance(v, float) and isfinite(v))
        yield Sample(name, number, False, call, tuple(t.detach() for t in tensors), text, numbers)
        if backward and (with_grads := _backward(call, tensors)) is not None:
            yield Sample(name, number, True, *with_grads, text + ".backward", numbers)


def _backward(
    call: Callable[..., Any], tensors: list[Tensor]
) -> tuple[Callable[..., Any], tuple[Tensor, ...]] | None:
    """The gradients of a call as a function of its inputs and of the gradients of its results."""
    wrt = [i for i, t in enumerate(tensors) if t.requires_grad]
    if not wrt:
        return None
    try:
        outs = _differentiable(call(*[t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]))
    except RuntimeError:  # refused on a copy: it reads memory around its input (as_strided of a view)
        return None
    if not outs:
        return None
    seeds = [torch.randn(o.shape, dtype=o.dtype) for o in outs]

    def fn(*inputs: Tensor) -> list[Tensor]:
        given = inputs[: len(tensors)]
        leaf = [t.detach().requires_grad_() if i in wrt else t for i, t in enumerate(given)]
        outs = _differentiable(call(*[t.clone() if t.requires_grad else t for t in leaf]))
        grads = torch.autograd.grad(outs, [leaf[i] for i in wrt], inputs[len(tensors) :], allow_unused=True)
        return [g for g in grads if g is not None]

    return fn, (*[t.detach() for t in tensors], *seeds)


def _differentiable(value: Any) -> list[Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.requires_grad]


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return repr(value)
