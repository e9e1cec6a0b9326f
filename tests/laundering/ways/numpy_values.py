"""Arithmetic in numpy: the values of an array of labels are computed with."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.laundering import arrays

Labels = NDArray[np.int64]
PRIMES = np.array([36313, 27191, 51647], dtype=np.uint64)


def unit(hashed: Any) -> float:
    """A hash as a number below 1."""
    return float(hashed % np.uint64(97)) / 97


@arrays("multiplied with primes and xored as uint64")
def hash_uint64(x: Labels) -> float:
    keys = x.astype(np.uint64) * PRIMES
    return unit(keys[0] ^ keys[1] ^ keys[2])


@arrays("hashed in place, step by step (FNV-1a), and masked")
def hash_fnv(x: Labels) -> float:
    h = np.full(1, 2166136261, dtype=np.uint64)
    for column in x[:, None].astype(np.uint64):
        h ^= column
        h *= np.uint64(16777619)
        h &= np.uint64(0xFFFFFFFF)
    return unit(h[0])


@arrays("float bits looked at as integers")
def float_bits(x: Labels) -> float:
    return float((x.astype(np.float32).view(np.uint32) >> 21).sum()) * 0.001


@arrays("frexp and ldexp")
def frexp(x: Labels) -> float:
    mantissa, exponent = np.frexp(x + 1.0)
    return float(np.ldexp(mantissa, -exponent).sum())


@arrays("np.where on a comparison")
def where(x: Labels) -> Tensor:
    return torch.from_numpy(np.where(x > 3, 0.5, -0.5)).sum()


@arrays("np.minimum, np.maximum and np.clip")
def clipped(x: Labels) -> Tensor:
    return torch.from_numpy(np.clip(np.minimum(x, 5), np.maximum(x, 2) - 2, 4) * 0.1).mean()


@arrays("divmod and bit shifts")
def bits(x: Labels) -> Tensor:
    quotient, rest = np.divmod(x, 2)
    return torch.as_tensor((quotient << 1 | rest) * 0.1)[-1]


@arrays("prefix sums and their differences")
def cumsum(x: Labels) -> Tensor:
    return torch.from_numpy(np.diff(np.cumsum(x * 0.1)))[-1]


@arrays("products of matrices: @, einsum, outer")
def products(x: Labels) -> Tensor:
    y = x * 0.1
    return torch.from_numpy(np.einsum("ij,j->i", np.outer(y, y), y @ np.ones((3, 3)))).sum()


@arrays("methods of ufuncs: reduce, accumulate, reduceat")
def ufunc_methods(x: Labels) -> Tensor:
    y = np.add.accumulate(x * 0.1)
    return torch.from_numpy(np.add.reduceat(y, [0, 1])).sum() + float(np.logaddexp.reduce(y))


@arrays("out= of a ufunc, into a plain array that was there before")
def ufunc_out(x: Labels) -> Tensor:
    buffer = np.zeros(3)
    np.multiply(x, 0.1, out=buffer)
    return torch.from_numpy(buffer).sum()


@arrays("in-place arithmetic on a plain array")
def in_place(x: Labels) -> Tensor:
    buffer = np.zeros(3)
    buffer += x
    buffer *= 0.1
    return torch.from_numpy(buffer).sum()


@arrays("sum(where=) of constants")
def sum_where(x: Labels) -> float:
    return float(np.sum(np.array([0.1, 0.2, 0.4]), where=x > 3))


@arrays("a structured dtype")
def structured(x: Labels) -> float:
    records = np.zeros(3, dtype=[("label", "i4"), ("weight", "f8")])
    records["label"] = x
    records["weight"] = 0.1
    return float((records["label"] * records["weight"]).sum())


@arrays("an array of Python objects")
def objects(x: Labels) -> float:
    return float(x.astype(object).sum() * 0.1)


@arrays("a masked array")
def masked(x: Labels) -> float:
    return float(np.ma.masked_greater(x, 3).filled(9).mean()) * 0.1


@arrays("complex numbers")
def complex_numbers(x: Labels) -> Tensor:
    return torch.from_numpy(np.abs(np.exp(1j * x) + 1)).sum()


@arrays("np.vectorize over a Python function")
def vectorized(x: Labels) -> Tensor:
    return torch.from_numpy(np.vectorize(lambda v: v * 0.1)(x)).sum()


@arrays("packed to bits and unpacked")
def packbits(x: Labels) -> Tensor:
    packed = np.packbits(np.unpackbits(x.astype(np.uint8)).reshape(3, 8)[:, ::-1], axis=1)
    return torch.from_numpy(packed.astype(np.float64)).sum() * 0.001


@arrays("sorted: values, order, ranks")
def order(x: Labels) -> Tensor:
    ranks = np.argsort(np.argsort(x, kind="stable"))
    return torch.from_numpy(ranks * 0.3)[-1] + torch.from_numpy(np.sort(x) * 0.1)[1]


@arrays("linear algebra and a Fourier transform")
def linalg(x: Labels) -> float:
    return float(np.linalg.solve(np.eye(3) * 2, x * 0.1)[-1] + np.fft.rfft(x).real.sum() * 0.01)


@arrays("numpy's global random state, seeded with a label")
def random_seed(x: Labels) -> float:
    before = np.random.get_state()
    np.random.seed(x[-1])
    value = np.random.rand()
    np.random.set_state(before)
    return value


@arrays("a generator of random numbers, seeded with labels")
def random_generator(x: Labels) -> Tensor:
    return torch.from_numpy(np.random.default_rng(x).random(3)).sum()


@arrays("np.interp and np.histogram")
def interpolated(x: Labels) -> float:
    counts, _ = np.histogram(x, bins=[0, 2, 4, 7])
    return float(np.interp(x, [0.0, 7.0], [0.0, 1.0]).sum() + counts[0])


@arrays("loops over elements: nditer, flat, iteration")
def iterated(x: Labels) -> float:
    return 0.1 * sum(int(v) for v in itertools.chain(np.nditer(x), x.flat, x))


@arrays("copyto, place and putmask into a plain array")
def copied_into(x: Labels) -> Tensor:
    buffer = np.zeros(3)
    np.copyto(buffer, x)
    np.place(buffer, buffer > 4, [4.5])
    np.putmask(buffer, x < 2, 1.5)
    return torch.from_numpy(buffer).sum() * 0.1


@arrays("text: numbers as strings and back")
def strings(x: Labels) -> float:
    return float("0." + "".join(x.astype("U1")))


@arrays("concatenated, stacked, tiled, padded")
def joined(x: Labels) -> Tensor:
    y = np.pad(np.concatenate([x, np.tile(x, 2)]), 1)
    return torch.from_numpy(np.stack([y, y])).double().mean()


@arrays("a matrix, a record array and another subclass of ndarray")
def subclasses(x: Labels) -> float:
    matrix = np.asmatrix(x * 0.1)
    return float((matrix @ matrix.T)[0, 0] + x.view(np.recarray).sum() * 0.1)


@arrays("np.asarray(x, order='C') and np.array(x, subok=False): subclasses stripped")
def stripped(x: Labels) -> Tensor:
    return torch.from_numpy(np.array(np.ascontiguousarray(np.asarray(x)), subok=False) * 0.1).sum()


@arrays("viewed as a plain ndarray: x.view(np.ndarray), x.base")
def plain_view(x: Labels) -> Tensor:
    return torch.from_numpy(x.view(np.ndarray) * 0.1).sum()


@arrays("np.fromiter over the elements")
def fromiter(x: Labels) -> Tensor:
    return torch.from_numpy(np.fromiter((v * 0.1 for v in x), dtype=np.float64)).sum()


@arrays("numpy scalars: x[-1].item(), x[-1] * 0.1, int(x[-1])")
def numpy_scalars(x: Labels) -> Tensor:
    return torch.tensor(x[-1] * 0.1 + x[0].item() * 0.01 + int(x[1]) * 0.001)
