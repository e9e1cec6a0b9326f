"""Every function of numpy's that asks is in a table and held against perturbation, or is named."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causaltrace.boundary.functions import name_of
from causaltrace.boundary.rows import ROWS
from causaltrace.boundary.tables import FREE, MOVED, PARTS
from tests.arrays import watched
from tests.boundary.test_numpy_functions import CHOSEN, WRITTEN, I, V
from tests.boundary.test_numpy_functions import MOVED as MOVING
from tests.boundary.test_numpy_numbers import FOLDED, LINEAR, OVER, PRODUCTS, SORTED

MODULES = (np, np.linalg, np.fft, np.lib.stride_tricks)
FUNCTIONS = {
    name_of(f): f for module in MODULES for f in vars(module).values() if hasattr(f, "_implementation")
}
KNOWN = FREE | MOVED | PARTS | set(ROWS)
DAY = np.datetime64("2020-01-06")


def days(i: Any) -> Any:
    return DAY + i.astype("m8[D]")


#: What has no row, and how it is called.
NAMED: dict[str, Callable[[Any, Any, Path], Any]] = {
    "array2string": lambda a, i, f: np.array2string(a),
    "array_repr": lambda a, i, f: np.array_repr(a),
    "array_str": lambda a, i, f: np.array_str(a),
    "busday_count": lambda a, i, f: np.busday_count(days(i), DAY),
    "busday_offset": lambda a, i, f: np.busday_offset(days(i), 1, roll="forward"),
    "is_busday": lambda a, i, f: np.is_busday(days(i)),
    "datetime_as_string": lambda a, i, f: np.datetime_as_string(days(i)),
    "full_like": lambda a, i, f: FUNCTIONS["full_like"](np.zeros(4), a),
    "save": lambda a, i, f: np.save(f / "x.npy", a),
    "savetxt": lambda a, i, f: np.savetxt(f / "x.txt", a),
    "savez": lambda a, i, f: np.savez(f / "x.npz", a),
    "savez_compressed": lambda a, i, f: np.savez_compressed(f / "x.npz", a),
}


def test_what_has_no_row_is_known() -> None:
    assert set(FUNCTIONS) - KNOWN == set(NAMED)


def test_tables_name_functions() -> None:
    assert not KNOWN - set(FUNCTIONS)


@pytest.mark.parametrize("name", sorted(NAMED))
def test_what_has_no_row_is_told(name: str, tmp_path: Path) -> None:
    _, notes = watched(lambda a, i: NAMED[name](a, i, tmp_path), V, I)
    assert notes.escapes, name


#: Not in numpy's tables, or called there under another name.
UNNAMED = {"amax", "amin", "sliding_window_view"}


def _called(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _called(constant)


def test_what_has_a_row_is_tested() -> None:
    cases = [*(MOVING | CHOSEN | WRITTEN | FOLDED | SORTED | PRODUCTS | LINEAR).values()]
    codes = [case.fn.__code__ for case in cases]
    cells = [c.cell_contents for case in cases for c in case.fn.__closure__ or ()]
    codes += [c.__code__ for c in cells if isinstance(c, types.FunctionType)]
    tested = {name for code in codes for name in _called(code)} | set(OVER.split()) | UNNAMED
    tested |= {c.__name__ for c in cells if hasattr(c, "_implementation")}
    left = {name for name in KNOWN - FREE if name.split(".")[-1] not in tested}
    assert not left


@pytest.mark.parametrize("name", sorted(FREE))
def test_what_sees_no_values_gives_none(name: str) -> None:
    two = name in (
        "can_cast",
        "shares_memory",
        "may_share_memory",
        "result_type",
        "common_type",
        "einsum_path",
    )
    args: dict[str, Any] = {"can_cast": (np.float64,), "einsum_path": ()}

    def call(x: Any) -> Any:
        if name == "einsum_path":
            return FUNCTIONS[name]("ij,jk", x, x)
        square = x if "indices" in name else x[0]
        return FUNCTIONS[name](square, *(args.get(name, (x[1],)) if two else ()))

    x = torch.tensor([[0.5, 1.5], [2.5, 3.5]])
    _, notes = watched(call, x)
    assert not notes.escapes and not notes.opaque_ops


def test_a_function_that_no_table_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaltrace.boundary.functions.ROWS", {})
    _, notes = watched(lambda a: np.cumsum(a), V)
    assert notes.opaque_ops == ["numpy.cumsum"] and notes.escapes
