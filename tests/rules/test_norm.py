"""Normalisations, forward and backward, with gradients that are partly zero."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracle import check, grads
from tests.rules.test_pointwise import rand


def part_zero(*shape: int) -> Tensor:
    """A gradient whose first slice is zero, and some elements elsewhere."""
    out = rand(*shape, zeros=0.3, seed=9)
    out[0] = 0
    return out


@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 2), (3,)], ids=str)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layer_norms(shape: tuple[int, ...], affine: bool, norm: str) -> None:
    inner = shape[-1:]

    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        if norm == "rms":
            return F.rms_norm(x, inner, w if affine else None)
        return F.layer_norm(x, inner, w if affine else None, b if affine else None)

    used = (0, 1, 2) if affine and norm == "layer" else (0, 1) if affine else (0,)
    for wrt in (used, used[1:]) if affine else (used,):
        check(
            grads(fn, wrt),
            rand(*shape),
            rand(*inner, zeros=0.3),
            rand(*inner, seed=4),
            part_zero(*shape),
            large=3.0,
        )
    if norm == "layer" and len(shape) == 2:
        check(lambda x: F.layer_norm(x, shape), rand(*shape), large=3.0)


def test_layer_norm_is_exact() -> None:
    check(
        lambda x, w, b: F.layer_norm(x, (3,), w, b),
        rand(2, 3),
        rand(3),
        rand(3, seed=1),
        exact=True,
        large=3.0,
    )
    check(lambda x, w: F.rms_norm(x, (3,), w), rand(2, 3), rand(3), exact=True, large=3.0)


def test_fused_rms_norm() -> None:
    def fn(x: Tensor, w: Tensor) -> Tensor:
        return torch.ops.aten._fused_rms_norm(x, [2], w, 1e-5)[0]

    check(grads(fn, (0, 1)), rand(3, 2), rand(2, zeros=0.4), part_zero(3, 2), large=3.0, opaque=False)


@pytest.mark.parametrize("shape", [(3, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape: tuple[int, ...], training: bool) -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor, m: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
        v = v.abs() + 0.1
        out = grads(lambda x, w, b: F.batch_norm(x, m, v, w, b, training), (0, 1, 2))(x, w, b, g)
        return [*out, m, v]

    vectors = [rand(2, seed=i) for i in range(4)]
    vectors[0][0] = 0
    check(fn, rand(*shape), *vectors, part_zero(*shape), large=3.0)
    check(
        lambda x, w, m, v: F.batch_norm(x, m, v.abs() + 0.1, w, None, training),
        rand(*shape),
        *vectors[1:],
        exact=True,
        large=3.0,
    )
    check(
        grads(lambda w, b: F.batch_norm(rand(*shape), None, None, w, b, True), (0, 1)),
        vectors[1],
        vectors[2],
        part_zero(*shape),
    )


@pytest.mark.parametrize("training", [True, False])
def test_running_mean_and_variance_are_two(training: bool) -> None:
    """The gradient of the input reads the variance alone; neither is updated from the other."""

    def fn(x: Tensor, w: Tensor, m: Tensor, v: Tensor, g: Tensor) -> list[Tensor]:
        m, v = m.clone(), v.abs() + 0.1
        _, dx = grads(lambda x: F.batch_norm(x, m, v, w, None, training))(x, g)
        return [dx, m, v] if not training else [m, v]

    check(fn, rand(3, 2), rand(2), rand(2, seed=1), rand(2, seed=2), rand(3, 2), exact=True, large=3.0)


def test_no_groups_of_no_samples() -> None:
    fn = lambda x, w, b: F.group_norm(x, 2, w, b)  # noqa: E731
    check(lambda w, b: grads(fn, (0, 1, 2))(rand(0, 4, 2), w, b, rand(0, 4, 2)), rand(4), rand(4))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(groups: int) -> None:
    def fn(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.group_norm(x, groups, w, b)

    x = rand(2, 4, 2)
    check(fn, x, rand(4), rand(4, seed=1), exact=True, large=3.0)
    check(
        grads(fn, (0, 1, 2)), x, rand(4, zeros=0.3), rand(4, seed=1), part_zero(2, 4, 2), large=3.0, kinds=6
    )
    seeds = rand(1, 4, 2)
    check(grads(fn, (0, 1, 2)), x[:1], rand(4), rand(4, seed=1), seeds, large=3.0, exact=True, kinds=6)
    check(grads(lambda x: F.instance_norm(x)), rand(2, 2, 2), part_zero(2, 2, 2), large=3.0)


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_norm(dim: int) -> None:
    def fn(v: Tensor, g: Tensor) -> Tensor:
        return torch._weight_norm(v, g, dim)

    g = rand(2, 1) if dim == 0 else rand(1, 3)
    check(grads(fn, (0, 1)), rand(2, 3), g, rand(2, 3, zeros=0.4), large=3.0)
