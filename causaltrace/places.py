"""From the Python stack to a Site: the user's line, the module path, the phase."""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from types import FrameType

import torch

from causaltrace.site import Site

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep
#: Launches kernels that no operation tells of.
_LAUNCHING = os.path.join(_TORCH, "cuda", "_utils.py")
_TRANSFORMS = os.path.join("_functorch", "eager_transforms.py")
#: Raise where an argument is out of range, and do nothing else with what they read.
_CHECKING = frozenset(
    f.__code__
    for f in (torch.distributions.Distribution.__init__, torch.distributions.Distribution._validate_sample)
)
_internal: dict[str, bool] = {}
#: Module paths by the ids of the modules, for modules that are alive.
_paths: dict[tuple[int, ...], tuple[tuple[weakref.ref[torch.nn.Module], ...], str]] = {}
PATHS = 4096


def internal(filename: str) -> bool:
    """Is this file part of torch, of causaltrace, or not a file at all?"""
    known = _internal.get(filename)
    if known is None:
        known = filename.startswith(
            (_TORCH, _OURS, "<frozen", "<__array_function__", "<eval_with_key")
        ) or filename.endswith((os.sep + "contextlib.py", os.sep + "functools.py"))
        _internal[filename] = known
    return known


def ours(frame: FrameType) -> bool:
    """Is it causaltrace's own code?"""
    return frame.f_code.co_filename.startswith(_OURS)


def torchs(frame: FrameType) -> bool:
    """Is it torch's own code, or causaltrace's?"""
    return frame.f_code.co_filename.startswith((_TORCH, _OURS))


def bookkeeping(frame: FrameType, name: str, address: bool) -> bool:
    """Is it torch's own code that asks for an ``address``, or causaltrace's that asks for values? It names
    what it calls; what somebody handed it to call (``tree_map(Tensor.tolist, x)``), it does not."""
    code = frame.f_code
    while name not in code.co_names and ours(frame) and frame.f_back is not None:
        frame = frame.f_back  # what takes the place of a function only hands on
        code = frame.f_code
    if name not in code.co_names or code.co_filename == _LAUNCHING:
        return False
    return torchs(frame) if address else ours(frame)


def checking() -> bool:
    """Is it a check of arguments, of torch's own, that asks for a value?"""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and ours(frame):
        frame = frame.f_back
    return frame is not None and frame.f_code in _CHECKING


def modules_running() -> list[torch.nn.Module]:
    """Modules whose forward is on the stack, outermost first."""
    return _look(modules=True)[1]


def in_gradient_transform() -> bool:
    """Is ``torch.func.grad`` or a relative running? What it sums is an objective, whatever requires grad."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_TRANSFORMS):
            return True
        frame = frame.f_back
    return False


def _look(modules: bool) -> tuple[FrameType | None, list[torch.nn.Module]]:
    """The innermost frame of the watched program, and the modules that are running."""
    user: FrameType | None = None
    running: list[torch.nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if user is None and not internal(code.co_filename):
            user = frame
            if not modules:
                break
        if code.co_name == "forward" and modules:
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.nn.Module) and (not running or running[-1] is not owner):
                running.append(owner)
        frame = frame.f_back
    running.reverse()
    return user, running


def _path(modules: list[torch.nn.Module]) -> str:
    """Dotted path of the innermost module, from the outermost one."""
    if not modules:
        return ""
    key = tuple(map(id, modules))
    refs, path = _paths.get(key, ((), ""))
    if len(refs) == len(modules) and all(r() is m for r, m in zip(refs, modules, strict=True)):
        return path
    if len(_paths) > PATHS:
        _paths.clear()
    path = _spelt(modules)
    _paths[key] = tuple(map(weakref.ref, modules)), path
    return path


def _spelt(modules: list[torch.nn.Module]) -> str:
    names = [type(m).__name__ for m in modules[:1]]
    for parent, child in itertools.pairwise(modules):
        found = next((n for n, m in parent._modules.items() if m is child), None)
        if found is None:
            found = next((n for n, m in parent.named_modules() if m is child), type(child).__name__)
        names.append(found)
    return ".".join(names)


def site(op: str, phase: str) -> Site:
    """The user's line that runs ``op``; forward operations know their module too."""
    frame, modules = _look(modules=phase in ("forward", "readout"))
    if frame is None:
        return Site(phase, op, "<autograd thread>", 0)
    code = frame.f_code
    function = getattr(code, "co_qualname", code.co_name)
    return Site(phase, op, code.co_filename, frame.f_lineno, function, _path(modules))
