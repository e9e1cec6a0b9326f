"""Cross-entropy in all its forms, and element-wise losses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

import causaltrace
from causaltrace.depends import dependencies
from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

SHAPES = [((3,), ()), ((2, 3), (2,)), ((2, 3, 2), (2, 2)), ((1, 3, 1, 2), (1, 1, 2))]


def labels(shape: tuple[int, ...], ignored: int | None) -> Index:
    """Targets below 3; element 0 is ignored where something is."""
    t = torch.arange(torch.Size(shape).numel()).view(shape) % 3
    values = [0, 1, 2]
    if ignored is not None:
        t = t.clone()
        t.reshape(-1)[0] = ignored
        values = sorted({*values, ignored})
    return Index(t, values)


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignored", [None, -100, 1])
def test_cross_entropy(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], reduction: str, ignored: int | None
) -> None:
    options = {"reduction": reduction, "ignore_index": -100 if ignored is None else ignored}
    x, y = rand(*shapes[0]), labels(shapes[1], ignored)
    if ignored is not None and torch.Size(shapes[1]).numel() == 1:
        y = Index(y.tensor * 0, y.values)
    seed = rand(*shapes[1], zeros=0.5) if reduction == "none" else torch.tensor(1.5)
    check(lambda x, y, g: grads(lambda x: F.cross_entropy(x, y, **options))(x, g), x, y, seed, large=3.0)


def test_cross_entropy_exact() -> None:
    y = torch.tensor([0, -100, 2])
    for reduction in ("none", "sum", "mean"):
        check(lambda x: F.cross_entropy(x, y, reduction=reduction), rand(3, 3), exact=True, large=3.0)  # noqa: B023
        check(
            grads(lambda x: F.cross_entropy(x, y, reduction=reduction), seeded=False)  # noqa: B023
            if reduction != "none"
            else grads(lambda x: F.cross_entropy(x, y, reduction="none")),
            rand(3, 3),
            *([rand(3)] if reduction == "none" else []),
            exact=True,
            large=3.0,
        )
    check(
        lambda x, g: grads(lambda x: F.cross_entropy(x, y, reduction="none"))(x, g),
        rand(3, 3),
        torch.tensor([0.0, 1.0, 1.0]),
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_class_weights_and_smoothing(reduction: str) -> None:
    y = labels((3,), -100)
    seed = rand(3, zeros=0.4) if reduction == "none" else torch.tensor(1.0)

    def weighted(x: Tensor, y: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.cross_entropy(x, y, w, reduction=reduction))(x, g)

    check(weighted, rand(3, 3), y, rand(3).abs() + 0.1, seed, large=3.0)
    fixed = torch.tensor([0, 2, 1])
    check(lambda w: F.cross_entropy(rand(3, 3), fixed, w, reduction=reduction), rand(3).abs() + 0.1)
    check(
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.2, reduction=reduction), rand(3, 3), y, large=3.0
    )
    soft = torch.softmax(rand(3, 3, seed=5), -1)
    check(
        lambda x, p, g: grads(lambda x: F.cross_entropy(x, p, reduction=reduction))(x, g),
        rand(3, 3),
        soft,
        seed,
        large=3.0,
    )


def test_nll_without_log_softmax() -> None:
    check(lambda x, y: F.nll_loss(x, y), rand(3, 3), labels((3,), None))
    check(lambda y: F.nll_loss(rand(3, 3), y), labels((3,), -100))
    check(lambda y: list(torch.ops.aten.nll_loss_forward(rand(3, 3), y, None, 1, -100)), labels((3,), -100))
    check(lambda y: list(torch.ops.aten.nll_loss_forward(rand(3, 3), y, None, 2, -100)), labels((3,), -100))
    with torch.no_grad():
        check(lambda x, y: F.cross_entropy(x, y), rand(2, 3), labels((2,), None))
    with torch.inference_mode():
        check(lambda x, y: F.cross_entropy(x, y, reduction="none"), rand(2, 3), labels((2,), None))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1.5, -2.0])])
def test_a_zero_gradient_over_a_total_of_zero_is_no_zero(weights: Tensor | None) -> None:
    """0 / 0: a mean over classes of weight 0, and no gradient. What makes the total counts."""
    options: dict[str, Any] = {"weight": weights} if weights is not None else {"ignore_index": 0}

    def gradient(x: Tensor, y: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.nll_loss(x, y, **options))(x, g)

    def weighted(w: Tensor, g: Tensor) -> list[Tensor]:
        x = rand(2, 3).requires_grad_()
        return list(torch.autograd.grad(F.nll_loss(x, torch.tensor([0, 0]), w), x, g))

    check(gradient, rand(2, 3), Index(torch.tensor([0, 0]), [0, 1, 2]), torch.tensor(0.0))
    check(weighted, torch.tensor([0.0, 1.0, 2.0]), torch.tensor(0.0))


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_label_names_what_is_read(shapes: tuple[tuple[int, ...], tuple[int, ...]], reduction: str) -> None:
    """One element and one weight for each position; one column of its gradient; no column of the ignored
    class."""
    y = labels(shapes[1], 1)
    seed = rand(*shapes[1]) if reduction == "none" else torch.tensor(1.5)

    def run(x: Tensor, y: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.nll_loss(x, y, w, reduction=reduction, ignore_index=1))(x, g)

    if torch.Size(shapes[1]).numel() > 1:
        check(run, rand(*shapes[0]), y, rand(3).abs() + 0.1, seed, exact=True, large=3.0)


def test_the_total_weight_is_no_part_of_a_sum() -> None:
    def run(x: Tensor, y: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.cross_entropy(x, y, reduction="sum"))(x, g)

    check(run, rand(2, 3), labels((2,), None), torch.tensor(1.5), exact=True, large=3.0)


def soft_margin(x: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.soft_margin_loss(x, y.detach(), reduction=reduction) + 0 * y.sum()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize(
    "loss",
    [
        F.mse_loss,
        F.l1_loss,
        F.smooth_l1_loss,
        F.huber_loss,
        soft_margin,
        lambda x, y, reduction: F.kl_div(x, y.abs() + 0.1, reduction=reduction),
        lambda x, y, reduction: F.binary_cross_entropy(
            torch.sigmoid(x), torch.sigmoid(y), reduction=reduction
        ),
        lambda x, y, reduction: F.binary_cross_entropy_with_logits(x, torch.sigmoid(y), reduction=reduction),
        lambda x, y, reduction: F.poisson_nll_loss(x, y.abs(), reduction=reduction),
        lambda x, y, reduction: F.gaussian_nll_loss(x, y, y.abs() + 0.5, reduction=reduction),
    ],
)
def test_elementwise_losses(loss: object, reduction: str) -> None:
    seed = rand(2, 2, zeros=0.5) if reduction == "none" else torch.tensor(1.0)
    check(
        grads(lambda x, y: loss(x, y, reduction=reduction), (0, 1)),
        rand(2, 2),
        rand(2, 2, seed=1),
        seed,
        large=3.0,
    )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_margin_losses(reduction: str) -> None:
    y, seed = labels((2,), None), rand(2, zeros=0.5) if reduction == "none" else torch.tensor(1.0)

    def single(x: Tensor, y: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.multi_margin_loss(x, y, weight=w, reduction=reduction))(x, g)

    check(single, rand(2, 3), y, rand(3).abs() + 0.1, seed, large=3.0)
    scalar = Index(torch.tensor(1), range(3))
    check(
        lambda x, y: grads(lambda x: F.multi_margin_loss(x, y, reduction=reduction), seeded=False)(x),
        rand(3),
        scalar,
    )

    several = Index(torch.tensor([[1, -1, 0], [0, 2, -1]]), [-1, 0, 1, 2])

    def multi(x: Tensor, y: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.multilabel_margin_loss(x, y, reduction=reduction))(x, g)

    check(multi, rand(2, 3), several, seed, large=3.0)
    check(
        lambda x, y: grads(lambda x: F.multilabel_margin_loss(x, y, reduction=reduction), seeded=False)(x),
        rand(3),
        Index(several.tensor[0], several.values),
    )


def test_margin_losses_keep_rows_apart() -> None:
    fixed = torch.tensor([2, 0])
    check(lambda x: F.multi_margin_loss(x, fixed, margin=9.0, reduction="none"), rand(2, 3), exact=True)
    wanted = torch.tensor([[1, -1, 0], [0, 2, -1]])
    check(
        lambda x: F.multilabel_margin_loss(x, wanted, reduction="none"), rand(2, 3) / 9, exact=True, large=0.1
    )


@pytest.mark.parametrize("p", [1, 2])
def test_a_margin_is_between_a_class_and_its_target(p: int) -> None:
    wanted, weights = torch.tensor([2, 0]), rand(3).abs() + 0.1

    def run(x: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return grads(lambda x: F.multi_margin_loss(x, wanted, p, 4.0, w, reduction="none"))(x, g)

    check(run, rand(2, 3), weights, rand(2), exact=p == 2)  # p = 1: only signs, most changes show none


def test_one_class_has_no_margin() -> None:
    for loss in (F.multi_margin_loss, F.multilabel_margin_loss):
        for x in (rand(1), rand()):
            y = torch.zeros(x.shape, dtype=torch.int64)
            check(lambda x, g: grads(lambda x: loss(x, y))(x, g), x, torch.tensor(1.5), exact=True)  # noqa: B023
    check(
        lambda x, y: F.multi_margin_loss(x, y, reduction="none"), rand(2, 1), Index(torch.tensor([0, 0]), [0])
    )


def ctc(x: Tensor, y: Tensor, steps: object, count: object, reduction: str = "none") -> Tensor:
    return F.ctc_loss(torch.log_softmax(x, -1), y, steps, count, reduction=reduction, zero_infinity=True)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ctc(reduction: str) -> None:
    y = Index(torch.tensor([[1, 2], [2, 1]]), [1, 2])
    seed = torch.tensor([0.7, 0.0]) if reduction == "none" else torch.tensor(1.0)
    for target in (y, Index(y.tensor.reshape(-1)[:3], y.values)):
        check(
            lambda x, y, g: grads(lambda x: ctc(x, y, [3, 2], [2, 1], reduction))(x, g),
            rand(3, 2, 3),
            target,
            seed,
            large=3.0,
            kinds=6,
        )


def test_ctc_keeps_sequences_apart() -> None:
    y = torch.tensor([[1, 2], [2, 1]])
    check(lambda x: ctc(x, y, (3, 2), (2, 1)), rand(3, 2, 3), exact=True, large=3.0)
    check(lambda x: ctc(x, y.reshape(-1)[:3], (3, 2), (2, 1)), rand(3, 2, 3), exact=True, large=3.0)
    check(lambda x: ctc(x, y[0], torch.tensor(3), torch.tensor(2)), rand(3, 3), large=3.0)

    def lengths(x: Tensor, steps: Tensor, count: Tensor, g: Tensor) -> list[Tensor]:
        op = torch.ops.aten._ctc_loss.Tensor
        return grads(lambda x: op(x.log_softmax(-1), y, steps, count, 0, True)[0])(x, g)

    steps, count = Index(torch.tensor([3, 2]), [2, 3]), Index(torch.tensor([2, 1]), [1, 2])
    check(lengths, rand(3, 2, 3), steps, count, rand(2), kinds=6)


def test_ctc_tells_python_the_lengths_of_targets_alone() -> None:
    y = torch.tensor([[1, 2], [2, 1]])
    reach = dependencies(lambda x: ctc(x, y, (3, 2), (2, 1)), rand(3, 2, 3))[0][0]  # [2, 3, 2, 3]
    assert not reach[0, :, 1].any() and not reach[1, :, 0].any()


@pytest.mark.parametrize("options", [None, LinearCrossEntropyOptions()], ids=["plain", "chunked"])
def test_linear_cross_entropy(options: LinearCrossEntropyOptions | None) -> None:
    y = labels((3,), -100)
    for reduction in ("none", "sum", "mean"):
        seed = rand(3, zeros=0.4) if reduction == "none" else torch.tensor(1.0)
        check(
            lambda x, w, y, g: grads(
                lambda x, w: F.linear_cross_entropy(x, w, y, reduction=reduction, options=options),  # noqa: B023
                (0, 1),
            )(x, w, g),
            rand(3, 2),
            rand(3, 2, seed=4),
            y,
            seed,
            large=3.0,
            kinds=6,
        )


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [-100, 0])
def test_a_fused_linear_loss_keeps_positions_apart(reduction: str, weighted: bool, ignored: int) -> None:
    """A position's gradient reads its own row, an ignored one's its label alone; of the class weights each
    label reads its own."""

    def run(x: Tensor, t: Tensor, b: Tensor, y: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return grads(
            lambda x, t, b: F.linear_cross_entropy(
                x,
                t,
                y,
                linear_bias=b,
                weight=w if weighted else None,
                reduction=reduction,
                ignore_index=ignored,
                options=LinearCrossEntropyOptions(allow_retain_graph=True),
            ),
            (0, 1, 2),
        )(x, t, b, g)

    # a mean over no position at all is 0 / 0, also where one is ignored
    first = 2 if reduction == "mean" else ignored
    y = Index(torch.tensor([first, 1, 2]), sorted({ignored, 0, 1, 2}))
    seed = rand(3) if reduction == "none" else torch.tensor(1.5)
    weights = rand(3).abs() + 0.1
    check(run, rand(3, 2), rand(3, 2, seed=4), rand(3, seed=5), y, weights, seed, exact=True, large=3.0)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_fused_linear_loss_of_ignored_positions(reduction: str) -> None:
    """All of them: 0 / 0 as long as no label charges one."""

    def run(x: Tensor, t: Tensor, y: Tensor, g: Tensor) -> list[Tensor]:
        options = LinearCrossEntropyOptions()
        return grads(
            lambda x, t: F.linear_cross_entropy(x, t, y, reduction=reduction, options=options), (0, 1)
        )(x, t, g)

    y = Index(torch.tensor([-100, -100]), [-100, 0, 1])
    check(run, rand(2, 2), rand(2, 2, seed=4), y, torch.tensor(1.5), large=3.0)


def test_an_ignored_position_of_a_linear_layer_is_no_part_of_its_gradients() -> None:
    def run(x: Tensor, t: Tensor, y: Tensor, g: Tensor) -> list[Tensor]:
        loss = lambda x, t: F.cross_entropy((x @ t).unflatten(1, (3, 2)), y, reduction="none")  # noqa: E731
        return grads(loss, (0, 1))(x, t, g)

    check(run, rand(2, 2), rand(2, 6, seed=4), labels((2, 2), -100), rand(2, 2), exact=True, large=3.0)


@pytest.mark.parametrize("options", [{"weight": torch.tensor([1.0, 2.0, 3.0])}, {"ignore_index": 0}, {}])
def test_gradients_of_a_mean_know_the_labels_that_weigh(options: dict[str, Any]) -> None:
    """Verbatim labels: a row's gradient is divided by a total to which every label adds."""
    tokens, logits = torch.tensor([1, 2, 0, 2, 1, 0, 2]), rand(6, 3)

    def gradient(tokens: Tensor) -> Tensor:
        x = logits.clone().requires_grad_()
        F.cross_entropy(x, tokens[1:], **options).backward()
        assert x.grad is not None
        return x.grad

    base, latest = gradient(tokens), [0] * 6
    for label in range(1, 7):
        for step in (1, 2):
            flipped = tokens.clone()
            flipped[label] = (tokens[label] + step) % 3
            for row in (gradient(flipped) != base).any(-1).nonzero()[:, 0].tolist():
                latest[row] = max(latest[row], label)
    with causaltrace.watch(tokens) as trace:
        shadow = trace._tracer.memory.read(gradient(tokens))
    assert shadow is not None and shadow.support is not None
    assert (shadow.support.data[..., 0].expand(6, -1).amax(-1) >> 1).tolist() == latest


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("grad", [False, True])
def test_a_fused_linear_loss_is_a_readout(reduction: str, grad: bool) -> None:
    tokens, table = torch.tensor([1, 2, 0, 2, 1, 0, 2]), rand(3, 4)
    for shift, status in ((0, "clean"), (-1, "violation")):
        weight = rand(3, 4, seed=1).requires_grad_(grad)
        options = LinearCrossEntropyOptions()
        with causaltrace.watch(tokens) as trace, torch.set_grad_enabled(grad):
            h = table[tokens[:-1]].cumsum(0).roll(shift, 0)
            loss = F.linear_cross_entropy(h, weight, tokens[1:], reduction=reduction, options=options)
            total = loss.detach().sum()
        assert trace.report.status == status, trace.report
        assert sorted(trace.report.positions) == list(range(1, 7)) and total.isfinite()


def test_gradients_of_a_fused_linear_loss_hold_its_labels() -> None:
    tokens, weight = torch.tensor([1, 2, 0, 2, 1, 0, 2]), rand(3, 4).requires_grad_()
    for reduction in ("sum", "none"):
        weight.grad = None
        with causaltrace.watch(tokens) as trace:
            x, options = rand(6, 4, seed=1), LinearCrossEntropyOptions()
            F.linear_cross_entropy(
                x, weight, tokens[1:], reduction=reduction, options=options
            ).sum().backward()
            assert weight.grad is not None
            shadow = trace._tracer.memory.read(weight.grad)
        assert shadow is not None and shadow.support is not None
        assert int(shadow.support.data[..., 0].max()) >> 1 == 6
