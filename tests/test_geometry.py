"""Any view of any layout, read and written, against element addresses counted one by one."""

import random

import pytest
import torch

from causaltrace.geometry import Geometry, assign, geometry, view_of


def addresses(t: torch.Tensor) -> torch.Tensor:
    out = torch.full(t.shape, t.storage_offset())
    for d, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        shape = [1] * t.ndim
        shape[d] = size
        out = out + torch.arange(size).view(shape) * stride
    return out


def random_view(x: torch.Tensor, rng: random.Random) -> torch.Tensor:
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(6)
        if kind == 0 and x.ndim > 1:
            x = x.transpose(*rng.sample(range(x.ndim), 2))
        elif kind == 1 and x.ndim:
            d = rng.randrange(x.ndim)
            start = rng.randrange(x.shape[d])
            stop = rng.randint(start + 1, x.shape[d])
            x = x[(slice(None),) * d + (slice(start, stop, rng.choice([1, 1, 2])),)]
        elif kind == 2 and x.ndim > 1:
            x = x.select(rng.randrange(x.ndim), 0)
        elif kind == 3 and x.ndim > 1 and x.is_contiguous():
            x = x.flatten(0, 1)
        elif kind == 4 and x.ndim and x.shape[-1] % 2 == 0:
            x = x.unflatten(-1, (2, x.shape[-1] // 2))
        elif kind == 5:
            x = x.as_strided((3, 4), (rng.choice([0, 1, 2, 3]), rng.choice([1, 2, 5])), rng.randrange(4))
    return x


@pytest.mark.parametrize("seed", range(8))
def test_views_and_writes(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    reads = writes = 0
    for _ in range(300):
        shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 4))]
        x = torch.zeros(shape)
        if rng.random() < 0.3 and x.ndim > 1:
            x = x.transpose(0, 1).contiguous().transpose(0, 1)
        data = torch.randint(0, 1000, (*[n if rng.random() < 0.6 else 1 for n in x.shape], 2)).int()
        flat = torch.empty(x.numel(), 2, dtype=torch.int32)
        flat[addresses(x).flatten()] = data.expand(*x.shape, 2).reshape(-1, 2)
        enough = torch.empty(1000).as_strided(x.shape, x.stride())
        view = random_view(enough, rng)
        where = addresses(view)
        if where.max() >= x.numel():
            with pytest.raises(IndexError):
                view_of(data, geometry(x), geometry(view))
            continue
        reads += 1
        assert torch.equal(view_of(data, geometry(x), geometry(view)).expand(*view.shape, 2), flat[where])
        if where.unique().numel() == where.numel():
            writes += 1
            value = torch.randint(
                1000, 2000, (*[n if rng.random() < 0.6 else 1 for n in view.shape], 2)
            ).int()
            after = assign(data, geometry(x), geometry(view), value).expand(*x.shape, 2)
            flat[where.flatten()] = value.expand(*view.shape, 2).reshape(-1, 2)
            assert torch.equal(after, flat[addresses(x)])
    assert reads > 100 and writes > 50


def test_wider_and_narrower_elements() -> None:
    base = Geometry(0, (2, 4), (4, 1), 4)
    data = torch.arange(8).view(2, 4, 1).int()
    pairs = view_of(data, base, Geometry(0, (2, 2), (2, 1), 8))
    assert pairs[..., 0].tolist() == [[1, 3], [5, 7]]  # each 8-byte element covers two of the base's
    halves = view_of(data, base, Geometry(0, (2, 8), (8, 1), 2))
    assert halves[..., 0].tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6, 7, 7]]


@pytest.mark.parametrize("length", [16, 512])
def test_heads_merged_with_the_batch_leave_the_rest_compressed(length: int) -> None:
    base = geometry(torch.empty(2, 4, length, 128))
    data = torch.randint(0, 1000, (2, 1, length, 1, 2)).int()
    merged = view_of(data, base, geometry(torch.empty(8, length, 128)))
    assert merged.shape == (8, length, 1, 2)
    assert torch.equal(merged.view(2, 4, length, 1, 2), data.expand(2, 4, length, 1, 2))


def test_what_is_stored_in_another_order_stays_compressed() -> None:
    base = geometry(torch.empty(2, 4, 3, 16, 8))
    data = torch.randint(0, 1000, (4, 2, 3, 1, 1, 2)).int().transpose(0, 1)
    merged = view_of(data, base, geometry(torch.empty(8, 3, 128)))
    assert merged.shape == (8, 3, 1, 2)
    assert torch.equal(merged.view(2, 4, 3, 1, 1, 2), data)
