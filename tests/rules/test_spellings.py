"""Other spellings of an operation, which arrive whole where autograd is off: their own arguments count."""

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracle import Index, check
from tests.rules.test_pointwise import rand

CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor | Index, ...]]] = {
    "repeat_interleave, dim": (lambda x: torch.repeat_interleave(x, 2, dim=1), (rand(2, 3),)),
    "repeat_interleave, flat": (lambda x: torch.repeat_interleave(x, 2), (rand(2, 2),)),
    "repeat_interleave, counts": (
        lambda x: torch.repeat_interleave(x, torch.tensor([1, 0, 2]), dim=0),
        (rand(3, 2),),
    ),
    "var of a dim": (lambda x: x.var(1), (rand(2, 3),)),
    "std of all": (lambda x: x.std(True), (rand(3),)),
    "largest of two": (lambda x, y: torch.max(x, y), (rand(2, 3), rand(2, 3, seed=1))),
    "where, scalar": (
        lambda c, x: torch.where(c, x, 2.0),
        (rand(2, 3) > 0, rand(2, 3)),
    ),
    "where, scalars": (lambda c: torch.where(c, 1.0, 2.0), (rand(2, 3) > 0,)),
    "where, scalar first": (lambda c, x: torch.where(c, 2.0, x), (rand(2, 3) > 0, rand(2, 3))),
    "interpolate": (lambda x: F.interpolate(x, scale_factor=2.0, mode="linear"), (rand(1, 1, 3),)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_spelling(name: str, mode: type) -> None:
    fn, inputs = CASES[name]
    with mode():
        check(fn, *inputs, kinds=6)


def test_decompositions_for_compilers_make_no_composites() -> None:
    """Importing them adds kernels to operations that have their own."""
    importlib.import_module("torch._decomp.decompositions")
    x = torch.randn(1, 2, 3, 3)
    with torch.inference_mode():
        for options in ({"size": 5}, {"scale_factor": 2}, {"size": 4, "mode": "bilinear"}):
            check(lambda x: F.interpolate(x, **options), x, kinds=4)  # noqa: B023
