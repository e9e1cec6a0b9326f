"""Movement: cat, stack, pad, roll, flip, repeat, slices and their gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracle import check, grads
from tests.rules.test_pointwise import rand

MOVES = [
    lambda x, y: torch.cat((x, y)),
    lambda x, y: torch.cat((x, x), 1),
    lambda x, y: torch.cat((x, torch.zeros(2, 2), y)),
    lambda x, y: torch.cat((torch.zeros(0), x, y)),
    lambda x, y: torch.stack((x, y)),
    lambda x, y: torch.stack((x, torch.ones(2, 2), y), -1),
    lambda x, y: torch.hstack((x[0], y[1])),
    lambda x, y: torch.flip(x, (0, -1)) + 0,
    lambda x, y: torch.roll(x, 1),
    lambda x, y: torch.roll(x, (1, -1), (0, 1)),
    lambda x, y: torch.roll(x, 1, -1),
    lambda x, y: x.repeat(2, 1),
    lambda x, y: x.repeat(2, 1, 3),
    lambda x, y: x[:, :1].repeat(1, 2),
    lambda x, y: x.repeat_interleave(2, 0),
    lambda x, y: F.pad(x, (1, 0)),
    lambda x, y: F.pad(x, (-1, 1, 1, 0), value=2.0),
    lambda x, y: F.pad(x, (0, 0, 2, -1)),
    lambda x, y: torch.rot90(x),
    lambda x, y: x.tile(2),
    lambda x, y: x.expand(3, 2, 2).contiguous(),
    lambda x, y: x.unfold(0, 2, 1),
    lambda x, y: x.t().reshape(4),
    lambda x, y: x.movedim(0, 1).flatten(),
    lambda x, y: torch.block_diag(x, y),
    lambda x, y: torch.diag(x),
    lambda x, y: torch.diag_embed(x),
    lambda x, y: x.diagonal(1),
    lambda x, y: torch.select_scatter(x, y[0], 1, 0),
    lambda x, y: x[..., ::2],
    lambda x, y: torch.slice_scatter(x, y[:1], 0, 1),
    lambda x, y: torch.diagonal_scatter(x, y[0]),
    lambda x, y: torch.slice_scatter(x, torch.zeros(2, 1), 1, 0, 1),
    lambda x, y: x.narrow(1, 1, 1).clone(),
    lambda x, y: torch.stack(x.unbind(1)),
    lambda x, y: torch.cat(x.split(1, 1)),
    lambda x, y: torch.cat(x.chunk(2)),
    lambda x, y: x.double().half().float(),
    lambda x, y: x.clone().t_(),
    lambda x, y: x.clone().unsqueeze_(0).squeeze_(0),
    lambda x, y: torch.meshgrid(x[0], y[0], indexing="ij")[0].clone(),
    lambda x, y: torch.cartesian_prod(x[0], y[0]),
    lambda x, y: x.as_strided((2, 2), (1, 1)).clone() if x.is_contiguous() else x,
    lambda x, y: torch.vander(x[0]),
]


@pytest.mark.parametrize("fn", MOVES)
def test_moves(fn: object) -> None:
    x, y = rand(2, 2), rand(2, 2, seed=1)
    check(fn, x, y, exact=True, layouts=fn is not MOVES[-2])
    shape = fn(x, y).shape
    if fn not in MOVES[-6:]:

        def back(x: Tensor, y: Tensor, g: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(fn(x, y), x, g)[0]

        check(back, x, y, rand(*shape, seed=3), exact=True, layouts=fn is not MOVES[-2])


def test_view_gradients_of_compressed_dims() -> None:
    x = rand(2, 3, 2)
    for fn in (
        lambda x: x[:, 1],
        lambda x: x[..., :1],
        lambda x: x.diagonal(0, 0, 2),
        lambda x: x[:, ::2],
        lambda x: x[1],
    ):
        check(grads(fn), x, rand(*fn(x).shape), kinds=10)


def test_scalars_and_empty_parts() -> None:
    check(lambda x: torch.stack((x, x * 2)), torch.tensor(1.5), exact=True)
    check(lambda x: x.repeat(3), torch.tensor(1.5), exact=True)
    check(lambda x: torch.cat((x[:0], x)), rand(3), exact=True)
    check(lambda x: x.flip(0), rand(1), exact=True)
    check(lambda x: torch.cat((x[None], x[None, :].clone())), rand(1), exact=True)


def test_places_that_shapes_decide() -> None:
    x = rand(1, 4, 3)
    for fn in (
        lambda x: F.pad(x, (2, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 2), mode="replicate"),
        lambda x: F.pad(x, (1, 1), mode="circular"),
        lambda x: F.pixel_shuffle(x[..., None], 2),
        lambda x: list(torch.unsafe_split(x, 2, 1)),
        lambda x: F.channel_shuffle(x[..., None], 2),
        lambda x: F.unfold(x[None], (2, 2)),
        lambda x: torch.narrow_copy(x, 1, 1, 2),
    ):
        check(fn, x, exact=True)


def test_a_row_for_all_queries_is_hidden_from_some() -> None:
    past = torch.ones(3, 3, dtype=torch.bool).tril()
    check(lambda x: torch.where(past, x.expand(3, 3), 0.0), rand(1, 3), exact=True)
    check(lambda x: x.expand(3, 3).masked_fill(~past, 0.0), rand(3), exact=True)
