"""From the Python stack to a Site: the user's line, the module path, the phase."""

from __future__ import annotations

import os
import sys
from types import FrameType

import torch

from causaltrace.site import Site

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(__file__) + os.sep
_internal: dict[str, bool] = {}


def internal(filename: str) -> bool:
    """Is this file part of torch, of causaltrace, or not a file at all?"""
    known = _internal.get(filename)
    if known is None:
        known = filename.startswith((_TORCH, _OURS, "<frozen", "<__array_function__")) or filename.endswith(
            (os.sep + "contextlib.py", os.sep + "functools.py")
        )
        _internal[filename] = known
    return known


def user_frame() -> FrameType | None:
    """The innermost frame of the watched program."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and internal(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def modules_running() -> list[torch.nn.Module]:
    """Modules whose forward is on the stack, outermost first."""
    modules: list[torch.nn.Module] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward":
            owner = frame.f_locals.get("self")
            if isinstance(owner, torch.nn.Module) and (not modules or modules[-1] is not owner):
                modules.append(owner)
        frame = frame.f_back
    modules.reverse()
    return modules


def module_path() -> str:
    """Dotted path of the innermost running module, from the outermost one."""
    modules = modules_running()
    if not modules:
        return ""
    names = [type(modules[0]).__name__]
    for parent, child in zip(modules, modules[1:], strict=False):
        names.append(next((n for n, m in parent.named_modules() if m is child and n), type(child).__name__))
    return ".".join(names)


def site(op: str, phase: str) -> Site:
    frame = user_frame()
    if frame is None:
        return Site(phase, op, "<autograd thread>", 0)
    code = frame.f_code
    function = getattr(code, "co_qualname", code.co_name)
    return Site(phase, op, code.co_filename, frame.f_lineno, function, module_path())
