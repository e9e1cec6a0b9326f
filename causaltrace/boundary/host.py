"""Where values leave torch for Python, numpy and files, and where host data come in.

Scalar reads (``item``, ``bool``, ``float``) and value-made shapes are operations and seen by the tracer.
The rest never reaches the dispatcher: for the duration of a watch the methods of ``torch.Tensor`` that
hand out memory or values, and the functions that make tensors from host data, tell the watch first. They are
replaced under every name that a module has for them.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import _disable_current_modes

from causaltrace._compat import (
    CAPSULE,
    CAPSULES,
    CAPTURING,
    PICKLING,
    SHARING,
    TEXT,
    TensorBase,
    is_fake,
    is_wrapped,
)
from causaltrace.boundary import numpy, scripted, sight, sizes, slots
from causaltrace.boundary.arrays import arrays_in, bare
from causaltrace.boundary.bodies import unseen
from causaltrace.boundary.elements import READING, Elements
from causaltrace.boundary.outside import Outside
from causaltrace.boundary.plain import Plain
from causaltrace.boundary.processes import FORKING, Processes
from causaltrace.boundary.threads import FUNCTIONS, STARTING, function_starts
from causaltrace.higher import leaves
from causaltrace.places import bookkeeping
from causaltrace.replaced import replaced
from causaltrace.schema import CHECKING, SILENT, tensors
from causaltrace.tracer import Tracer

#: What ``copy.copy`` runs: it takes the parts of a tensor and puts another one together.
SHALLOW = copy.copy.__code__
#: Methods that hand a tensor's values or memory to something that is not torch.
LEAVING = ("tolist", "apply_", "map_", "map2_", "__reduce_ex__")
#: Those whose result is good for writing, too, and as long as the tensor lives; some are new.
POINTERS = ("__dlpack__", "data_ptr", "const_data_ptr", "untyped_storage", "_typed_storage", "storage")
#: Functions that make tensors from Python or numpy data.
ENTERING = ("tensor", "as_tensor", "asarray", "from_numpy")
#: Those whose result shares its memory with something that is not torch.
SHARED = ("frombuffer", "from_dlpack", "from_file")
#: Methods of generators that take a state as a tensor.
STATES = ("set_state", "__setstate__")


def _is_memory(t: Tensor) -> bool:
    """Is there nothing to a tensor but its memory and its geometry?"""
    return type(t) is Tensor and t.layout is torch.strided and not t.is_quantized


class Host:
    """Patches on enter, restores on exit. ``note``: tells the report of what runs out of sight."""

    def __init__(self, tracer: Tracer, outside: Outside, note: sight.Note | None = None) -> None:
        self.tracer, self.outside, self.note = tracer, outside, note
        self._undo: list[Callable[[], None]] = []
        self._names: dict[int, Callable[..., Any]] = {}  #: what takes the place of functions, by their ids

    def __enter__(self) -> Host:
        try:
            self._enter()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _enter(self) -> None:
        for name in (*LEAVING, *POINTERS):
            if hasattr(Tensor, name):
                self._replace(Tensor, name, self._leaving(name, getattr(Tensor, name)))
        interface = self._leaving("data_ptr", vars(Tensor)["__cuda_array_interface__"].fget)
        self._replace(Tensor, "__cuda_array_interface__", property(interface))
        self._replace(Tensor, "__deepcopy__", self._copying(Tensor.__deepcopy__))
        self._replace(*TEXT, self._shown(getattr(*TEXT)))
        elements = Elements(self.tracer)
        self.tracer.lifted = elements.made
        for name in READING:
            self._replace(Tensor, name, elements.reading(getattr(Tensor, name)))
        for name in ENTERING:
            self._rename(getattr(torch, name), self._entering)
        self._replace(Tensor, "new_tensor", self._entering(Tensor.new_tensor, 1))
        for name in SHARED:
            self._rename(getattr(torch, name), self._sharing)
        for function in CAPSULES:
            self._rename(function, functools.partial(self._leaving, "__dlpack__"))
        self._rename(CAPSULE, self._adopting)
        self._rename(PICKLING, functools.partial(self._telling, "pickle"))
        states = {name: self._telling(f"Generator.{name}", vars(torch.Generator)[name]) for name in STATES}
        self._undo.append(slots.patched(torch.Generator, states))
        for name in SHARING:
            self._replace(torch.UntypedStorage, name, self._giving(name))
        plain = Plain(self.tracer.memory)
        processes = Processes(self.tracer, plain.others)
        self._undo.append(processes.close)
        for name in FORKING:
            if hasattr(os, name):
                self._rename(getattr(os, name), processes.forking)
        if "_posixsubprocess" in sys.modules:
            self._rename(sys.modules["_posixsubprocess"].fork_exec, processes.executing)
        for owner, name, starting in STARTING:
            self._replace(owner, name, starting(self.tracer, getattr(owner, name)))
        for function in FUNCTIONS:
            self._rename(function, functools.partial(function_starts, self.tracer))
        for module in CAPTURING:
            environment = module.setup_compilation_env
            self._replace(module, "setup_compilation_env", unseen(self.tracer, self, environment))
        for name in (*SILENT, *CHECKING):
            self._takes_apart(name)
        self._undo += scripted.enter(self.tracer, self.outside, self._names)
        if self.note is not None:
            self._names.update(sight.functions(self.tracer, self.note))
        numpy.enter(self.tracer, plain, self._replace, self._names, self._undo)
        self.tracer.counts.begin = sizes.telling(self.tracer.counts, self._undo)
        hooks = (
            register_optimizer_step_pre_hook(self.tracer.step_begins),
            register_optimizer_step_post_hook(self.tracer.step_ends),
        )
        self._undo += [hook.remove for hook in hooks]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._names.clear()

    def _rename(self, original: Callable[..., Any], wrap: Callable[..., Callable[..., Any]]) -> None:
        self._names[id(original)] = wrap(original)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        if owner is Tensor:
            self._names[id(getattr(owner, name))] = new
            if name not in vars(owner) and not name.startswith("__"):
                self._undo.append(slots.patched(TensorBase, {name: new}))
                return
        self._undo.append(replaced(owner, name, new))

    # -- leaving --------------------------------------------------------------------------------------

    def _leaving(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        tracer, outside = self.tracer, self.outside

        @functools.wraps(original)
        def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> Any:
            address = name in POINTERS
            if is_fake(t) or bookkeeping(sys._getframe(1), original.__name__, address):
                return original(t, *args, **kwargs)
            tracer.seek(t)
            if name == "__reduce_ex__" and sys._getframe(1).f_code is SHALLOW and _is_memory(t):
                tracer.quiet += 1  # a second tensor over it
                try:
                    return original(t, *args, **kwargs)
                finally:
                    tracer.quiet -= 1
            if name == "__reduce_ex__":
                outside.saved(t)
            elif name != "tolist":
                outside.opened(t)
            for source in tensors((t, *args)):
                tracer.escape(name.strip("_"), source)
            return original(t, *args, **kwargs)

        return wrapper

    def _shown(self, original: Callable[..., str]) -> Callable[..., str]:
        """The text of a tensor, whoever asks for it: torch's own messages hold it, too.
        That of a wrapper holds that of what it wraps."""
        tracer = self.tracer

        @functools.wraps(original)
        def wrapper(t: Tensor, *args: Any, **kwargs: Any) -> str:
            if t.layout is torch.strided and not t.is_meta and not is_wrapped(t):
                tracer.escape("repr", t)
            return original(t, *args, **kwargs)

        return wrapper

    def _telling(self, what: str, original: Callable[..., Any]) -> Callable[..., Any]:
        tracer = self.tracer

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for t in leaves((args, kwargs)):
                tracer.escape(what, t)
            return original(*args, **kwargs)

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

    def _giving(self, name: str) -> Callable[..., Any]:
        original = getattr(torch.UntypedStorage, name)

        @functools.wraps(original)
        def wrapper(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
            self.outside.shared("memory that processes share", storage)
            return original(storage, *args, **kwargs)

        return wrapper

    def _takes_apart(self, name: str) -> None:
        """Autograd takes composites apart before the tracer can see them: it does so itself, whichever name
        they were imported by."""
        _, packet, overload = name.split(".")
        op = getattr(getattr(torch.ops.aten, packet), overload)
        tracer, library = self.tracer, torch.library.Library("aten", "IMPL")
        spelt = packet if overload == "default" else f"{packet}.{overload}"
        for key in ("AutogradCPU", "AutogradCUDA"):
            library.impl(spelt, lambda *args, **kwargs: tracer.decomposed(op, args, kwargs), key)
        self._undo.append(library._destroy)

    # -- entering -------------------------------------------------------------------------------------

    def arrays_in(self, out: Any, data: Any) -> None:
        """A tensor was made from arrays, numbers and tensors."""
        arrays, tracer = numpy.current(), self.tracer
        if not isinstance(out, Tensor):
            return
        with _disable_current_modes():
            known = tracer.memory.known(out)
            shared = arrays.lie_together(out, data) if isinstance(data, np.ndarray) else None
            if not known:
                self._read(out, data)
            if shared is not None and not hasattr(data, "bare"):
                shared.plain = True

    def _read(self, out: Tensor, data: Any) -> None:
        arrays, tracer = numpy.current(), self.tracer
        if isinstance(data, np.ndarray) and arrays.read(data) is not None:
            after = arrays.follow("torch.tensor", "_to_copy", {"self": data}, [data])
            tracer.memory.write(out, after.shadows[0] if after else None)
        else:
            found = [arrays.tensor(a) for a in arrays_in(data) if not isinstance(a, Tensor)]
            if found:
                tracer.host_data(out, tensors(data) + found)

    def _entering(self, original: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        """``place``: of the data among the arguments."""

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            numpy.current().tells([args, kwargs])
            out = original(*bare(args), **bare(kwargs))
            data = args[place] if place < len(args) else kwargs.get("data", kwargs.get("obj"))
            if not isinstance(data, Tensor):
                self.arrays_in(out, data)
            return out

        return wrapper

    def _adopting(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        sharing = self._sharing(original)

        @functools.wraps(original)
        def wrapper(capsule: Any) -> Tensor:
            if bookkeeping(sys._getframe(1), original.__name__, address=True):
                return original(capsule)
            out: Tensor = sharing(capsule)
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
