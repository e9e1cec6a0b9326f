"""Element-wise rules: joins, absorption by exact zeros, masks that swallow, derived variants."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from causaltrace import dependencies
from tests.oracle import Index, check, grads


def rand(*shape: int, zeros: float = 0.0, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    t = torch.randn(shape, generator=g)
    return t.masked_fill(torch.rand(shape, generator=g) < zeros, 0.0)


PAIRS = [((3, 2), (3, 2)), ((3, 2), (2,)), ((3, 1), (1, 2)), ((), (3,)), ((1,), (2, 1)), ((), ())]


@pytest.mark.parametrize("shapes", PAIRS, ids=str)
@pytest.mark.parametrize(
    "op", [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.atan2], ids=lambda f: f.__name__
)
def test_binary(op: object, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = rand(*shapes[0]) + 0.1, rand(*shapes[1], seed=1)
    check(op, a, b, exact=op in (torch.add, torch.sub, torch.mul))


@pytest.mark.parametrize("shapes", PAIRS, ids=str)
def test_mul_with_zeros(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check(torch.mul, rand(*shapes[0], zeros=0.5), rand(*shapes[1], zeros=0.5, seed=1))
    check(
        grads(torch.mul, (0, 1)),
        rand(*shapes[0], zeros=0.5),
        rand(*shapes[1], zeros=0.3, seed=1),
        rand(*torch.broadcast_shapes(*shapes), zeros=0.5, seed=2),
    )


def test_mul_by_a_constant_mask_is_exact() -> None:
    mask = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    check(lambda x: x * mask, rand(3, 2), exact=True)
    check(lambda x: mask * x, rand(3, 2), exact=True)
    check(lambda x: x * mask.bool(), rand(3, 2), exact=True)
    check(lambda x: x * 0, rand(3, 2), exact=True)
    check(lambda x: 0 * x + 1, rand(3, 2), exact=True)
    check(grads(lambda x: x * mask), rand(3, 2), rand(3, 2, seed=1), exact=True)


@pytest.mark.parametrize(
    "fn",
    [
        torch.exp,
        torch.sign,
        torch.round,
        torch.floor,
        torch.abs,
        torch.neg,
        torch.sigmoid,
        torch.tanh,
        torch.erf,
        torch.relu,
        F.gelu,
        F.silu,
        F.softplus,
        F.elu,
        F.leaky_relu,
        F.hardswish,
        F.hardsigmoid,
        F.mish,
        F.logsigmoid,
        F.hardtanh,
        F.relu6,
        F.selu,
        F.celu,
        F.softsign,
        F.tanhshrink,
        F.softshrink,
        F.hardshrink,
        torch.isnan,
        torch.signbit,
        torch.nan_to_num,
        torch.sin,
        torch.reciprocal,
        torch.square,
        torch.sqrt,
        torch.rsqrt,
        torch.log,
        torch.log1p,
        torch.expm1,
        torch.logit,
        torch.frac,
        torch.trunc,
    ],
    ids=lambda f: f.__name__,
)
def test_unary_forward_backward(fn: object) -> None:
    check(fn, rand(2, 2), large=3.0)
    if fn not in (torch.isnan, torch.signbit):
        inner = fn
        if fn in (torch.reciprocal, torch.rsqrt, torch.log, torch.sqrt, torch.logit):  # finite slopes only
            inner = lambda x: fn(torch.sigmoid(x) * 0.8 + 0.1)  # noqa: E731
        check(grads(inner), rand(2, 2), rand(2, 2, zeros=0.4, seed=3), large=3.0)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a, b, c: torch.lerp(a, b, c),
        lambda a, b, c: torch.lerp(a, b, 0.3) + c,
        lambda a, b, c: torch.addcmul(a, b, c, value=0.5),
        lambda a, b, c: torch.addcdiv(a, b, c),
        lambda a, b, c: torch.clamp(a, b, c),
        lambda a, b, c: torch.where(a > b, b, c),
        lambda a, b, c: a.clone().addcmul_(b, c),
        lambda a, b, c: a.add_(b).mul_(c),
        lambda a, b, c: a.sub_(b, alpha=2).div_(c),
        lambda a, b, c: torch.add(a, b, alpha=0) * c,
        lambda a, b, c: a.lerp_(b, 0.5).copy_(c[0]),
        lambda a, b, c: (a > b) & (b <= c),
        lambda a, b, c: torch.mul(a, b, out=c),
        lambda a, b, c: torch.add(a, b, out=c[:, :2]),
        lambda a, b, c: F.prelu(a, b[0, :1]) + c,
        lambda a, b, c: torch.rsub(a, b) - c,
        lambda a, b, c: torch.remainder(a, b) + torch.fmod(b, c),
        lambda a, b, c: torch.complex(a, b) * c,
        lambda a, b, c: torch.view_as_real(torch.view_as_complex(torch.stack((a, b), -1)) * c),
        lambda a, b, c: torch.polar(a, b).real + c,
        lambda a, b, c: torch.hypot(a, b).xlogy(c),
        lambda a, b, c: torch.copysign(a, b + 1e-3) + c,
    ],
)
def test_ternary(fn: object) -> None:
    check(fn, rand(3, 2, zeros=0.3), rand(3, 2, zeros=0.3, seed=1), rand(3, 2, zeros=0.3, seed=2))


def test_pow() -> None:
    check(lambda x, y: x**y, rand(3).abs(), rand(3, seed=1))
    check(lambda x: x**0 + 0, rand(3), exact=True)
    check(lambda x: 2**x, rand(3), exact=True, large=5.0)
    check(grads(lambda x: x**2), rand(3), rand(3, zeros=0.3), exact=True)
    check(grads(lambda x, y: x**y, (0, 1)), rand(3).abs() + 0.1, rand(3, zeros=0.4), rand(3, seed=2))


def test_in_place_on_views() -> None:
    def row(x: Tensor, y: Tensor) -> Tensor:
        x[1].mul_(y)
        x[:, 0] += y[0]
        x.t()[1, 2:].zero_()
        x[0].fill_(y[1])
        return x

    check(row, rand(3, 2), rand(2), exact=True)


def test_out_variants_forget_the_old_value() -> None:
    check(lambda x, y: torch.exp(x, out=y), rand(3), rand(3, seed=1), exact=True, large=3.0)
    check(lambda x, y: torch.sum(x, 0, out=y), rand(3, 2), rand(2, seed=1), exact=True)
    check(
        lambda x, y, i: torch.max(x, 1, out=(y, i)), rand(3, 2), rand(3), Index(torch.zeros(3).long(), [0, 1])
    )


def test_masks_that_swallow() -> None:
    mask = torch.tensor([[0.0, -1e9], [float("-inf"), torch.finfo(torch.float32).min]])
    check(lambda x: x + mask, rand(2, 2), exact=True, large=5.0)
    check(lambda x: mask + x, rand(2, 2), exact=True, large=5.0)
    check(lambda x: x + (mask.clamp(min=-100)), rand(2, 2), exact=True)
    small = torch.full((2, 2), -1e9)
    check(lambda x: torch.add(x, small, alpha=1e-9), rand(2, 2), exact=True)
    check(lambda x: torch.add(small, x, alpha=1e9), rand(2, 2), exact=True)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout(p: float) -> None:
    def fn(x: Tensor) -> Tensor:
        torch.manual_seed(1)
        return F.dropout(x, p)

    check(fn, rand(4, 2), exact=True)
    check(lambda x: F.dropout(x, 0.5, training=False), rand(4, 2), exact=True)
    check(grads(fn), rand(4, 2), rand(4, 2, seed=2), exact=True)

    def native(x: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        return list(torch.native_dropout(x, 0.5, True))

    check(native, rand(4, 2))


def test_lists_whose_elements_look_alike() -> None:
    """One factor is 0 and cuts its partner, the other is not, and both depend on the same."""

    def fn(x: Tensor) -> list[Tensor]:
        whole = x.sum().expand(3).clone()
        zero = x[:1] - x[:1]
        return list(torch._foreach_mul([whole, whole], [zero, zero + 1]))

    check(fn, rand(3))


def test_random_numbers_with_labelled_parameters() -> None:
    def fn(mean: Tensor, std: Tensor) -> list[Tensor]:
        torch.manual_seed(2)
        a = torch.normal(mean, 1.0)
        b = torch.normal(mean, std.abs() + 0.1)
        c = torch.empty(3).normal_()
        d = mean.clone().uniform_()
        return [a, b, c, d, torch.normal(0.0, std.abs() + 0.1), torch.bernoulli(torch.sigmoid(mean))]

    check(fn, rand(3), rand(3, seed=1))

    def overwritten(x: Tensor) -> Tensor:
        torch.manual_seed(2)
        return x.clone().normal_()

    check(overwritten, rand(3), exact=True)

    def counts(rate: Tensor) -> Tensor:
        torch.manual_seed(2)
        return torch.poisson(rate.abs() * 3 + 0.1)

    check(counts, rand(3))


def test_foreach_variants() -> None:
    def fn(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        xs, ys, zs = [a, b[:2]], [b, a[:2]], [c, c[:2] * 2]
        sums = torch._foreach_add(xs, ys, alpha=2)
        prods = torch._foreach_mul(sums, [2.0, 0.0])
        scaled = torch._foreach_mul(ys, a[0])
        mixed = torch._foreach_lerp(xs, ys, 0.25)
        also = torch._foreach_lerp(xs, ys, zs)
        fused = torch._foreach_addcmul(xs, ys, zs, value=0.5)
        third = torch._foreach_addcdiv(xs, ys, [z + 20 for z in zs], [0.5, 0.25])
        tops = torch._foreach_maximum(xs, ys)
        return [
            *sums,
            *prods,
            *scaled,
            *mixed,
            *also,
            *fused,
            *third,
            *tops,
            *torch._foreach_norm(xs),
            *torch._foreach_max(xs),
            *torch._foreach_exp(ys),
            *torch._foreach_pow(2.0, ys),
        ]

    check(fn, rand(3, zeros=0.3), rand(3, seed=1, zeros=0.3), rand(3, seed=2, zeros=0.3), large=3.0)


def test_foreach_in_place() -> None:
    def fn(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        xs, ys = [a, a[:2].clone()], [b, c[:2]]
        torch._foreach_lerp_(xs, ys, 0.5)
        torch._foreach_mul_(xs, [1.0, 2.0])
        torch._foreach_add_(xs, ys)
        torch._foreach_addcmul_(xs, ys, ys, [0.5, 0.5])
        torch._foreach_addcdiv_(xs, ys, [y.abs() + 1 for y in ys], value=0.1)
        torch._foreach_div_(xs, c[0] + 20)
        torch._foreach_sqrt_(ys)
        torch._foreach_neg_(xs)
        copies = [x.clone() for x in xs]
        torch._foreach_copy_(copies, ys)
        torch._foreach_zero_([xs[1]])
        return [*xs, *ys, *copies]

    check(fn, rand(3), rand(3, seed=1).abs(), rand(3, seed=2).abs())


def test_foreach_with_a_tensor_of_scalars() -> None:
    scalars = torch.tensor([0.5, 0.25])
    check(
        lambda a, b: torch._foreach_addcdiv([a, b], [b, a], [b + 20, a + 20], scalars),
        rand(3, 2),
        rand(3, 2, seed=1),
    )


def test_tri() -> None:
    check(torch.tril, rand(3, 3), exact=True)
    check(lambda x: torch.triu(x, 1), rand(2, 3, 2), exact=True)
    check(lambda x: x.tril_(-1), rand(3, 2), exact=True)
    check(grads(torch.tril), rand(3, 3), rand(3, 3, seed=1), exact=True)


def test_glu() -> None:
    check(F.glu, rand(2, 4))
    check(grads(F.glu), rand(2, 4), rand(2, 2, zeros=0.5))
    check(grads(F.glu), rand(2, 4), rand(2, 2), exact=True)
    check(grads(lambda x: F.glu(x, 0)), rand(4, 1), rand(2, 1, zeros=0.5))


def test_bool_and_int_logic() -> None:
    flags = torch.tensor([True, False, True])
    ints = Index(torch.tensor([1, 2, 3]), range(5))
    check(
        lambda m, i: [m & (i > 1), ~m, m.long() + i, i << 1, i % 2 == 0, i // 2, i.float() / 2], flags, ints
    )


def test_prelu_gradients() -> None:
    fn = torch.nn.functional.prelu
    check(grads(fn, (0, 1)), rand(3, 2), rand(2), rand(3, 2, zeros=0.4))
    check(grads(fn, (0, 1)), rand(2, 2, 2), rand(1), rand(2, 2, 2))
    check(lambda x, w, g: grads(fn)(x, w, g)[1], -rand(3, 2).abs(), rand(2), rand(3, 2))


def test_heaviside_reads_its_values_at_0_only() -> None:
    check(torch.heaviside, rand(2, 3), rand(3))
    check(lambda v: torch.heaviside(torch.tensor([-1.0, 0.0, 2.0]), v), rand(3), exact=True)


def test_a_number_that_is_true_cuts_the_other() -> None:
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 2.0, 0.0])
    check(lambda a, b: torch.logical_or(a, b).double(), a, b, large=2.0)
    to_a, to_b = dependencies(torch.logical_or, a, b)[0]
    assert to_a.tolist() == [[True, False, False], [False, False, False], [False, False, True]]
    assert to_b.tolist() == [[False, False, False], [False, True, False], [False, False, True]]


def test_what_is_the_same_for_all_values() -> None:
    x, grad, kept = torch.randn(3), torch.randn(3), torch.tensor([True, False, True])
    assert not dependencies(lambda x: F.hardtanh(x, 0.0, 0.0), x)[0][0].any()
    assert dependencies(lambda x: F.hardtanh(x, 0.0, 1.0), x)[0][0].any()
    whole = dependencies(lambda g, m: torch.ops.aten.native_dropout_backward(g, m, 0.0), grad, kept)[0]
    assert not whole[0].any() and not whole[1].any()
    check(lambda g, m: torch.ops.aten.native_dropout_backward(g, m, 2.0), grad, kept)
    values, gradient = dependencies(grads(lambda x: F.hardshrink(x, -0.5)), x, grad)
    assert values[0].any() and not gradient[0].any()
    check(grads(lambda x: F.hardshrink(x, 0.5)), x, grad)
