"""Optimizer steps: what a parameter and its state depend on after some updates."""

import pytest
import torch
from torch import Tensor

from causaltrace.lattice.cells import Cells
from causaltrace.shadow import Shadow
from tests.oracle import Notes, check, tracer
from tests.rules.test_pointwise import rand


def steps(make: object, clip: float | None = None, **options: object) -> object:
    """Two steps on two parameters with the gradients g; results: parameters and state."""

    def fn(w: Tensor, v: Tensor, g: Tensor, h: Tensor) -> list[Tensor]:
        params = [w.detach().requires_grad_(), v.detach().requires_grad_()]
        optimizer = make(params, **options)
        for scale in (1.0, 0.5):
            params[0].grad, params[1].grad = g * scale, h * scale
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(
                    params, clip, **({"foreach": options["foreach"]} if "foreach" in options else {})
                )
            optimizer.step()
        state = [t for p in params for t in optimizer.state[p].values() if isinstance(t, Tensor) and t.ndim]
        return [p.detach() for p in params] + state

    return fn


ADAM = {"lr": 0.1, "weight_decay": 0.1}
KINDS = [{"foreach": False}, {"foreach": True}, {"fused": True}]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (torch.optim.Adam, ADAM),
        (torch.optim.AdamW, ADAM | {"amsgrad": True}),
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.Adagrad, {"lr": 0.1}),
    ],
)
def test_steps(make: object, options: dict[str, object], kind: dict[str, bool]) -> None:
    check(
        steps(make, **options, **kind),
        rand(2, 2),
        rand(2),
        rand(2, 2, seed=1),
        rand(2, seed=1),
        large=3.0,
        kinds=6,
    )


@pytest.mark.parametrize(
    "make",
    [torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax],
)
@pytest.mark.parametrize("foreach", [False, True])
def test_rarer_optimizers(make: object, foreach: bool) -> None:
    check(
        steps(make, lr=0.1, foreach=foreach),
        rand(2, 1),
        rand(1),
        rand(2, 1, seed=1),
        rand(1, seed=1),
        large=3.0,
        kinds=6,
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_updates_stay_element_wise(kind: dict[str, bool]) -> None:
    def fn(w: Tensor, g: Tensor) -> Tensor:
        p = w.detach().requires_grad_()
        p.grad = g
        torch.optim.AdamW([p], lr=0.1, **kind).step()
        return p.detach()

    check(fn, rand(2, 2), rand(2, 2, seed=1), exact=True, large=3.0)


@pytest.mark.parametrize("foreach", [False, True])
def test_clipping(foreach: bool) -> None:
    check(
        steps(torch.optim.SGD, clip=0.5, lr=0.1, foreach=foreach),
        rand(2),
        rand(1),
        rand(2, seed=1),
        rand(1, seed=1),
        large=3.0,
        kinds=6,
    )

    def value(g: Tensor, h: Tensor) -> list[Tensor]:
        params = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
        params[0].grad, params[1].grad = g, h
        torch.nn.utils.clip_grad_value_(params, 0.3, foreach=foreach)
        return [g, h]

    check(value, rand(2), rand(1), exact=True)


def test_lbfgs_decides_in_python() -> None:
    """Its step length is a Python number made from the gradient: an escape, and noticed as one."""
    trace = tracer()
    trace.ledger.grow(5)
    w, x = torch.ones(2), rand(2)
    trace.memory.write(x, Shadow(support=Cells(torch.tensor([[7, 7], [9, 9]], dtype=torch.int32))))
    with trace:
        p = w.detach().requires_grad_()
        optimizer = torch.optim.LBFGS([p], lr=0.5, max_iter=2)

        def loss() -> Tensor:
            optimizer.zero_grad()
            out = ((p * x) ** 2).sum() + p.sum()
            out.backward()
            return out

        optimizer.step(loss)
    shadow = trace.memory.read(p)
    assert shadow is not None and shadow.support is not None
    assert (trace.algebra.lattice.position(shadow.support.data[..., 0]) >= 3).all()
    assert isinstance(trace.recorder, Notes) and "_local_scalar_dense" in trace.recorder.escapes


def test_muon_step() -> None:
    def fn(w: Tensor, g: Tensor, m: Tensor) -> list[Tensor]:
        m = m.lerp_(g, 0.05)
        x = g.lerp(m, 0.95).bfloat16()
        x = x / (x.norm() + 1e-7)
        for _ in range(2):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        w.data.add_(x.type_as(w), alpha=-0.02)
        return [w, m]

    check(fn, rand(2, 2), rand(2, 2, seed=1), rand(2, 2, seed=2), large=3.0)


def test_grad_scaler_kernels() -> None:
    def fn(g: Tensor, h: Tensor, scale: Tensor) -> list[Tensor]:
        found = torch.zeros(1)
        torch._amp_foreach_non_finite_check_and_unscale_([g, h], found, scale)
        grow, tracker = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        torch._amp_update_scale_(grow, tracker, found, 2.0, 0.5, 1)
        return [g, h, found, grow]

    check(fn, rand(2), rand(1), torch.tensor([0.5]))
