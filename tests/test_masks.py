"""Every way to write an attention mask, against exhaustive flips: same positions, same latest labels."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from tests.attends import (
    DIM,
    DTYPES,
    FUTURE,
    LEAKING,
    LEGAL,
    NAMES,
    PAST,
    Attend,
    additive,
    backend,
    by_hand,
    check,
    fill,
    lowest,
    model,
    scoring,
    sdpa,
)
from tests.probe import LENGTH, Eval, flips, stream, watched


@pytest.fixture(params=DTYPES, ids=NAMES.get)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", LEGAL)
def test_a_mask_that_hides_the_future_is_clean(name: str, depth: int, dtype: torch.dtype) -> None:
    assert not check(scoring(model(LEGAL[name], depth, dtype)), stream()).violating


@pytest.mark.parametrize("name", LEAKING)
def test_a_mask_that_lets_the_future_through_is_not(name: str, dtype: torch.dtype) -> None:
    run = scoring(model(LEAKING[name], 2, dtype))
    others = [
        scoring(model(LEAKING[name], 2, torch.float64, sharp, seed=seed))
        for seed in range(30)
        for sharp in (300.0, 1.0)
    ]
    assert check(run, stream(), *others).violating


@pytest.mark.xfail(reason="x - 1e9 is not absorbed where it is not exactly -1e9", strict=True)
def test_a_hand_added_mask_and_large_scores() -> None:
    """In float32 the sum keeps bits of scores above 32; its exp is 0 all the same."""
    net = model(lambda q, k, v: LEGAL["hand_add_minus_1e9"](q * 1000, k, v), 1, torch.float32)
    assert not check(scoring(net), stream()).violating


# ---------------------------------------------------------------------------------- rows without any key

PADDED = FUTURE.clone()
PADDED[:, :2] = True  # rows 0 and 1 see nothing

FULLY_MASKED: dict[str, Attend] = {
    "finfo_min": sdpa(lambda q: additive(torch.finfo(q.dtype).min, PADDED)(q)),
    "minus_1e9": sdpa(additive(-1e9, PADDED)),
    "two_masks_added": sdpa(lambda q: additive(-1e9)(q) + additive(-1e9, PADDED & ~FUTURE)(q)),
    "math_finfo_min": backend(SDPBackend.MATH, sdpa(additive(-1e9, PADDED))),
    "hand_fill_minus_1e9": by_hand(fill(-1e9, PADDED)),
    "hand_fill_finfo_min": by_hand(lambda s: s.masked_fill(PADDED, torch.finfo(s.dtype).min)),
    "hand_add_minus_1e9": by_hand(lambda s: s + additive(-1e9, PADDED)(s)),
}


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", FULLY_MASKED)
def test_a_row_without_keys_is_uniform_over_all_of_them(name: str, depth: int, dtype: torch.dtype) -> None:
    run = scoring(model(FULLY_MASKED[name], depth, dtype))
    exact = [scoring(model(FULLY_MASKED[name], depth, torch.float64, seed=seed)) for seed in range(3)]
    assert check(run, stream(), *exact).violating == {1, 2}


@pytest.mark.parametrize("mask", [~PADDED, additive(-math.inf, PADDED)], ids=["bool", "minus_inf"])
def test_a_row_without_keys_at_minus_infinity_depends_on_none(mask: Any, dtype: torch.dtype) -> None:
    run = scoring(model(sdpa(mask), 1, dtype))
    assert not flips(run, stream()).violating
    assert watched(run, stream()).report.status == "clean"


# ------------------------------------------------------------------------------------ heads and adapters


@pytest.mark.parametrize("kind", ["is_causal", "bool", "finfo_min", "math_bool", "no_mask"])
def test_grouped_queries(kind: str, dtype: torch.dtype) -> None:
    mask = {"bool": PAST, "math_bool": PAST, "finfo_min": lowest}.get(kind)
    attend = sdpa(mask, causal=kind == "is_causal", enable_gqa=True)
    if kind.startswith("math"):
        attend = backend(SDPBackend.MATH, attend)
    run = scoring(model(attend, 2, dtype, kv_heads=1))
    assert bool(check(run, stream()).violating) == (kind == "no_mask")


def adapting(attend: Attend, dtype: torch.dtype, fitted: int, seed: int = 0, rate: float = 0.5) -> Eval:
    """Score the first ``SPLIT`` positions, fit a delta on the first ``fitted``, score the others."""
    net = model(attend, 2, dtype, seed=seed)

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = tokens[:-1], tokens[1:]
        with torch.no_grad():
            before = net(inputs)[:SPLIT]
        delta = torch.zeros(1, 1, DIM, dtype=dtype, requires_grad=True)
        for _ in range(2):
            loss = F.cross_entropy(net(inputs, delta)[:fitted].float(), targets[:fitted])
            (grad,) = torch.autograd.grad(loss, delta)
            delta = (delta - rate * grad).detach().requires_grad_()
        with torch.no_grad():
            after = net(inputs, delta)[SPLIT:]
        return torch.cat((before, after)), torch.arange(1, len(tokens))

    return run


SPLIT = 4


@pytest.mark.parametrize("name", LEGAL)
def test_a_fit_on_what_was_scored_is_clean(name: str, dtype: torch.dtype) -> None:
    run = adapting(LEGAL[name], dtype, SPLIT)
    assert not check(run, stream(), adapting(LEGAL[name], torch.float64, SPLIT)).violating


@pytest.mark.parametrize("name", LEGAL)
def test_a_fit_on_everything_reaches_every_later_score(name: str, dtype: torch.dtype) -> None:
    run = adapting(LEGAL[name], dtype, LENGTH)
    exact = [adapting(LEGAL[name], torch.float64, LENGTH, seed=seed) for seed in range(3)]
    truth = check(run, stream(), *exact)
    assert truth.violating == set(range(SPLIT + 1, LENGTH + 1))


@pytest.mark.parametrize("kind", ["is_causal", "bool", "no_mask"])
def test_the_gradient_of_grouped_queries(kind: str, dtype: torch.dtype) -> None:
    attend = sdpa(PAST if kind == "bool" else None, causal=kind == "is_causal", enable_gqa=True)

    def run(kept: torch.dtype, seed: int = 0) -> Eval:
        return adapting_keys(attend, kept, seed)

    check(run(dtype), stream(), *(run(torch.float64, seed) for seed in range(3)))


def adapting_keys(attend: Attend, dtype: torch.dtype, seed: int) -> Eval:
    """As ``adapting``, with an update of the key projection: its gradient comes out of the keys' only."""
    initial = model(attend, 2, dtype, kv_heads=1, seed=seed)

    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        net = copy.deepcopy(initial)
        inputs, targets = tokens[:-1], tokens[1:]
        with torch.no_grad():
            before = net(inputs)[:SPLIT]
        loss = F.cross_entropy(net(inputs)[:SPLIT].float(), targets[:SPLIT])
        for layer in net.layers:
            (grad,) = torch.autograd.grad(loss, layer.key.weight, retain_graph=True)
            with torch.no_grad():
                layer.key.weight.sub_(10 * grad)
        with torch.no_grad():
            after = net(inputs)[SPLIT:]
        return torch.cat((before, after)), torch.arange(1, len(tokens))

    return run
