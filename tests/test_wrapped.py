"""Programs inside wrappers: transforms, checkpoints, captured graphs, tensor subclasses, nested tensors.

Each wrapper runs the same mixing of rows, once causal and once not, against exhaustive flips.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import causaltrace
from tests.probe import CLASSES, Eval, flips, stream, watched

Mix = Callable[[Tensor], Tensor]
Wrapper = Callable[[Mix, Tensor], Tensor]

pytestmark = pytest.mark.filterwarnings("ignore")

DIM = 4
TABLE = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(DIM, CLASSES, generator=torch.Generator().manual_seed(1))
STARTS = torch.tensor([0, 5, 8])


def causal(h: Tensor) -> Tensor:
    return torch.tanh(h.cumsum(0))


def leaking(h: Tensor) -> Tensor:
    return torch.tanh(h.flip(0).cumsum(0).flip(0))


def program(wrapper: Wrapper, mix: Mix, grad: bool) -> Eval:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(grad):
            h = TABLE.clone().requires_grad_(grad)[tokens[:-1]]
            return wrapper(mix, h) @ HEAD, torch.arange(1, len(tokens))

    return run


# -- tensor subclasses ------------------------------------------------------------------------------------


class Named(Tensor):
    """A subclass that only overrides functions."""


class Holder(Tensor):
    """A wrapper with a handler of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Holder:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(t: Any) -> Any:
            return t.inner if isinstance(t, Holder) else t

        out = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        return tree_map(lambda t: Holder(t) if isinstance(t, Tensor) else t, out)


class Sized(Holder):
    """Torch asks this one for its device, by an operation that no dispatcher knows."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Sized:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, requires_grad=inner.requires_grad, dispatch_device=True
        )

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return torch.device("cpu")
        return super().__torch_dispatch__(func, types, args, kwargs)


def padded(mix: Mix, h: Tensor) -> Tensor:
    nested = torch.nested.nested_tensor_from_jagged(h, STARTS)
    rows = torch.nested.to_padded_tensor(nested, 0.0)
    again = torch.nested.nested_tensor_from_jagged(torch.cat((rows[0, :5], rows[1, :3])), STARTS)
    return mix(again.values())


def unbound(mix: Mix, h: Tensor) -> Tensor:
    nested = torch.nested.nested_tensor([h[:5], h[5:]], layout=torch.jagged)
    return mix(torch.cat((nested * 1.5).unbind()))


def layers(mix: Mix, h: Tensor) -> Tensor:
    nested = torch.nested.nested_tensor_from_jagged(h, STARTS)
    return mix(F.layer_norm((nested @ HEAD[:, :DIM]).relu() + nested, (DIM,)).values())


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, mix: Mix) -> Tensor:
        return mix(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def called(mix: Mix, h: Tensor) -> Tensor:
    weight = {"weight": torch.eye(DIM)}
    return torch.func.functional_call(nn.Linear(DIM, DIM, bias=False), weight, (mix(h),))


class Mixer(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, h: Tensor) -> Tensor:
        return self.mix(h)


WRAPPERS: dict[str, Wrapper] = {
    "checkpoint": lambda mix, h: checkpoint(mix, h, use_reentrant=False),
    "reentrant checkpoint": lambda mix, h: checkpoint(mix, h, use_reentrant=True),
    "compile": lambda mix, h: torch.compile(mix, backend="eager")(h),
    "region": lambda mix, h: torch.compiler.nested_compile_region(mix)(h),
    "autograd function": lambda mix, h: Identity.apply(h, mix),
    "vmap": lambda mix, h: torch.vmap(mix, in_dims=1, out_dims=1)(h),
    "jvp": lambda mix, h: torch.func.jvp(mix, (h,), (h,))[1],
    "jacfwd": lambda mix, h: torch.func.jacfwd(mix)(h).sum((2, 3)),
    "vjp": lambda mix, h: torch.func.vjp(mix, h)[0],
    "functional call": called,
    "traced": lambda mix, h: torch.fx.symbolic_trace(Mixer(mix))(h),
    "exported": lambda mix, h: torch.export.export(Mixer(mix), (h.detach(),)).module()(h),
    "map": lambda mix, h: torch._higher_order_ops.map(mix, h.t().contiguous()).t(),
    "cond": lambda mix, h: torch.cond(torch.tensor(True), mix, lambda h: h * 2, (h,)),
    "subclass": lambda mix, h: mix(h.as_subclass(Named)).as_subclass(Tensor),
    "wrapper": lambda mix, h: mix(Holder(h)).inner,
    "wrapper with a device": lambda mix, h: mix(Sized(h)).inner,
    "nested, unbound": unbound,
    "nested, layers": layers,
    "nested, padded": padded,
}
#: Captured or compiled in every run: flipped without gradients only.
SLOW = ("map", "cond", "exported", "compile")


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "grad"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_mixing(name: str, grad: bool) -> None:
    if grad and name in SLOW:
        pytest.skip("the same graphs")
    tokens = stream()
    for mix, status in ((causal, "clean"), (leaking, "violation")):
        run = program(WRAPPERS[name], mix, grad)
        found = watched(run, tokens)
        assert found.report.status == status, (name, found.report)
        assert found.seen == flips(run, tokens, replacements=1)
        with causaltrace.watch(tokens):
            again = run(tokens)[0]
        assert torch.equal(again, run(tokens)[0])


# -- what is not followed is never clean ------------------------------------------------------------------


def attended(mix: Mix, h: Tensor) -> Tensor:
    """Attention over nested tensors converts to the older layout on the host."""
    heads = torch.nested.nested_tensor_from_jagged(h.repeat(1, 2), STARTS).unflatten(-1, (2, DIM))
    q = heads.transpose(1, 2)
    return mix(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(-2).values()[:, :DIM])


def strided(mix: Mix, h: Tensor) -> Tensor:
    return mix(torch.cat((torch.nested.nested_tensor([h[:5], h[5:]]) * 2).unbind()))


@pytest.mark.parametrize("wrapper", [attended, strided])
def test_strided_nested_tensors_are_named(wrapper: Wrapper) -> None:
    tokens = stream()
    for grad in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = watched(program(wrapper, leaking, grad), tokens)
        assert found.report.status == "unverified" and found.report.opaque, found.report
