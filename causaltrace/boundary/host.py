"""Where values leave torch for Python, numpy and files, and where host data come in.

Scalar reads (``item``, ``bool``, ``float``) and value-made shapes are operations and seen by the tracer.
The rest never reaches the dispatcher: for the duration of a watch the methods of ``torch.Tensor`` that
hand out memory or values, and the functions that make tensors from host data, tell the watch first.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import CAPTURING, SHARING, decompose
from causaltrace.boundary import numpy, slots
from causaltrace.boundary.arrays import arrays_in, bare
from causaltrace.boundary.bodies import unseen
from causaltrace.boundary.outside import Outside
from causaltrace.boundary.threads import STARTING
from causaltrace.places import internal
from causaltrace.replaced import replaced
from causaltrace.schema import CHECKING, SILENT, only_checks, tensors
from causaltrace.tracer import Tracer

#: Methods that hand a tensor's values or memory to something that is not torch.
LEAVING = (
    "tolist",
    "__dlpack__",
    "data_ptr",
    "untyped_storage",
    "storage",
    "__reduce_ex__",
    "apply_",
    "map_",
    "map2_",
    "q_scale",
    "q_zero_point",
    "__repr__",
    "__format__",
)
#: Those whose result is good for writing, too, and as long as the tensor lives.
POINTERS = ("__dlpack__", "data_ptr", "untyped_storage", "storage", "apply_", "map_", "map2_")
#: Hands out memory that another library may read and write.
CAPSULE = torch._C._to_dlpack
#: Functions that make tensors from Python or numpy data.
ENTERING = ("tensor", "as_tensor", "asarray", "from_numpy")
#: Those whose result shares its memory with something that is not torch.
SHARED = ("frombuffer", "from_dlpack", "from_file")
#: Ways to copy this process.
FORKING = ("fork", "forkpty")


class Host:
    """Patches on enter, restores on exit."""

    def __init__(self, tracer: Tracer, outside: Outside) -> None:
        self.tracer, self.outside = tracer, outside
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Host:
        known: dict[int, Any] = {}  #: what was looked up before, by any name
        base: dict[str, Any] = {}
        for name in LEAVING:
            original = getattr(Tensor, name)
            known[id(original)] = leaving = self._leaving(name, original)
            self._replace(Tensor, name, leaving)
            if name in vars(torch._C.TensorBase):
                base[name] = leaving
        interface = self._leaving("data_ptr", vars(Tensor)["__cuda_array_interface__"].fget)
        self._replace(Tensor, "__cuda_array_interface__", property(interface))
        self._replace(Tensor, "__deepcopy__", self._copying(Tensor.__deepcopy__))
        for name in ENTERING:
            known[id(getattr(torch, name))] = self._entering(getattr(torch, name))
        self._replace(Tensor, "new_tensor", self._entering(Tensor.new_tensor, 1))
        for name in SHARED:
            known[id(getattr(torch, name))] = self._sharing(getattr(torch, name))
        known[id(CAPSULE)] = self._leaving("__dlpack__", CAPSULE)
        for name in SHARING:
            self._replace(torch.UntypedStorage, name, self._giving(name))
        for name in FORKING:
            if hasattr(os, name):
                self._replace(os, name, self._forking(name))
        for owner, name, starting in STARTING:
            self._replace(owner, name, starting(self.tracer, getattr(owner, name)))
        for module in CAPTURING:
            environment = module.setup_compilation_env
            self._replace(module, "setup_compilation_env", unseen(self.tracer, self, environment))
        for name, argument in SILENT.items():
            self._overheard(name, argument)
        for name in CHECKING:
            self._hushed(name)
        self._undo += numpy.enter(self.tracer, self._replace, known)
        base["numpy"] = Tensor.numpy
        self._undo.append(slots.patched(torch._C.TensorBase, base))
        seeding = self._seeding(torch.Generator.set_state)
        self._undo.append(slots.patched(torch.Generator, {"set_state": seeding}))
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

    def _replace(self, owner: Any, name: str, new: object) -> None:
        self._undo.append(replaced(owner, name, new))

    # -- leaving --------------------------------------------------------------------------------------

    def _leaving(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        tracer, outside = self.tracer, self.outside

        @functools.wraps(original)
        def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> Any:
            # torch's own bookkeeping is not an escape; pickling always is
            if name == "__reduce_ex__":
                tracer.seek(t)
                outside.saved(t)
            elif internal(sys._getframe(1).f_code.co_filename):
                return original(t, *args, **kwargs)
            tracer.seek(t)
            if name in POINTERS:
                outside.opened(t)
            for read in [t, *tensors(args)]:
                tracer.escape(name.strip("_"), read)
            return original(t, *args, **kwargs)

        return wrapper

    def _copying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(t: Tensor, memo: dict[int, Any]) -> Any:
            known = id(t) in memo
            self.tracer.seek(t)
            out = original(t, memo)
            if not known:
                self.outside.copied(t, out)
            return out

        return wrapper

    def _seeding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A generator keeps its state outside torch."""

        def wrapper(generator: torch.Generator, state: Tensor) -> Any:
            self.tracer.escape("the state of a generator", state)
            return original(generator, state)

        return wrapper

    def _giving(self, name: str) -> Callable[..., Any]:
        original = getattr(torch.UntypedStorage, name)

        @functools.wraps(original)
        def wrapper(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
            self.outside.shared("memory that processes share", storage)
            return original(storage, *args, **kwargs)

        return wrapper

    def _forking(self, name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        @functools.wraps(original)
        def wrapper() -> Any:
            self.outside.forked(f"os.{name}")
            return original()

        return wrapper

    def _overheard(self, name: str, argument: int) -> None:
        """A composite that reads an argument without an operation: tell of it there."""
        tracer, packet = self.tracer, name.split(".")[1]

        def kernel(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tracer.escape(packet, args[argument])
            return decompose(op, args, kwargs)

        self._takes_apart(name, kernel)

    def _hushed(self, name: str) -> None:
        """A composite that reads values only to check them, whichever name it was imported by."""
        tracer = self.tracer

        def kernel(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hushed, failed = only_checks(name, args, kwargs), False
            tracer.quiet += hushed
            try:
                return decompose(op, args, kwargs)
            except Exception:  # whoever catches it knows something about the values
                failed = True
                raise
            finally:
                tracer.quiet -= hushed
                for t in tensors((*args, *kwargs.values())) if failed else ():
                    tracer.escape(f"an error in {name}", t)

        self._takes_apart(name, kernel)

    def _takes_apart(self, name: str, kernel: Callable[..., Any]) -> None:
        """Autograd takes composites apart before the tracer can see them: ``kernel`` does it instead."""
        _, packet, overload = name.split(".")
        op = getattr(getattr(torch.ops.aten, packet), overload)
        library = torch.library.Library("aten", "IMPL")
        spelt = packet if overload == "default" else f"{packet}.{overload}"
        for key in ("AutogradCPU", "AutogradCUDA"):
            library.impl(spelt, lambda *args, **kwargs: kernel(op, args, kwargs), key)
        self._undo.append(library._destroy)

    # -- entering -------------------------------------------------------------------------------------

    def arrays_in(self, out: Any, data: Any) -> None:
        """A tensor was made from arrays, numbers and tensors."""
        arrays, tracer = numpy.current(), self.tracer
        found = [a for a in arrays_in(data) if not isinstance(a, Tensor)]
        with _disable_current_modes():
            if not isinstance(out, Tensor) or tracer.memory.known(out):
                return
            if isinstance(data, np.ndarray):
                shadow = arrays.read(data)
                if shadow is not None:
                    after = arrays.follow("torch.tensor", "_to_copy", {"self": data}, [data])
                    tracer.memory.write(out, after.shadows[0] if after else None)
                    return
        tracer.host_data(out, tensors(data) + [arrays.tensor(x) for x in found])

    def _entering(self, original: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        """``place``: of the data among the arguments."""

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            out = original(*bare(args), **bare(kwargs))
            data = args[place] if place < len(args) else kwargs.get("data", kwargs.get("obj"))
            if not isinstance(data, Tensor):
                self.arrays_in(out, data)
            return out

        return wrapper

    def _sharing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        outside = self.outside

        @functools.wraps(original)
        def wrapper(data: Any, *args: Any, **kwargs: Any) -> Any:
            out = original(data, *args, **kwargs)
            if isinstance(data, Tensor):
                outside.aliased(data, out)
            else:
                outside.adopted(out)
                outside.opened(out)
            return out

        return wrapper
