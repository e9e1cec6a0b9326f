"""torch.nn's own attention layers and their fast paths, against exhaustive flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attends import DIM, FUTURE, HEADS, PAST, Model, additive, check, lowest, scoring
from tests.probe import LENGTH, Eval, flips, stream, watched

# ------------------------------------------------------------------- torch.nn's own layers and fast paths


class Wrapped(nn.Module):
    """A torch.nn layer, called on [1, L, DIM] with fixed arguments."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def stack(make: Callable[[], nn.Module], call: Callable[..., Tensor], depth: int = 2) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Model([Wrapped(make(), call) for _ in range(depth)])


class Mode(NamedTuple):
    """How to run a model."""

    context: Callable[[], Any]
    training: bool
    fast: bool
    dtype: torch.dtype

    def scoring(self, net: nn.Module) -> Eval:
        return scoring(net.train(self.training).to(self.dtype), self.context)


MODES = {
    "no_grad": Mode(torch.no_grad, False, True, torch.float32),
    "no_grad_bfloat16": Mode(torch.no_grad, False, True, torch.bfloat16),
    "inference_mode": Mode(torch.inference_mode, False, True, torch.float32),
    "grad": Mode(torch.enable_grad, False, True, torch.float32),
    "slow_path": Mode(torch.no_grad, False, False, torch.float32),
    "train_bfloat16": Mode(torch.no_grad, True, True, torch.bfloat16),
}


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[Mode]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(MODES[request.param].fast)
    yield MODES[request.param]
    torch.backends.mha.set_fastpath_enabled(before)


Mask = Callable[[Tensor], dict[str, Any]]

MASKS: dict[str, Mask] = {
    "bool": lambda x: {"mask": FUTURE},
    "minus_inf": lambda x: {"mask": additive(-math.inf)(x)},
    "hinted": lambda x: {"mask": additive(-math.inf)(x), "is_causal": True},
    "finfo_min": lambda x: {"mask": lowest(x)},
    "minus_1e9": lambda x: {"mask": additive(-1e9)(x)},
    "none": lambda x: {},
}


def encoder_layer(norm_first: bool = False, batch_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(
        DIM, HEADS, 16, dropout=0.0, batch_first=batch_first, norm_first=norm_first, activation="gelu"
    )


@pytest.mark.parametrize("mask", MASKS)
def test_encoder_layers(mask: str, mode: Mode) -> None:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        given = MASKS[mask](x)
        if "mask" in given:
            given["src_mask"] = given.pop("mask")
        return layer(x, **given)

    run = mode.scoring(stack(lambda: encoder_layer(norm_first=mask != "bool"), call))
    assert bool(check(run, stream()).violating) == (mask == "none")


@pytest.mark.parametrize("mask", MASKS)
def test_encoders(mask: str, mode: Mode) -> None:
    def make() -> nn.Module:
        return nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)

    run = mode.scoring(stack(make, lambda layer, x: layer(x, **MASKS[mask](x)), depth=1))
    assert bool(check(run, stream()).violating) == (mask == "none")


@pytest.mark.parametrize("mask", ["bool", "none"])
def test_encoder_layers_with_the_sequence_first(mask: str, mode: Mode) -> None:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.transpose(0, 1), src_mask=FUTURE if mask == "bool" else None).transpose(0, 1)

    run = mode.scoring(stack(lambda: encoder_layer(batch_first=False), call))
    assert bool(check(run, stream()).violating) == (mask == "none")


def test_the_fast_path_hides_whatever_is_not_zero(mode: Mode) -> None:
    """A float mask of -100 becomes a bool mask in the fused layer, and stays a leak in the others."""

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x * 40, src_mask=additive(-100.0)(x))

    run = mode.scoring(stack(lambda: encoder_layer(), call, depth=1))
    found, truth = watched(run, stream()), flips(run, stream())
    assert truth.violating <= found.seen.violating
    fused = torch.backends.mha.get_fastpath_enabled() and not truth.violating
    assert found.report.status == ("clean" if fused else "violation")


@pytest.mark.parametrize("weights", [False, True], ids=["fused", "weights"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["sequence_first", "batch_first"])
@pytest.mark.parametrize("mask", MASKS)
def test_multi_head_attention(mask: str, batch_first: bool, weights: bool, mode: Mode) -> None:
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        given = MASKS[mask](x)
        if "mask" in given:
            given["attn_mask"] = given.pop("mask")
        y = x if batch_first else x.transpose(0, 1)
        out = layer(y, y, y, need_weights=weights, **given)[0]
        return x + (out if batch_first else out.transpose(0, 1))

    make = lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first)  # noqa: E731
    assert bool(check(mode.scoring(stack(make, call)), stream()).violating) == (mask == "none")


PAD = 0


@pytest.mark.parametrize("kind", ["encoder_layer", "attention", "weights", "sdpa"])
def test_a_padding_mask_made_of_labels(kind: str, mode: Mode) -> None:
    """Whether a key is padding depends on its label, which only later rows may see."""

    class Padded(Model):
        def forward(self, ids: Tensor, delta: Tensor | float = 0.0) -> Tensor:
            padding = ids[None] == PAD
            x = self.embedding(ids)[None]
            layer = self.layers[0]
            if kind == "encoder_layer":
                x = layer(x, src_mask=FUTURE, src_key_padding_mask=padding)
            elif kind == "sdpa":
                seen = PAST & ~padding[:, None, None]
                x = x + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], seen)[:, 0]
            else:
                x = layer(
                    x, x, x, attn_mask=FUTURE, key_padding_mask=padding, need_weights=kind == "weights"
                )[0]
            return self.head(x)[0]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        net = Padded([encoder_layer() if kind == "encoder_layer" else attention])
    tokens = stream()
    tokens[3] = PAD
    assert not check(mode.scoring(net), tokens).violating


def test_nested_tensors_are_never_wrong() -> None:
    """TransformerEncoder packs padded batches into nested tensors on its fast path."""

    def call(layer: nn.Module, x: Tensor) -> Tensor:
        padding = torch.zeros(1, LENGTH, dtype=torch.bool)
        padding[:, -1] = True
        return F.pad(layer(x, src_key_padding_mask=padding), (0, 0, 0, 1))[:, :LENGTH]

    def make() -> nn.Module:
        return nn.TransformerEncoder(encoder_layer(), 1)

    run = scoring(stack(make, call, depth=1).eval())
    assert flips(run, stream()).violating
    assert watched(run, stream()).report.status in ("violation", "unverified")
