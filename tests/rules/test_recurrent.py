"""Recurrent layers: what ran as one op, and what was decomposed; both directions, packed sequences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.oracle import Index, check, grads
from tests.rules.test_pointwise import rand

#: No grad, gradients, and the mode in which composite ops arrive whole.
MODES = [torch.no_grad, torch.enable_grad, torch.inference_mode]


def layer(kind: type[nn.RNNBase], **options: object) -> nn.RNNBase:
    torch.manual_seed(1)
    return kind(2, 2, **options)


def sums(x: Tensor) -> Tensor:
    """One number a step: single features do not depend on all of a state."""
    return (x * torch.tensor([1.0, 0.7])).sum(-1)


def run(model: nn.RNNBase) -> Callable[..., list[Tensor]]:
    """Outputs of each direction, and the last states."""

    def fn(x: Tensor, *state: Tensor) -> list[Tensor]:
        out, last = model(x, state if len(state) > 1 else state[0] if state else None)
        return [sums(half) for half in out.split(2, -1)] + [
            sums(t) for t in (last if len(state) != 1 else [last])
        ]

    return fn


@pytest.mark.parametrize("mode", MODES, ids=lambda f: f.__name__)
def test_lstm_is_exact(mode: type) -> None:
    with mode():
        for options in ({}, {"bidirectional": True}, {"bias": False}, {"batch_first": True}):
            model = layer(nn.LSTM, **options)
            states = 2 if "bidirectional" in options else 1
            h, c = rand(states, 2, 2), rand(states, 2, 2, seed=1)
            x = rand(2, 3, 2) if "batch_first" in options else rand(3, 2, 2)
            check(run(model), x, h, c, exact=True, kinds=5)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
@pytest.mark.parametrize("mode", MODES, ids=lambda f: f.__name__)
def test_decomposed_layers_are_exact(kind: type[nn.RNNBase], mode: type) -> None:
    with mode():
        for both in (False, True):
            model = layer(kind, bidirectional=both)
            check(run(model), rand(3, 2, 2), rand(1 + both, 2, 2), exact=True, kinds=5)


def test_layers_one_after_the_other() -> None:
    model = layer(nn.LSTM, num_layers=2)
    check(lambda x: sums(model(x)[0]), rand(3, 1, 2), exact=True, kinds=4)
    with torch.no_grad():
        check(lambda x: sums(layer(nn.LSTM, num_layers=2, bidirectional=True)(x)[0][..., :2]), rand(2, 1, 2))


@pytest.mark.parametrize("reverse", [False, True])
def test_weights_and_gradients(reverse: bool) -> None:
    """The op itself: gradients of everything, with zeros among the gradients that come in."""

    def fn(x: Tensor, w: Tensor, u: Tensor, a: Tensor, b: Tensor, h: Tensor, c: Tensor) -> Tensor:
        op = torch.ops.aten.mkldnn_rnn_layer
        return op(x, w, u, a, b, h, c, reverse, [], 2, 1, 1, True, False, False, True)[0]

    inputs = [rand(3, 2, 2), rand(4, 2), rand(4, 1), rand(4), rand(4, seed=1), rand(2, 1), rand(2, 1, seed=1)]
    for zeros in (0.0, 0.6):
        check(grads(fn, range(7)), *inputs, rand(3, 2, 1, zeros=zeros), kinds=7)
    one = torch.zeros(3, 2, 1)
    one[1] = 1.0
    check(grads(fn, (0, 5, 6)), *inputs, one)


@pytest.mark.parametrize("both", [False, True])
def test_gradients_of_inputs_are_exact(both: bool) -> None:
    model = layer(nn.LSTM, bidirectional=both).requires_grad_(False)

    def step(x: Tensor, g: Tensor) -> Tensor:
        return grads(lambda x: model(x)[0])(x, g)[1]

    check(step, rand(3, 2, 2), rand(3, 2, 2 + 2 * both, seed=2), exact=True, kinds=5)
    if not both:  # a loss of the first step reads no later one
        early = rand(3, 1, 2)
        early[1:] = 0
        check(
            lambda x: grads(lambda x: sums(model(x)[0]))(x, early[..., 0])[1][:1], rand(3, 1, 2), exact=True
        )


def test_gradients_through_the_last_states() -> None:
    model = layer(nn.LSTM).requires_grad_(False)
    for which in (0, 1):
        check(grads(lambda x: model(x)[1][which]), rand(3, 2, 2), rand(1, 2, 2, zeros=0.4))  # noqa: B023
    weights = [p.detach() for p in model.parameters()]

    def tied(x: Tensor, w: Tensor, h: Tensor, c: Tensor) -> Tensor:
        out, last, cell = torch._VF.lstm(x, (h, c), [w, *weights[1:]], True, 1, 0.0, True, False, False)
        return out.sum() + (last * cell).sum()

    check(
        grads(tied, (0, 1, 2, 3), seeded=False),
        rand(2, 2, 2),
        weights[0],
        rand(1, 2, 2),
        rand(1, 2, 2, seed=1),
        kinds=6,
    )


def test_bfloat16_and_one_step() -> None:
    half = layer(nn.LSTM).bfloat16()
    with torch.no_grad():
        check(lambda x: half(x.bfloat16())[0].float(), rand(2, 1, 2))
    check(lambda x: layer(nn.LSTM)(x)[0], rand(1, 2, 2))
    check(lambda x: layer(nn.LSTM)(x)[0], rand(2, 2))  # no batch


LENGTHS = torch.tensor([3, 1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("mode", MODES, ids=lambda f: f.__name__)
def test_packed_sequences_are_exact(kind: type[nn.RNNBase], mode: type) -> None:
    def fn(x: Tensor) -> Tensor:
        out, _ = layer(kind)(pack_padded_sequence(x, LENGTHS))
        return sums(pad_packed_sequence(out)[0])

    with mode():
        check(fn, rand(3, 2, 2), exact=True, kinds=5)


def test_packing() -> None:
    def padded(x: Tensor) -> Tensor:
        return pack_padded_sequence(x, LENGTHS, batch_first=True).data

    check(padded, rand(2, 3, 2), exact=True)
    check(grads(padded), rand(2, 3, 2), rand(4, 2), exact=True)
    check(
        lambda x: pack_padded_sequence(x, LENGTHS.flip(0), enforce_sorted=False).data, rand(3, 2), exact=True
    )
    lengths = Index(LENGTHS, [1, 2, 3])
    op = torch.ops.aten._pack_padded_sequence

    def counted(x: Tensor, n: Tensor) -> Tensor:
        """Results of one size, whatever the lengths."""
        data, sizes = op(x, n.sort(descending=True).values, False)
        return torch.stack((data.sum(), sizes.sum()))

    check(counted, rand(3, 2), lengths)
    check(
        lambda x: grads(lambda x: layer(nn.LSTM)(pack_padded_sequence(x, LENGTHS))[0].data)(x, rand(4, 2)),
        rand(3, 2, 2),
        kinds=4,
    )
