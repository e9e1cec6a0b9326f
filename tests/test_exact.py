"""``precision="exact"``: the label x score matrix against exhaustive flips, and ``dependencies``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace.depends import ELEMENTS, follow
from tests.flips import CASES, dependencies

#: What is counted in a table at a label might have gone to any of its places, where a flip moves only two.
TABLES = ("ngram_full", "ngram_hashed", "oracle_min", "blend_target", "tilt_hint", "tilt_gated")
#: What goes through Python is possible, and in no support.
IN_PYTHON = ("ngram_dict",)


def _verdict(watched: causaltrace.Watch) -> list[tuple[object, ...]]:
    return [(f.kind, f.target, f.source, f.orders, f.site) for f in watched.report.violations]


@pytest.mark.parametrize("name", CASES)
def test_the_matrix_is_what_flips_find(name: str) -> None:
    """It is about the rows; where a label decides what is made of them, there is a finding."""
    case = CASES[name]
    with causaltrace.watch(case.tokens, precision="exact") as watched:
        case.evaluate(case.make_model(), case.tokens, case.config)
    matrix, positions = watched.matrix(), watched.report.positions
    assert matrix.shape == (len(positions), len(case.tokens)) and matrix.dtype == torch.bool
    found = {(label, positions[row]) for row, label in matrix.nonzero().tolist()}
    found |= {(f.source, f.target) for f in watched.report.violations if f.kind == "CT004"}
    truth = dependencies(case)
    if name in IN_PYTHON:
        assert found < truth
    else:
        assert found >= truth if name in TABLES else found == truth
    with causaltrace.watch(case.tokens) as horizon:
        case.evaluate(case.make_model(), case.tokens, case.config)
    assert watched.report.status == horizon.report.status
    assert _verdict(watched) == _verdict(horizon)


def test_the_horizon_is_the_latest_member() -> None:
    def fn(x: Tensor, y: Tensor) -> list[Tensor]:
        z = F.scaled_dot_product_attention(x, x, y, is_causal=True)
        return [z, z.sum(1), torch.softmax(x, -1) @ y.transpose(1, 2), x.flip(1).cumsum(1)]

    inputs = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    members, latest, opaque = follow(fn, inputs, range(80))
    assert not opaque
    for reach, top in zip(members, latest, strict=True):
        last = torch.where(reach, torch.arange(reach.shape[-1]), -1).amax(-1)
        assert torch.equal(last, top)


def test_more_elements_than_one_pass_follows() -> None:
    x = torch.randn(ELEMENTS + 7)
    (reach,) = causaltrace.dependencies(lambda t: t.flip(0), x)[0]
    assert torch.equal(reach, torch.eye(len(x), dtype=torch.bool).flip(0))


def test_inputs_of_any_dtype_and_a_gradient() -> None:
    def fn(x: Tensor, index: Tensor, keep: Tensor, z: Tensor) -> list[Tensor]:
        loss = (x[index] * keep).pow(2).sum()
        return [torch.autograd.grad(loss, x)[0], z.conj() * 2]

    x = torch.randn(3, requires_grad=True)
    index, keep = torch.tensor([2, 0]), torch.tensor([True, False])
    z = torch.complex(torch.randn(2), torch.randn(2))
    (grad, conj) = causaltrace.dependencies(fn, x, index, keep, z)
    assert grad[0].shape == (3, 3) and grad[1].shape == (3, 2)
    assert grad[0][2, 2] and not grad[0][:, 1].any() and not grad[3].any()
    assert torch.equal(conj[3], torch.eye(2, dtype=torch.bool))
    assert not any(part.any() for part in conj[:3])


def test_what_passes_through_python_is_depended_on() -> None:
    def chosen(x: Tensor) -> Tensor:
        return torch.ones(2) if x[1] > 0 else torch.zeros(2)

    (reach,) = causaltrace.dependencies(chosen, torch.tensor([0.0, 1.0, 2.0]))[0]
    assert reach.tolist() == [[False, True, False]] * 2


def test_compiled_functions_run_eagerly() -> None:
    shift = torch.compile(lambda x: x.roll(1))
    (reach,) = causaltrace.dependencies(shift, torch.randn(3))[0]
    assert torch.equal(reach, torch.eye(3, dtype=torch.bool).roll(1, 0))


def test_sparse_tensors_are_depended_on() -> None:
    (reach,) = causaltrace.dependencies(lambda x: x.to_sparse().to_dense() * 2, torch.ones(3))[0]
    assert reach.all()

    def twice(x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(torch.sparse.mm(x.to_sparse(), x).sum(), x)
        return grad

    (reach,) = causaltrace.dependencies(twice, torch.ones(2, 2, requires_grad=True))[0]
    assert reach.all()


def test_random_numbers_are_the_same_in_every_pass_and_bad_input_is_named() -> None:
    before = torch.get_rng_state()
    x = torch.ones(ELEMENTS * 2)
    (reach,) = causaltrace.dependencies(lambda t: t * (torch.rand(len(t)) > 0.5), x)[0]
    torch.set_rng_state(before)
    kept = torch.rand(len(x)) > 0.5
    assert torch.equal(reach, torch.diag(kept))
    with pytest.raises(TypeError, match="input 1 is int"):
        causaltrace.dependencies(lambda a, b: a, x, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="holds no tensor"):
        causaltrace.dependencies(lambda a: 3, x)


def test_exact_needs_given_labels_of_a_bounded_number() -> None:
    with pytest.raises(ValueError, match="pass the tokens"):
        causaltrace.watch(precision="exact")
    with pytest.raises(ValueError, match="4096"):
        causaltrace.watch(torch.zeros(5000, dtype=torch.long), precision="exact")
    with pytest.raises(ValueError, match="'horizon' or 'exact'"):
        causaltrace.watch(torch.zeros(5, dtype=torch.long), precision="all")
    with causaltrace.watch(torch.zeros(5, dtype=torch.long)) as watched:
        pass
    with pytest.raises(RuntimeError, match="precision='exact'"):
        watched.matrix()
    with (
        causaltrace.watch(torch.zeros(5, dtype=torch.long), precision="exact"),
        pytest.raises(ValueError, match="all streams"),
    ):
        causaltrace.label(torch.zeros(3, dtype=torch.long), stream="more")
