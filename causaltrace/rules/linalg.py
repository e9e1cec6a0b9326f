"""Matrix factorisations and solvers: which rows and columns an entry of the result reads.

A matrix is the last two dims. Most factorisations work from left to right: column j of the result reads
the columns up to j. What a result holds by definition (zeros beside a triangle, a unit diagonal) reads
nothing, and what no kernel reads (the other triangle) is cut. Dims along which supports do not vary stay
compressed: supports that are the same for a whole matrix cost nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.rules.call import OpCall, Result, live

#: Rows up to which a Cholesky factorisation that fails leaves the columns before the failure as they are
#: (measured for MKL; larger matrices are done in blocks, which a failure leaves half done).
ONE_BLOCK = 64


def matrices(op: OpCall) -> Result:
    """Inverses, determinants, eigenvalues: union over the last two dims, batch by batch."""
    lattice = op.lattice
    joined: Cells | None = None
    for t in op.inputs():
        joined = lattice.join(joined, _whole(op, op.of(t), t.ndim))
    return _fitted(op, joined)


def _fitted(op: OpCall, c: Cells | None) -> Result:
    """One value for each matrix as the support of every result: matrices, vectors or numbers."""
    lattice = op.lattice

    def fit(t: object) -> Cells | None:
        if c is None or not isinstance(t, Tensor):
            return None
        lead = c.dims[:-2]
        if t.ndim < len(lead):
            return lattice.everything(c, t.ndim)
        return lattice.reshaped(c, lead + (1,) * (t.ndim - len(lead)))

    return [fit(t) for t in op.out] if isinstance(op.out, (tuple, list)) else fit(op.out)


# -- parts of a matrix ------------------------------------------------------------------------------------


def _whole(op: OpCall, c: Cells | None, ndim: int) -> Cells | None:
    """Union over a matrix ``[.., m, n]``, as ``[.., 1, 1]``."""
    if c is None:
        return None
    n = max(ndim, 2)
    return op.lattice.reduce(op.lattice.aligned(c, n), (n - 2, n - 1))


def _rows(op: OpCall, c: Cells | None) -> Cells | None:
    """Union of each row, ``[.., m, 1]``."""
    return None if c is None else op.lattice.reduce(c, [len(c.dims) - 1])


def _columns(op: OpCall, c: Cells | None) -> Cells | None:
    """Union of each column, ``[.., 1, n]``."""
    return None if c is None else op.lattice.reduce(c, [len(c.dims) - 2])


def _swapped(op: OpCall, c: Cells | None) -> Cells | None:
    """The transposed matrix."""
    if c is None or c.dims[-2:] == (1, 1):
        return c
    return op.lattice.move(c, lambda data: data.transpose(-3, -2))


def _cut(op: OpCall, c: Cells | None, t: Tensor, upper: bool, diagonal: int = 0) -> Cells | None:
    """Only the triangle of a matrix ``[.., m, n]`` that begins at a diagonal; one value is not expanded to a
    matrix for it."""
    if c is None or c.dims[-2:] == (1, 1) and 1 not in t.shape[-2:]:
        return c
    ones = torch.ones(t.shape[-2:], dtype=torch.bool, device=t.device)
    return op.lattice.keep(c, ones.triu(diagonal) if upper else ones.tril(diagonal))


def _read(op: OpCall, c: Cells | None, t: Tensor, upper: bool, diagonal: int = 0) -> Cells | None:
    """The triangle that a kernel reads, where supports vary along both dims."""
    if c is None or any(c.dims[d] != t.shape[d] for d in (-2, -1)):
        return c
    return _cut(op, c, t, upper, diagonal)


def _first(op: OpCall, c: Cells | None, count: int, dim: int) -> Cells | None:
    """The first rows (dim -2) or columns (-1)."""
    if c is None or c.dims[dim] in (1, count):
        return c
    return op.lattice.move(c, lambda data: data.narrow(dim - 1, 0, count))


def _row(op: OpCall, c: Cells | None) -> Cells | None:
    """A vector for each matrix, as ``[.., 1, n]``."""
    return None if c is None else op.lattice.unsqueeze(c, len(c.dims) - 1)


def _number(op: OpCall, c: Cells | None) -> Cells | None:
    """Union of a vector for each matrix, as ``[.., 1, 1]``."""
    return _rows(op, _row(op, c))


def _matrix_number(op: OpCall, c: Cells | None) -> Cells | None:
    """``[.., 1, 1]`` as one number for each matrix."""
    return None if c is None else op.lattice.squeeze(c, (len(c.dims) - 2, len(c.dims) - 1))


def _running(op: OpCall, c: Cells | None, dim: int, reverse: bool = False) -> Cells | None:
    return None if c is None else op.lattice.running(c, len(c.dims) + dim, reverse)


def _leading(op: OpCall, columns: Cells | None, count: int, last: int) -> Cells | None:
    """``[.., 1, count]``: at each place the union of the columns up to it, ``last`` at most."""
    if last < 0:
        return None
    up_to = _running(op, columns, -1)
    if up_to is None or up_to.dims[-1] == 1:
        return up_to
    if up_to.dims[-1] == count == last + 1:
        return up_to
    places = torch.arange(count, device=up_to.data.device).clamp(max=last)
    return op.lattice.move(up_to, lambda data: data.index_select(-2, places), held=count * 8)


def _vector(op: OpCall, row: Cells | None, known: int) -> Cells | None:
    """``[.., 1, n]`` as a vector whose elements from ``known`` on are fixed by its size."""
    if row is None:
        return None
    out = op.lattice.squeeze(row, [len(row.dims) - 2])
    if out.dims[-1] <= known:
        return out
    return op.lattice.keep(out, torch.arange(out.dims[-1], device=out.data.device) < known)


# -- factorisations ---------------------------------------------------------------------------------------


def cholesky(op: OpCall) -> Result:
    """A = L Lᴴ from the triangle that is named: L[i, j] reads row i up to column j and the rows up to j; the
    upper factor is the transposed. A failure (info) reads the whole triangle, and where it shows in L (large
    matrices that ``cholesky_ex`` factorises without an error) so does L."""
    lattice, a = op.lattice, op.tensor("self")
    upper = bool(op.get("upper", False))
    own = _read(op, op.cells("self"), a, upper)
    whole = _whole(op, own, a.ndim)
    raises = op.name == "cholesky"
    in_order = a.shape[-1] <= ONE_BLOCK and a.device.type == "cpu" and torch.backends.mkl.is_available()
    if not raises and not in_order:
        return _fitted(op, whole)
    own = _swapped(op, own) if upper else own
    out = lattice.join(_running(op, own, -1), _swapped(op, _running(op, _rows(op, own), -2)))
    out = _cut(op, out, a, upper=False)
    out = _swapped(op, out) if upper else out
    return out if raises else [out, _matrix_number(op, whole)]


def lu(op: OpCall) -> Result:
    """P A = L U with row exchanges: row i of U reads the columns up to i, which choose the rows, and its own;
    row i of L, column i of P and pivot i read the columns up to i. The last row is the one that is left."""
    lattice, a = op.lattice, op.tensor("A")
    m, n = a.shape[-2:]
    k, last = min(m, n), min(n - 1, m - 2)
    columns = _columns(op, op.cells("A"))
    below = _swapped(op, _leading(op, columns, m, last))
    if op.name == "linalg_lu":
        p, lower, upper = op.out
        above = _swapped(op, _leading(op, columns, k, last))
        return [
            _left_over(op, _leading(op, columns, m, last), m, k) if p.numel() else None,
            _cut(op, below, lower, upper=False, diagonal=-1),
            _cut(op, lattice.join(above, columns), upper, upper=True),
        ]
    pivots = _vector(op, _leading(op, columns, k, last), m - 1)
    return [
        lattice.join(below, columns),
        pivots,
        _matrix_number(op, _whole(op, _first(op, columns, k, -1), a.ndim)),
    ]


def _left_over(op: OpCall, c: Cells | None, m: int, k: int) -> Cells | None:
    """Row r of P beyond the k exchanges: either one of these takes it, or it stays in place r."""
    if m == k:
        return c
    r = torch.arange(m, device=op.out[0].device)
    return op.lattice.keep(c, (torch.minimum(r[:, None], r) < k) | (r[:, None] == r))


def lu_unpack(op: OpCall) -> Result:
    """L and U are the two triangles; P reads all pivots."""
    own, (m, n) = op.cells("LU_data"), op.tensor("LU_data").shape[-2:]
    k = min(m, n)
    p, lower, upper = op.out
    return [
        _left_over(op, _number(op, op.cells("LU_pivots")), m, k) if p.numel() else None,
        _cut(op, _first(op, own, k, -1), lower, upper=False, diagonal=-1) if lower.numel() else None,
        _cut(op, _first(op, own, k, -2), upper, upper=True) if upper.numel() else None,
    ]


def qr(op: OpCall) -> Result:
    """A = Q R by reflections: column j of Q reads the columns up to j, row i of R the columns up to i and its
    own. ``geqrf`` gives R, and below it the reflections instead of Q: these read the columns up to j."""
    lattice = op.lattice
    name = "A" if op.name == "linalg_qr" else "self"
    a = op.tensor(name)
    m, n = a.shape[-2:]
    columns = _columns(op, op.cells(name))
    last = min(n, m) - 1
    if last == m - 1 and not a.is_complex() and a.device.type == "cpu":
        last -= 1  # there is nothing to reflect a single real number on
    first, second = op.out
    right = first if op.name == "geqrf" else second
    across = _swapped(op, _leading(op, columns, right.shape[-2], last))
    r = _cut(op, lattice.join(across, columns), right, upper=True) if right.numel() else None
    if op.name == "linalg_qr":
        return [_leading(op, columns, first.shape[-1], last) if first.numel() else None, r]
    below = _cut(op, _leading(op, columns, n, last), first, upper=False, diagonal=-1)
    return [lattice.join(r, below), _vector(op, _leading(op, columns, second.shape[-1], last), last + 1)]


def _reflections(op: OpCall, v: Tensor, c: Cells | None, tau: Cells | None, count: int) -> Cells | None:
    """``[.., 1, count]``: what each reflection reads: its column below the diagonal, its factor."""
    below = _columns(op, _read(op, c, v, upper=False, diagonal=-1))
    return op.lattice.join(_first(op, below, count, -1), _row(op, tau))


def householder_product(op: OpCall) -> Result:
    """Column j of the product reads the reflections up to j; row i of column 0 only its own place in the
    first, for it is that of 1 - tau v vᴴ."""
    lattice, v, count = op.lattice, op.tensor("input"), op.tensor("tau").shape[-1]
    own, tau = op.cells("input"), op.cells("tau")
    out = _leading(op, _reflections(op, v, own, tau, count), v.shape[-1], count - 1)
    if out is None or own is None or own.dims[-2:] == (1, 1):
        return out
    first = _first(op, _cut(op, own, v, upper=False, diagonal=-1), 1, -1)
    here = lattice.join(first, _first(op, _row(op, tau), 1, -1))
    start = torch.arange(v.shape[-1], device=v.device) == 0
    return lattice.join(lattice.keep(here, start), lattice.keep(out, ~start))


def ormqr(op: OpCall) -> Result:
    """Q C, with Q as reflections: every entry reads its column of C and all reflections. Qᴴ C applies the
    first of them first, and a reflection does not touch the rows before it: row i reads those up to i.
    C Q is like Qᴴ Cᴴ, transposed."""
    lattice, v, other = op.lattice, op.tensor("self"), op.tensor("input3")
    count = op.tensor("input2").shape[-1]
    left = bool(op.get("left", True))
    if not count:
        return op.cells("input3")
    reflections = _reflections(op, v, op.cells("self"), op.cells("input2"), count)
    moved = _columns(op, op.cells("input3")) if left else _rows(op, op.cells("input3"))
    if left == bool(op.get("transpose", False)):
        steps = _leading(op, reflections, other.shape[-2 if left else -1], count - 1)
        return lattice.join(moved, _swapped(op, steps) if left else steps)
    return lattice.join(moved, _whole(op, reflections, v.ndim))


def cholesky_inverse(op: OpCall) -> Result:
    """The inverse of L Lᴴ: entry (i, j) reads the columns of L from the first of both on."""
    factor, upper = op.tensor("self"), bool(op.get("upper", False))
    own = _read(op, op.cells("self"), factor, upper)
    columns = _columns(op, _swapped(op, own) if upper else own)
    left = _running(op, columns, -1, reverse=True)
    return op.lattice.join(
        _cut(op, left, factor, upper=False), _cut(op, _swapped(op, left), factor, upper=True)
    )


def from_triangle(op: OpCall) -> Result:
    """Everything from one triangle: eigh (the one that UPLO names), the pseudo-inverse of a Hermitian matrix,
    and LDL, which fills the lower triangle only."""
    name = "A" if op.name == "_linalg_eigh" else "self"
    a, c = op.tensor(name), op.cells(name)
    if op.name != "linalg_pinv" or op.get("hermitian", False):
        c = _read(op, c, a, upper=str(op.get("UPLO", "L")).upper() == "U")
    bounds = [op.lattice.everything(op.cells(n), 2) for n in ("atol", "rtol", "rcond")]
    out = _fitted(op, op.lattice.join(_whole(op, c, a.ndim), *bounds))
    if op.name == "linalg_ldl_factor_ex" and isinstance(out, list) and c is not None and not c.uniform:
        out[0] = op.lattice.keep(out[0], torch.ones_like(a, dtype=torch.bool).tril())
    return out


# -- solvers ----------------------------------------------------------------------------------------------


def _solved(op: OpCall, a: Cells | None, b: Cells | None, right: Tensor, left: bool = True) -> Cells | None:
    """Each column of B (row, if not ``left``) by itself with all of A."""
    return op.lattice.join(_asked(op, a, right, left), _columns(op, b) if left else _rows(op, b))


def _asked(op: OpCall, a: Cells | None, right: Tensor, left: bool) -> Cells | None:
    """What is read of A: nothing for a column of B (row, if not ``left``) that is a zero gradient, whose
    solution is 0 whatever A is."""
    if not op.backward or a is None or right.ndim < 2:
        return a
    summed = right.ndim - (2 if left else 1)
    return op.lattice.keep(a, live(right, [d for d in range(right.ndim) if d != summed]))


def solve(op: OpCall) -> Result:
    """A X = B: column j of X reads column j of B and all of A; the factors of A do not read B."""
    lattice, a, b = op.lattice, op.tensor("A"), op.tensor("B")
    whole, right = _whole(op, op.cells("A"), a.ndim), op.cells("B")
    vector = b.ndim == 1 or a.ndim - 1 == b.ndim and b.shape == a.shape[:-1]
    if vector and right is not None:
        right = lattice.unsqueeze(lattice.aligned(right, b.ndim), b.ndim)
    x = _solved(op, whole, right, b.unsqueeze(-1) if vector else b, bool(op.get("left", True)) or vector)
    if x is not None and vector:
        x = lattice.squeeze(x, [len(x.dims) - 1])
    factors = _fitted(op, whole)
    return [x, *factors[1:]] if isinstance(factors, list) else [x, None, None, None]


def solve_triangular(op: OpCall) -> Result:
    """A X = B: for a lower A row i of X reads the rows up to i of A, and of its own column of B; for an upper
    one those from i on. X A = B is the transposed."""
    lattice = op.lattice
    if op.name == "triangular_solve":
        a, b, left = op.tensor("A"), op.tensor("self"), True
    else:
        a, b, left = op.tensor("self"), op.tensor("B"), bool(op.get("left", True))
    own, right = op.of(a), op.of(b)
    upper = bool(op.get("upper", op.name == "triangular_solve"))
    unit = bool(op.get("unitriangular", False))
    read = _read(op, own, a, upper, diagonal=(1 if upper else -1) if unit else 0)
    if not left or op.get("transpose", False):
        read, upper = _swapped(op, read), not upper
    read = _rows(op, read)
    read = _asked(op, read, b if left else b.transpose(-2, -1), True)
    rows = lattice.join(read, right if left else _swapped(op, right))
    out = _running(op, rows, -2, reverse=upper)
    out = out if left else _swapped(op, out)
    return [out, own] if op.name == "triangular_solve" else out


def cholesky_solve(op: OpCall) -> Result:
    """A X = B with the factor of A: column j of X reads column j of B and all of the triangle."""
    name = "A" if op.name == "_cholesky_solve_helper" else "input2"
    factor = op.tensor(name)
    read = _read(op, op.cells(name), factor, upper=bool(op.get("upper", False)))
    return _solved(op, _whole(op, read, factor.ndim), op.cells("self"), op.tensor("self"))


def lu_solve(op: OpCall) -> Result:
    """A X = B with L, U and pivots: column j of X reads column j of B and the pivots. L comes first and is
    read as a whole; with U it goes up from the last row: row i reads those from i on. Aᴴ X = B begins with U,
    goes up in Lᴴ, and exchanges rows at the end. X A = B is the transposed of that."""
    lattice, data = op.lattice, op.tensor("LU")
    left, adjoint = bool(op.get("left", True)), bool(op.get("adjoint", False))
    own, pivots = op.cells("LU"), op.cells("pivots")
    read = _whole(op, own, data.ndim)
    if own is not None and own.dims[-1] != 1 and own.dims[-2] != 1:
        lower, upper = _cut(op, own, data, upper=False, diagonal=-1), _cut(op, own, data, upper=True)
        if left != adjoint:
            steps = _running(op, _rows(op, upper), -2, reverse=True)
            steps = lattice.join(_whole(op, lower, data.ndim), steps)
        else:
            steps = _swapped(op, _running(op, _columns(op, lower), -1, reverse=True))
            steps = lattice.join(_whole(op, upper, data.ndim), _exchanged(op, steps))
        read = steps if left else _swapped(op, steps)
    return _solved(op, lattice.join(read, _number(op, pivots)), op.cells("B"), op.tensor("B"), left)


def _exchanged(op: OpCall, c: Cells | None) -> Cells | None:
    """Rows ``[.., n, 1]`` as the pivots exchange them at last."""
    if c is None or c.dims[-2] == 1:
        return c
    moved, _, _ = torch.lu_unpack(op.tensor("LU"), op.tensor("pivots"), unpack_data=False)
    rows = moved.argmax(-1)[..., None, None]
    return op.lattice.move(c, lambda data: data.take_along_dim(rows, -3), held=rows.numel() * 8)


def ldl_solve(op: OpCall) -> Result:
    """A X = B with L, D and pivots: column j of X reads column j of B, the lower triangle and the pivots."""
    data = op.tensor("LD")
    read = _whole(op, _read(op, op.cells("LD"), data, upper=False), data.ndim)
    read = op.lattice.join(read, _number(op, op.cells("pivots")))
    return _solved(op, read, op.cells("B"), op.tensor("B"))


def lstsq(op: OpCall) -> Result:
    """Solution and residuals read A and B (which is scaled as a whole); rank and singular values only A."""
    lattice, a, b = op.lattice, op.tensor("self"), op.tensor("b")
    right = op.cells("b")
    if b.ndim == a.ndim - 1 and right is not None:  # a vector for each matrix
        right = lattice.unsqueeze(lattice.aligned(right, b.ndim), b.ndim)
    mine = _whole(op, op.cells("self"), max(a.ndim, b.ndim))
    both = _fitted(op, lattice.join(mine, _whole(op, right, a.ndim)))
    only = _fitted(op, mine)
    assert isinstance(both, list) and isinstance(only, list)
    return [*both[:2], *only[2:]]


def cross(op: OpCall) -> Result:
    """out[i] = a[i + 1] b[i + 2] - a[i + 2] b[i + 1] along dim: all of both but place i."""
    lattice, x = op.lattice, op.tensor("self")
    joined = lattice.join(op.cells("self"), op.cells("other"))
    if joined is None:
        return None
    dim = op.dim(-1) - x.ndim  # from the right
    if joined.dims[dim] == 1:
        return joined
    return lattice.join(
        lattice.move(joined, lambda data: data.roll(1, dim - 1)),
        lattice.move(joined, lambda data: data.roll(2, dim - 1)),
    )
