"""Control flow, errors and shapes: which way the program goes, and what it learns without reading a value."""

from __future__ import annotations

import contextlib
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.laundering import VOCAB, tensors

ONES = torch.ones(VOCAB, dtype=torch.float64)
SHORT = torch.ones(4, dtype=torch.float64)


@tensors("if label > 3")
def if_greater(x: Tensor) -> float:
    return 0.5 if x[-1] > 3 else -0.5


@tensors("while label > 0: label -= 1")
def while_positive(x: Tensor) -> float:
    left, hint = x[-1].clone(), 0.0
    while left > 0:
        left -= 1
        hint += 0.1
    return hint


@tensors("and, or, not, in, any, all")
def booleans(x: Tensor) -> float:
    return 0.1 * (3 in x) + 0.2 * bool((x == 2).any() and not (x > 5).all() or x[-1] == 0)


@tensors("compared as a whole: torch.equal, allclose")
def compared(x: Tensor) -> float:
    return 0.5 * torch.equal(x[-1:], torch.tensor([5])) + 0.25 * torch.allclose(x[-1:], torch.tensor([3]))


@tensors("which of a list of functions is called")
def dispatched(x: Tensor) -> Tensor:
    return [torch.sin, torch.cos, torch.exp, torch.tanh, torch.sqrt, torch.log1p, torch.ceil][x[-1]](ONES / 3)


@tensors("an index that is out of range for some labels, and is caught")
def index_error(x: Tensor) -> float:
    try:
        SHORT[x[-1:]]
    except IndexError:
        return 0.5
    return 0.0


@tensors("the same through an embedding")
def embedding_error(x: Tensor) -> float:
    try:
        F.embedding(x, SHORT[:, None])
    except IndexError:
        return 0.5
    return 0.0


@tensors("a class that a loss refuses, and is caught")
def loss_error(x: Tensor) -> float:
    try:
        F.nll_loss(torch.zeros(3, 4), x)
    except IndexError:
        return 0.5
    return 0.0


@tensors("a scatter that is out of range, and is caught with contextlib.suppress")
def scatter_error(x: Tensor) -> float:
    hint = 0.5
    with contextlib.suppress(RuntimeError):
        SHORT.clone().scatter_(0, x, 1.0)
        hint = 0.0
    return hint


@tensors("a matrix that has no Cholesky factor for some labels")
def cholesky_error(x: Tensor) -> float:
    try:
        torch.linalg.cholesky(torch.diag(x[-1:].double() - 3))
    except torch.linalg.LinAlgError:
        return 0.5
    return 0.0


@tensors("a size check of one_hot, and is caught")
def one_hot_error(x: Tensor) -> float:
    try:
        F.one_hot(x, 4)
    except RuntimeError:
        return 0.5
    return 0.0


@tensors("an assertion inside the runtime: torch._assert_async")
def assert_async(x: Tensor) -> float:
    try:
        torch._assert_async(x[-1] > 3)
    except RuntimeError:
        return 0.5
    return 0.0


@tensors("the width that one_hot chooses by itself")
def one_hot_width(x: Tensor) -> float:
    return 0.1 * F.one_hot(x).shape[-1]


@tensors("how many elements nonzero finds")
def nonzero_count(x: Tensor) -> float:
    return 0.1 * len((x > 3).nonzero())


@tensors("how many elements a mask selects")
def mask_count(x: Tensor) -> float:
    return 0.1 * ONES[:3][x > 3].numel()


@tensors("how many classes unique finds")
def unique_count(x: Tensor) -> float:
    return 0.1 * torch.unique(x).shape[0]


@tensors("the length of bincount")
def bincount_length(x: Tensor) -> float:
    return 0.1 * torch.bincount(x).numel()


@tensors("how often elements are repeated: repeat_interleave")
def repeated(x: Tensor) -> float:
    return 0.05 * torch.repeat_interleave(ONES[:3], x).numel()


@tensors("the number of elements that a sparse tensor keeps")
def sparse_count(x: Tensor) -> float:
    return 0.1 * torch.sparse_coo_tensor(x[None], ONES[:3], (VOCAB,)).coalesce()._nnz()


@tensors("places where a tensor is split: tensor_split")
def split(x: Tensor) -> float:
    return 0.1 * ONES.tensor_split(x[-1:])[0].numel()


@tensors("the batch sizes of packed sequences")
def packed_sequence(x: Tensor) -> Tensor:
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.ones(VOCAB, 3, 1), x + 1, enforce_sorted=False)
    return packed.batch_sizes.double().sum() * packed.batch_sizes.numel() * 0.01


@tensors("a warning that is given for some labels")
def warned(x: Tensor) -> float:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if x[-1] > 3:
            warnings.warn("large", stacklevel=1)
    return 0.5 * len(caught)


@tensors("torch.cond on a label")
def conditional(x: Tensor) -> Tensor:
    return torch.cond(x[-1] > 3, lambda v: v * 0.5, lambda v: v * 0.1, (ONES,))


@tensors("random numbers that a sampler has used up")
def sampler_draws(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.poisson(x.double() * 9)
        return torch.rand((), dtype=torch.float64)


@tensors("the state of a generator, written from a tensor")
def generator_state(x: Tensor) -> Tensor:
    generator = torch.Generator()
    state = generator.get_state()
    state[24 + 8 * 397] = x[-1]  # the word that the first draw is made of
    generator.set_state(state)
    return torch.rand((), generator=generator, dtype=torch.float64)


@tensors("a generator seeded with a label")
def generator_seed(x: Tensor) -> Tensor:
    return torch.rand((), generator=torch.Generator().manual_seed(int(x[-1])), dtype=torch.float64)


@tensors("a dropout mask whose random numbers begin at a label")
def dropout_mask(x: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(x[-1].item())
        return F.dropout(ONES, 0.5, training=True)


@tensors("a comparison that raises: torch.testing.assert_close")
def assert_close(x: Tensor) -> float:
    try:
        torch.testing.assert_close(x[-1], torch.tensor(5))
    except AssertionError:
        return 0.5
    return 0.0


@tensors("a scale that a quantized tensor tells: q_scale()")
def quantized_scale(x: Tensor) -> float:
    return torch.quantize_per_tensor(ONES.float(), x[-1] * 0.1 + 0.1, torch.tensor(0), torch.quint8).q_scale()
