"""A number that Python got from a tensor whose value is not known: it can be calculated with and printed, but
nothing may be decided by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from causaltrace.site import Site
from causaltrace.static.errors import AuditError


class UnknownNumber:
    """Arithmetic gives another such number; whatever needs the value raises ``AuditError``."""

    def __init__(self, where: Callable[[], Site]) -> None:
        self._where = where

    def _more(self, *others: Any) -> UnknownNumber:
        if any(isinstance(other, Tensor) for other in others):
            self._needed()
        return UnknownNumber(self._where)

    def _needed(self, *_: Any) -> NoReturn:
        raise AuditError("Python needs the value of a number that depends on data", self._where())

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _more
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _more
    __float__ = __int__ = __bool__ = __index__ = __round__ = __floordiv__ = __mod__ = _needed
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __hash__ = _needed

    def __repr__(self) -> str:
        return "unknown"

    def __format__(self, spec: str) -> str:
        return "unknown"
