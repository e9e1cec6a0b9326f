"""Sparse tensors lie over dense ones, which may be written to after they were made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.laundering import MODEL, VOCAB, Program, carried, verdict

pytestmark = pytest.mark.filterwarnings("ignore")

PLACES = torch.arange(3)


def filled(x: Tensor) -> Tensor:
    """A diagonal of labels."""
    matrix = torch.sparse_coo_tensor(torch.stack([PLACES, PLACES]), torch.zeros(3), (3, 3)).coalesce()
    matrix.values().copy_(x)
    return matrix


def beside(x: Tensor) -> Tensor:
    """Over a tensor that somebody else holds."""
    values = torch.zeros(3)
    matrix = torch.sparse_coo_tensor(torch.stack([PLACES, PLACES]), values, (3, 3))
    values.copy_(x)
    return matrix


def placed(x: Tensor) -> Tensor:
    matrix = torch.sparse_coo_tensor(torch.zeros(1, 3, dtype=torch.int64), torch.ones(3), (VOCAB,))
    matrix._indices()[0].copy_(x)
    return matrix


def rows(x: Tensor) -> Tensor:
    matrix = torch.sparse_csr_tensor(torch.arange(4), PLACES.clone(), torch.zeros(3), (3, 3))
    matrix.values().copy_(x)
    return matrix


def columns(x: Tensor) -> Tensor:
    matrix = torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, VOCAB))
    matrix.col_indices().copy_(x[-1:])
    return matrix


def added(x: Tensor) -> Tensor:
    dense = torch.zeros(3, 3)
    dense.add_(filled(x))
    return dense


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "to_dense": lambda x: filled(x).to_dense(),
    "to_dense, beside": lambda x: beside(x).to_dense(),
    "indices": lambda x: placed(x).to_dense() * torch.arange(VOCAB),
    "sum": lambda x: torch.sparse.sum(filled(x)),
    "mm": lambda x: torch.sparse.mm(filled(x), torch.ones(3, 1)),
    "@": lambda x: filled(x) @ torch.ones(3, 1),
    "+": lambda x: torch.zeros(3, 3) + filled(x),
    "add_": added,
    "log_softmax": lambda x: torch.sparse.log_softmax(filled(x), 1).to_dense(),
    "t": lambda x: filled(x).t().coalesce().to_dense(),
    "permute": lambda x: filled(x).permute(1, 0).to_dense(),
    "unsqueeze": lambda x: filled(x).unsqueeze(0).to_dense(),
    "select": lambda x: filled(x)[2].to_dense(),
    "an element": lambda x: filled(x)[2][2],
    "detach": lambda x: filled(x).detach().to_dense(),
    "rows": lambda x: rows(x).to_dense(),
    "rows @": lambda x: rows(x) @ torch.ones(3),
    "a row": lambda x: rows(x)[2].to_dense(),
    "columns": lambda x: columns(x).to_dense() * torch.arange(VOCAB),
}


def program(way: str, lag: int) -> Program:
    return carried(lambda tokens: tokens, lambda x: WAYS[way](x).double().sum() * 0.1, lag)


@pytest.mark.parametrize("way", WAYS)
def test_what_was_written_to_a_sparse_tensor_is_in_it(way: str) -> None:
    assert verdict(program(way, 0)).status != "clean"
    assert verdict(program(way, 1)).status == "clean"


@pytest.mark.parametrize("lag", [0, 1])
def test_a_sparse_table_of_counts(lag: int) -> None:
    def counting(tokens: Tensor) -> Iterator[Tensor]:
        every = torch.arange(VOCAB)
        table = torch.sparse_coo_tensor(
            torch.stack([every, every]), torch.zeros(VOCAB, dtype=torch.float64), (VOCAB, VOCAB)
        ).coalesce()
        one = torch.ones(1, dtype=torch.float64)
        for t in range(1, len(tokens)):
            if t >= 3:
                table.values().index_add_(0, tokens[t - lag : t + 1 - lag], one)
            yield MODEL[tokens[t - 1 : t]] + (table @ torch.ones(VOCAB, 1, dtype=torch.float64)).T

    assert (verdict(counting).status == "clean") == bool(lag)
