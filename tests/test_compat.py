"""What causaltrace relies on in torch; a failure here says which part of torch changed."""

from __future__ import annotations

import gc
import weakref

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from causaltrace._compat import current_node, has_composite_kernel, is_fake, storage_of
from causaltrace.rules.linalg import ONE_BLOCK

HINT = f"torch {torch.__version__} changed: "


def test_one_storage_object_for_all_views() -> None:
    x = torch.zeros(4, requires_grad=True)
    views = (x.detach(), x.view(2, 2), x[1:], x.data)
    assert all(storage_of(v) is storage_of(x) for v in views), HINT + "a storage has several Python objects"
    assert storage_of(x.clone()) is not storage_of(x)


def test_storage_objects_live_as_long_as_their_owners() -> None:
    x = torch.zeros(4)
    kept = x[1:]
    ref = weakref.ref(storage_of(x))
    del x
    gc.collect()
    assert ref() is storage_of(kept), HINT + "a storage's Python object dies before its tensors"
    del kept
    gc.collect()
    assert ref() is None, HINT + "a storage's Python object outlives its tensors"


def test_the_autograd_engine_is_seen() -> None:
    seen: list[bool] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(current_node() is not None)
            return func(*args, **(kwargs or {}))

    x, grad = torch.ones(3, requires_grad=True), torch.ones(3)
    with Spy():
        y = x * 2
        forward = len(seen)
        y.backward(grad)
    assert not any(seen[:forward]), HINT + "a forward op looks like a backward one"
    assert len(seen) > forward and all(seen[forward:]), HINT + "backward ops are not seen as such"


def test_composites_are_told_from_kernels() -> None:
    aten = torch.ops.aten
    assert has_composite_kernel(aten.linear.default) and has_composite_kernel(aten.reshape.default)
    assert not has_composite_kernel(aten.mm.default) and not has_composite_kernel(aten.view.default)


def test_tensors_without_values_are_told() -> None:
    assert is_fake(torch.zeros(2, device="meta"))
    with FakeTensorMode():
        assert is_fake(torch.zeros(2))
    assert not is_fake(torch.zeros(2)) and not is_fake(torch.nn.Parameter(torch.zeros(2)))


def test_compiled_functions_run_eagerly_under_the_stance() -> None:
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        calls.append(1)
        return graph.forward

    torch._dynamo.reset()
    double = torch.compile(lambda x: x * 2, backend=backend)
    with torch.compiler.set_stance("force_eager"):
        double(torch.ones(2))
    assert not calls, HINT + "force_eager compiles"
    double(torch.ones(2))
    assert calls, HINT + "a function stays eager after the stance"


def test_a_small_cholesky_that_fails_keeps_the_columns_before() -> None:
    for n in (2, 5, ONE_BLOCK):
        a = torch.rand(n, n, dtype=torch.double)
        a = a @ a.T + n * torch.eye(n, dtype=torch.double)
        for at in {1, n // 2, n - 1} if torch.backends.mkl.is_available() else ():
            broken = a.clone()
            broken[at, at] = -9
            for upper in (False, True):
                whole, half = (torch.linalg.cholesky_ex(x, upper=upper).L for x in (a, broken))
                same = (whole == half)[:at] if upper else (whole == half)[:, :at]
                assert bool(same.all()), HINT + "a failed factorisation leaves other columns undone"
