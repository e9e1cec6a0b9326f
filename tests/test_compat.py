"""What causaltrace relies on in torch; a failure here says which part of torch changed."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._ops import _higher_order_ops
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from causaltrace import higher
from causaltrace._compat import (
    CAPSULE,
    CAPSULES,
    CAPTURING,
    DTYPES,
    FINDING,
    HARMLESS_MODES,
    STRIDED,
    TEXT,
    UNSEEING,
    CustomOp,
    Operator,
    attributes,
    current_node,
    eager_form,
    guards,
    has_composite_kernel,
    has_own_kernel,
    held_by,
    hides_python,
    is_fake,
    is_wrapped,
    modes,
    optimized,
    owners,
    run,
    siblings,
    storage_of,
    unseen_by_modes,
)
from causaltrace.higher import FORMS
from causaltrace.rules.linalg import ONE_BLOCK
from causaltrace.static.branches import DIFFERENTIABLE

HINT = f"torch {torch.__version__} changed: "


def test_a_storage_knows_how_many_hold_it() -> None:
    x = torch.zeros(4)
    before = owners(storage_of(x))
    view = x.view(2, 2)
    assert owners(storage_of(x)) == before + 1, HINT + "views do not count as owners of a storage"
    del view
    assert owners(storage_of(x)) == before


@pytest.mark.parametrize("make", [torch.tensor, torch.LongTensor, torch.ones(1, dtype=torch.int64).new])
def test_torch_reads_sequences_of_tensors_out_of_sight(make: Callable[[Any], Tensor]) -> None:
    """One by one and in order, by methods that Python can replace; then it lifts what it made."""
    seen: list[Any] = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.tensor([5, 6])
    parts, read = [x[1], x[0]], Tensor.__index__

    def reading(t: Tensor) -> int:
        seen.append((t, unseen_by_modes()))
        return read(t)

    with pytest.MonkeyPatch.context() as patch, Looking():
        patch.setattr(Tensor, "__index__", reading)
        assert not unseen_by_modes()
        made = make(parts)
    assert made.tolist() == [6, 5]
    assert [s[0] is p and s[1] for s, p in zip(seen[:2], parts, strict=True)] == [True, True], HINT
    assert seen[2:] == [torch.ops.aten.lift_fresh.default], HINT + "lists are lifted by something else"


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


def test_fake_tensors_are_told() -> None:
    with FakeTensorMode():
        assert is_fake(torch.zeros(2))
    assert not is_fake(torch.zeros(2)) and not is_fake(torch.nn.Parameter(torch.zeros(2)))


def test_modes_that_only_count_have_these_names() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False):
        kinds = [type(mode) for mode in modes()]
    assert {f"{k.__module__}.{k.__qualname__}" for k in kinds} == set(HARMLESS_MODES), HINT


def test_these_switch_modes_off_whatever_they_are_given() -> None:
    off, on = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in ("Python", "CPU"))
    assert hides_python(()) and hides_python((off,)) and not hides_python((on,)), HINT
    assert all(map(callable, UNSEEING))


def test_scripted_modules_say_what_they_hold() -> None:
    class Holding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.register_buffer("kept", torch.ones(3))
            self.plain = [torch.ones(4)]
            self.inner = torch.nn.Linear(1, 1)

        def forward(self) -> Tensor:
            return self.weight.sum() + self.kept.sum() + self.plain[0]

    values, (inner,) = attributes(torch.jit.script(Holding())._c)
    sizes = {len(v) for v in values if isinstance(v, Tensor)}
    (plain,) = (v for v in values if isinstance(v, list))
    assert sizes == {2, 3} and len(plain[0]) == 4 and isinstance(inner, torch._C.ScriptModule), HINT


def test_scripts_are_compiled_by_these() -> None:
    owner, name = FINDING
    assert getattr(owner, name)(torch.tensor) == "aten::tensor", HINT
    with optimized(False):
        assert not torch._C._get_graph_executor_optimize(), HINT


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


def test_custom_ops_have_an_overload() -> None:
    @torch.library.custom_op("ct_compat::op", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    assert isinstance(op, CustomOp), HINT + "custom_op makes something else"
    assert op._opoverload is torch.ops.ct_compat.op.default, HINT + "a custom op hides its operator"


def test_higher_order_operators_have_a_signature() -> None:
    cond = torch.ops.higher_order.cond
    names = list(inspect.signature(type(cond).__call__).parameters)
    assert names == ["self", "pred", "true_fn", "false_fn", "operands"], HINT + "cond takes other arguments"
    assert f"{cond.namespace}.{cond}" == "higher_order.cond", (
        HINT + "higher-order operators are named otherwise"
    )


def test_questions_about_tensors_are_no_kernels() -> None:
    """``prim::device`` and the like reach a mode, and no question about kernels may be asked of them."""
    question = torch.ops.prim.device.default
    assert not has_composite_kernel(question)
    assert not has_own_kernel(torch.ops.aten.repeat_interleave.self_int)
    assert has_own_kernel(torch.ops.aten.mm.default)
    names = {f._overloadname for f in siblings(torch.ops.aten.repeat_interleave.self_int)}
    assert names == {"Tensor", "self_Tensor", "self_int"}, HINT + "repeat_interleave has other overloads"


def test_wrappers_tell_what_they_hold() -> None:
    nested = torch.nested.nested_tensor_from_jagged(torch.ones(3, 2), torch.tensor([0, 1, 3]))
    assert any(t is nested._values for t in held_by(nested)) and not held_by(torch.ones(2))


def test_higher_order_operations_have_eager_forms() -> None:
    for name, form in FORMS.items():
        if form in (higher._eager, higher._while):
            assert callable(eager_form(_higher_order_ops[name])), HINT + f"{name} has no eager form"
    assert all(hasattr(module, "setup_compilation_env") for module in CAPTURING)


def test_bodies_are_captured_with_a_backend_of_that_name() -> None:
    with CAPTURING[0].setup_compilation_env() as backend:
        assert backend.__name__ == "eager", HINT + "bodies are captured with another backend"


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


def test_all_text_of_tensors_is_made_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*TEXT, lambda t, **_: "text")
    t = torch.ones(2)
    assert str(t) == repr(t) == f"{t}" == "text" and "text" in repr(torch.nn.Parameter(t))


def test_wrappers_of_transformations_are_told() -> None:
    seen: list[bool] = []
    torch.vmap(lambda t: (seen.append(is_wrapped(t)), t)[1])(torch.ones(2))
    assert seen == [True] and not is_wrapped(torch.ones(2)), HINT + "is_functorch_wrapped_tensor"


def test_capsules_are_made_of_tensors() -> None:
    assert all(CAPSULE(make(torch.ones(2))).sum() == 2 for make in CAPSULES)
    assert torch.to_dlpack in CAPSULES and torch.utils.dlpack.to_dlpack in CAPSULES


def test_types_have_short_names() -> None:
    assert DTYPES[torch.float32] == "f32" and DTYPES[torch.int64] == "i64", HINT + "types are named otherwise"


def test_exports_keep_their_conditions() -> None:
    class Even(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._check(x.shape[0] % 2 == 0)
            return x + 1

    program = torch.export.export(Even(), (torch.ones(4),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    known = [[], ["(L['x'].size()[0] % 2) == 0"]]  # older versions keep none
    assert guards(program) in known, HINT + "conditions of an export are written otherwise"


def test_operators_that_call_functions_are_dispatched_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    monkeypatch.setattr(
        Operator, "__call__", lambda op, *args, **kwargs: met.append((op.name(), args, kwargs))
    )
    body, x = (lambda *args: args), torch.zeros(2)
    operators = torch.ops.higher_order
    operators.cond(x.sum() > 0, body, body, (x,))
    operators.while_loop(body, body, (x,), ())
    operators.scan(body, [x], [x], ())
    operators.associative_scan(body, [x], ())
    operators.map_impl(body, [x], [])
    assert [name for name, _, _ in met] == [*DIFFERENTIABLE], HINT + "operators are dispatched elsewhere"
    assert met[0][1] == (met[0][1][0], body, body, (x,)) and not any(kwargs for _, _, kwargs in met)


def test_strided_views_know_what_they_are_views_of() -> None:
    a = np.arange(4)
    between = np.lib.stride_tricks.as_strided(a[1:], (2,), (8,)).base
    assert isinstance(between, STRIDED) and between.base.base is a, HINT + "strided views have another base"


def test_views_require_grad_below_a_mode_as_above_it() -> None:
    """In inference mode, and only there, torch leaves the key that says so to what a mode calls."""
    weight = torch.ones(2, 3, requires_grad=True)
    found: list[bool] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.append(run(weight.t).requires_grad)
            return func(*args, **(kwargs or {}))

    with torch.inference_mode(), Mode():
        torch.ones(1)
    assert found == [True], HINT + "views of parameters need another key to require grad"
