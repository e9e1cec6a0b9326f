"""Where values leave torch for Python, numpy and files, and where host data come in.

Scalar reads (``item``, ``bool``, ``float``) and value-made shapes are operations and seen by the tracer.
The rest never reaches the dispatcher: for the duration of a watch the methods of ``torch.Tensor`` that
hand out memory or values, and the functions that make tensors from host data, tell the watch first.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from causaltrace._compat import CAPTURING
from causaltrace.boundary.bodies import unseen
from causaltrace.places import internal
from causaltrace.schema import SILENT, tensors
from causaltrace.tracer import Tracer

#: Methods that hand a tensor's values or memory to something that is not torch.
LEAVING = (
    "tolist",
    "numpy",
    "__array__",
    "__dlpack__",
    "data_ptr",
    "untyped_storage",
    "storage",
    "__reduce_ex__",
    "__cuda_array_interface__",
)
#: Functions that make tensors from Python or numpy data.
ENTERING = ("tensor", "as_tensor", "asarray", "from_numpy", "frombuffer", "from_dlpack")


class Host:
    """Patches on enter, restores on exit."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Host:
        for name in LEAVING:
            original = getattr(Tensor, name)
            if callable(original):
                self._replace(Tensor, name, self._leaving(name, original))
        for name in ENTERING:
            self._replace(torch, name, self._entering(getattr(torch, name)))
        self._replace(torch.nn.functional, "one_hot", self._range_checked(torch.nn.functional.one_hot))
        for module in CAPTURING:
            environment = module.setup_compilation_env
            self._replace(module, "setup_compilation_env", unseen(self.tracer, self, environment))
        for name, argument in SILENT.items():
            self._overheard(name, argument)
        hooks = (
            register_optimizer_step_pre_hook(self.tracer.step_begins),
            register_optimizer_step_post_hook(self.tracer.step_ends),
        )
        self._undo += [hook.remove for hook in hooks]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _replace(self, owner: Any, name: str, new: Callable[..., Any]) -> None:
        own = name in vars(owner)
        old = getattr(owner, name)
        setattr(owner, name, new)
        self._undo.append(lambda: setattr(owner, name, old) if own else delattr(owner, name))

    # -- leaving --------------------------------------------------------------------------------------

    def _leaving(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        tracer = self.tracer

        @functools.wraps(original)
        def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> Any:
            # torch's own bookkeeping is not an escape; pickling always is
            if name == "__reduce_ex__" or not internal(sys._getframe(1).f_code.co_filename):
                tracer.escape(name.strip("_"), t)
            return original(t, *args, **kwargs)

        return wrapper

    def _overheard(self, name: str, argument: int) -> None:
        """Autograd takes a composite apart before the tracer can see it: tell of it there."""
        _, packet, overload = name.split(".")
        op, tracer = getattr(getattr(torch.ops.aten, packet), overload), self.tracer

        def kernel(*args: Any, **kwargs: Any) -> Any:
            tracer.escape(packet, args[argument])
            return op.decompose(*args, **kwargs)

        library = torch.library.Library("aten", "IMPL")
        for key in ("AutogradCPU", "AutogradCUDA"):
            library.impl(f"{packet}.{overload}", kernel, key)
        self._undo.append(library._destroy)

    # -- entering -------------------------------------------------------------------------------------

    def _entering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        tracer = self.tracer

        @functools.wraps(original)
        def wrapper(data: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(data, *args, **kwargs)
            if not isinstance(data, Tensor):
                tracer.host_data(out, tensors(data))
            return out

        return wrapper

    def _range_checked(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """one_hot reads the smallest and largest index only to check them, unless it must count classes."""
        tracer = self.tracer

        @functools.wraps(original)
        def wrapper(tensor: Tensor, num_classes: int = -1) -> Tensor:
            if num_classes < 0:
                return original(tensor, num_classes)
            tracer.quiet += 1
            try:
                return original(tensor, num_classes)
            finally:
                tracer.quiet -= 1

        return wrapper
