"""Private torch names, in one place. Each has a contract test in ``tests/test_compat.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._library.custom_ops import CustomOpDef
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.nn.attention import flex_attention
from torch.utils import _python_dispatch

#: The Python object of a tensor's storage: the same for all views, alive as long as any owner is.
storage_of = torch._C.TensorBase.untyped_storage
_data_ptr = torch.UntypedStorage.data_ptr
#: A tensor as an array, whatever a watch does to ``Tensor.numpy``.
as_numpy = torch.Tensor.numpy


def data_ptr(storage: torch.UntypedStorage) -> int:
    """The address of a storage, whatever a watch does to ``Tensor.data_ptr``; 0 if it has no memory, as the
    zeros that forward derivatives begin with."""
    try:
        return _data_ptr(storage)
    except RuntimeError:
        return 0


def extent(storage: torch.UntypedStorage) -> tuple[torch.UntypedStorage, int, int]:
    """A storage, its address, and its bytes."""
    return storage, data_ptr(storage), storage.nbytes()


def owners(storage: torch.UntypedStorage) -> int:
    """How many hold it: its Python object, and the tensors on it."""
    return int(torch._C._storage_Use_Count(storage._cdata))


#: The autograd node that is running; None outside a backward pass.
current_node = torch._C._current_autograd_node

#: An operator that calls functions. Its ``__call__`` is where it is dispatched.
Operator = HigherOrderOperator

#: What ``torch.library.custom_op`` makes; ``_opoverload`` is its operator.
CustomOp = CustomOpDef


def _known(func: torch._ops.OpOverload) -> bool:
    """Questions about tensors (``prim::device``) come as ops that the dispatcher has never heard of."""
    return torch._C._dispatch_has_kernel(func.name())


#: The dispatch key of ops that are made of others. ``func.py_kernels`` may hold more, for compilers.
COMPOSITE = "CompositeImplicitAutograd"


def has_composite_kernel(func: torch._ops.OpOverload) -> bool:
    """Would autograd have decomposed this op before it reached the dispatch mode?"""
    return _known(func) and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)


def decompose(func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The composite kernel that torch itself would run. ``func.decompose`` prefers a decomposition written in
    Python for compilers, whose results may differ (torch 2.11: the states of an LSTM have another shape)."""
    return run(func._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def run(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """A composite below a mode, as torch runs it above: in inference mode views of parameters require grad,
    which ``matmul`` goes by, but where a mode has excluded the key that says so they do not."""
    if not torch.is_inference_mode_enabled():
        return func(*args, **kwargs)
    key = torch._C.DispatchKey.ADInplaceOrView
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, excluded)


def has_own_kernel(func: torch._ops.OpOverload) -> bool:
    """Does a backend run this op as it is?"""
    keys = ("CPU", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) for key in keys)


def python_kernel(func: torch._ops.OpOverload, devices: list[str]) -> Callable[..., Any] | None:
    """What runs an op, given tensors on these devices, where that is a function in Python; modes see what
    it does."""
    if not _known(func):
        return None
    schema = func._schema
    name = schema.name.replace("::", "/") + (f".{schema.overload_name}" if schema.overload_name else "")
    for key in (*(device.upper() for device in devices), COMPOSITE, "CompositeExplicitAutograd"):
        if f"{name}/{key}" in torch.library._impls:
            return functools.partial(func._op_dk, getattr(torch._C.DispatchKey, key))
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            return None
    return None


def siblings(func: torch._ops.OpOverload) -> list[torch._ops.OpOverload]:
    """The overloads of an op that make their results, and that the dispatcher knows."""
    packet = func.overloadpacket
    found = [getattr(packet, name) for name in packet.overloads() if not name.endswith("out")]
    return [f for f in found if _known(f)]


def is_fake(t: Tensor) -> bool:
    """A tensor that torch only works out sizes with."""
    return type(t) is not Tensor and hasattr(t, "fake_mode")


#: The innermost dispatch mode, all of this thread's, and a context in which it is off.
current_mode = _python_dispatch._get_current_dispatch_mode
modes = _python_dispatch._get_current_dispatch_mode_stack
without_top_mode = _python_dispatch._pop_mode_temporarily


#: Modes that only count, or work out sizes: what their handlers do makes no values.
HARMLESS_MODES = (
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch.utils.flop_counter._FlopCounterMode",
)

#: What switches modes off.
UNSEEING: tuple[Callable[..., Any], ...] = (
    _python_dispatch._disable_current_modes,
    _python_dispatch._pop_mode_temporarily,
    _python_dispatch._pop_mode,
    torch._C._pop_torch_dispatch_stack,
    torch._C._DisableTorchDispatch,
    torch._C._ExcludeDispatchKeyGuard,
)


def hides_python(args: tuple[Any, ...]) -> bool:
    """Are modes off in what these are arguments of? Only where keys are named may they be others."""
    keys = [a for a in args if isinstance(a, torch._C.DispatchKeySet)]
    return not keys or any(k.has(torch._C.DispatchKey.Python) for k in keys)


def unseen_by_modes() -> bool:
    """Is torch in code of its own, the operations of which no mode sees?"""
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.Python)


#: The class, written in C, that ``Tensor`` has its methods from.
TensorBase = torch._C.TensorBase

#: Where the text of every tensor is made.
TEXT: tuple[ModuleType, str] = (torch._tensor_str, "_str")

#: Is it a wrapper of a transformation (``vmap``, ``grad``), which has no memory of its own and may be over?
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor

#: Functions that make DLPack capsules of tensors, and the one that makes tensors of them.
CAPSULES = tuple(
    getattr(torch._C, name) for name in ("_to_dlpack", "_to_dlpack_versioned") if hasattr(torch._C, name)
)
CAPSULE = torch._C._from_dlpack

#: The function that pickles without Python.
PICKLING = torch._C._pickle_save

#: Functions that ``torch.jit`` made, and the class of its modules.
SCRIPTED = (torch._C.ScriptFunction, torch._C.ScriptMethod)
ScriptModule = torch._C.ScriptModule
#: Where the compiler of these looks up torch's own functions.
FINDING: tuple[ModuleType, str] = (torch.jit._builtins, "_find_builtin")
#: Given False, a context in which they run as they are, unless torch has compiled them before.
optimized: Callable[[bool], AbstractContextManager[None]] = vars(torch.jit)["optimized_execution"]


def attributes(module: Any) -> tuple[list[Any], list[Any]]:
    """The values that a scripted module holds, and the modules in it."""
    kind: Any = torch._C.ConcreteModuleType.from_jit_type(module._type())
    names, modules = list(kind.get_attributes()), [name for name, _ in kind.get_modules()]
    return list(map(module.getattr, names)), list(map(module.getattr, modules))


#: Modules that hold the environment in which bodies of higher-order operations are captured.
CAPTURING: tuple[ModuleType, ...] = (torch._higher_order_ops.utils, flex_attention)


def eager_form(op: HigherOrderOperator) -> Callable[..., Any]:
    """What a higher-order operation runs when nothing transforms it."""
    kernel: Callable[..., Any] = op.py_kernels[torch._C.DispatchKey.CompositeExplicitAutograd]
    return kernel


def held_by(t: Tensor) -> list[Tensor]:
    """The tensors that a wrapper subclass (DTensor, NestedTensor) holds; none for others."""
    if not _python_dispatch.is_traceable_wrapper_subclass(t):
        return []
    names, _ = t.__tensor_flatten__()
    return [getattr(t, name) for name in names]


def fakes() -> FakeTensorMode:
    """A mode for trying out a function without values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def unfaked() -> tuple[type[Exception], ...]:
    """What fake tensors raise where a result depends on values."""
    from torch._subclasses import fake_tensor as f

    return (f.DataDependentOutputException, f.DynamicOutputShapeException, f.UnsupportedOperatorException)


#: Short names of types, as listings of graphs print them: "f32".
DTYPES: dict[torch.dtype, str] = vars(fx.graph)["dtype_abbrs"]


def serialized(kind: str) -> dict[int, Any]:
    """What the numbers in an exported program's JSON stand for."""
    from torch._export.serde import serialize as s

    tables = {
        "as_scalar_type": s._SERIALIZE_TO_TORCH_DTYPE,
        "as_layout": s._SERIALIZE_TO_TORCH_LAYOUT,
        "as_memory_format": s._SERIALIZE_TO_TORCH_MEMORY_FORMAT,
    }
    return {int(number): value for number, value in tables[kind].items()}


def guards(program: ExportedProgram) -> list[str]:
    """The conditions on sizes that an export found, as Python; older versions of torch keep none."""
    return list(getattr(program, "_guards_code", None) or [])


#: What ``as_strided`` puts between an array and the one that it is a view of.
STRIDED: Any = np.lib._stride_tricks_impl.DummyArray

#: Methods of storages that put them where other processes can write them.
SHARING = ("_share_fd_cpu_", "_share_filename_cpu_", "_share_cuda_")
