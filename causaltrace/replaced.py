"""Attributes of classes and modules that are others for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replaced(owner: Any, name: str, new: object) -> Callable[[], None]:
    """``owner.name`` is ``new`` until the function that is returned is called."""
    own, old = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, new)
    return lambda: setattr(owner, name, old) if own else delattr(owner, name)
