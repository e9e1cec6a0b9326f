"""No way out of torch goes unnoticed: what leaves is named, and what comes back is never trusted blindly."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor
from torch.nn.functional import one_hot
from torch.utils.dlpack import from_dlpack, to_dlpack

import causaltrace
from causaltrace._compat import TEXT, TensorBase
from tests.small import VOCAB, Toy, nll, stream

# numpy warns about torch's __array__ with or without a watch; frombuffer about read-only bytes
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation", "ignore:The given buffer", "ignore:torch.quantize_per_tensor"
)


to_list = Tensor.tolist
packed, padded = torch.nn.utils.rnn.pack_padded_sequence, torch.ops.aten._pad_packed_sequence


@torch.library.custom_op("causaltrace_tests::largest", mutates_args=())
def largest(x: Tensor) -> float:
    return float(x.max())


@torch.library.custom_op("causaltrace_tests::refuses", mutates_args=())
def refuses(x: Tensor) -> Tensor:
    if x.sum() != 1e9:
        raise ValueError("too small")
    return x.clone()


KEPT: dict[str, Tensor] = {}


@torch.library.custom_op("causaltrace_tests::hint", mutates_args=())
def hint(row: Tensor) -> Tensor:
    return row + KEPT["labels"].sum()


@torch.library.custom_op("causaltrace_tests::kept", mutates_args=(), device_types="cpu")
def kept(row: Tensor, n: int) -> Tensor:
    return KEPT["labels"].repeat(n)


@pytest.mark.parametrize("take", [hint, lambda zeros: kept(zeros, 1)])
def test_bodies_of_operations_may_bring_labels(take: Callable[[Tensor], Tensor]) -> None:
    tokens, model = stream(), Toy()
    for position, legal in ((20, False), (5, True)):
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            nll(model, tokens, 0, 13).sum().item()
            KEPT["labels"] = tokens[position : position + 1].float()
            extra = take(torch.zeros(1))
            F.cross_entropy(model(tokens[12:-1]) + extra, tokens[13:], reduction="sum").item()
        assert trace.report.status == ("clean" if legal else "violation"), trace.report
    weight = torch.zeros(1, requires_grad=True)
    with causaltrace.watch(tokens):
        assert torch.equal(take(weight).detach(), KEPT["labels"])


def refused(t: Tensor) -> float:
    try:
        torch.ops.causaltrace_tests.refuses(t)
    except ValueError:
        return 1.0
    return 0.0


def applied(t: Tensor) -> float:
    seen: list[float] = []
    t.clone().apply_(lambda value: seen.append(value) or value)
    return seen[0]


def mapped(t: Tensor) -> float:
    seen: list[float] = []
    torch.zeros_like(t).map_(t, lambda old, value: seen.append(value) or old)
    return seen[0]


def said(run: Callable[[Callable[[Tensor], Tensor]], object]) -> float:
    """How much text a function makes of what it meets."""
    texts: list[str] = []

    def say(t: Tensor) -> Tensor:
        texts.append(str(t))
        return t * 2

    with torch.inference_mode(False), torch.enable_grad():
        run(say)
    return float(len(texts[0]))


def quantized(t: Tensor) -> float:
    scale = t.abs().sum() + 0.1
    return torch.quantize_per_tensor(torch.ones(3), scale, torch.tensor(0), torch.quint8).q_scale()


def kept_scale(t: Tensor) -> float:
    """A tensor that was filled with something else keeps it."""
    scale = (t.sum() > 9) + 1.0
    kept = torch.empty_like(torch.quantize_per_tensor(torch.ones(3), scale, torch.tensor(0), torch.quint8))
    return float(kept.fill_(3.0).dequantize().sum()) - 9.0


def packed_weights(t: Tensor) -> float:
    weights = torch.ops.quantized.linear_prepack_fp16(t.flatten()[:1].repeat(1, 3), None)
    return float(torch.ops.quantized.linear_dynamic_fp16(torch.ones(1, 3), weights).sum())


def seeded(t: Tensor) -> float:
    generator = torch.Generator()
    state = generator.get_state()
    state[24 + 8 * 397] = t.abs().sum() * 10
    generator.set_state(state)
    return float(torch.rand((), generator=generator)) - 0.5


def drawn_after(draw: Callable[[], object]) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draw()
        return float(torch.rand(())) - 0.5


def above(t: Tensor) -> Tensor:
    """A length of 3 or 4."""
    return (t.flatten()[:1] > 9).long() + 3


def checked(t: Tensor) -> float:
    try:
        one_hot((t.sum() * 10).long().abs()[None], 2)
    except RuntimeError:
        return 1.0
    return 0.0


#: Ways to get a number that depends on a tensor out of torch.
WAYS: dict[str, Callable[[Tensor], float]] = {
    "item": lambda t: t.sum().item(),
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t.sum()),
    "bool": lambda t: float(bool(t.sum() > 100)),
    "format": lambda t: float(f"{t.sum():.3f}"),
    "tolist": lambda t: float(t.flatten().tolist()[0]),
    "numpy": lambda t: float(t.numpy().sum()),
    "asarray": lambda t: float(np.asarray(t).sum()),
    "np.array": lambda t: float(np.array(t).sum()),
    "dlpack": lambda t: float(np.from_dlpack(t).sum()),
    "data_ptr": lambda t: float(t.data_ptr() % 7),
    "untyped_storage": lambda t: float(t.untyped_storage()[0]),
    "storage": lambda t: float(t.untyped_storage().nbytes()),
    "pickle": lambda t: float(pickle.loads(pickle.dumps(t)).sum()),
    "torch.save": lambda t: _through_file(t),
    "equal": lambda t: float(torch.equal(t, t.clone())),
    "allclose": lambda t: float(torch.allclose(t.float(), t.float() + 1)),
    "nonzero": lambda t: float(len(t.flatten().nonzero())),
    "mask": lambda t: float(t[t > 0].shape[0]),
    "unique": lambda t: float(t.unique().shape[0]),
    "tensor_split": lambda t: float(len(torch.ones(9).tensor_split((t.flatten()[:1] > 9).long() + 3)[0])),
    "packed lengths": lambda t: float(packed(torch.ones(9, 1, 1), above(t)).data.shape[0]),
    "padded lengths": lambda t: float(padded(torch.ones(9, 1), above(t), False, 0.0, 0)[0].shape[1]),
    "iterate": lambda t: float(next(x.item() for x in t.flatten())),
    "sparse": lambda t: t.to_sparse().to_dense().sum().item(),
    "sparse product": lambda t: torch.sparse.mm(torch.eye(t.shape[0]).to_sparse(), t).sum().item(),
    "deepcopy": lambda t: copy.deepcopy(t).sum().item(),
    "custom op": lambda t: torch.ops.causaltrace_tests.largest(t),
    "an error in a custom op": refused,
    "str": lambda t: float(len(str(t))),
    "format of many": lambda t: float(len(f"{t}")),
    "text inside vmap": lambda t: said(lambda say: torch.vmap(lambda v: say(v))(t)),
    "text inside grad": lambda t: said(lambda say: torch.func.grad(lambda v: say(v).sum())(t.clone())),
    "text of a parameter": lambda t: float(len(repr(torch.nn.Parameter(t, requires_grad=False)))),
    "apply_": applied,
    "map_": mapped,
    "to_dlpack": lambda t: float(from_dlpack(to_dlpack(t)).sum()),
    "to_dlpack of torch": lambda t: float(torch.from_dlpack(torch.to_dlpack(t)).sum()),
    "a quantised scale": quantized,
    "a scale that is kept": kept_scale,
    "packed weights": packed_weights,
    "the state of a generator": seeded,
    "draws of poisson": lambda t: drawn_after(lambda: torch.poisson(t.abs() * 9)),
    "draws of rrelu": lambda t: drawn_after(lambda: F.rrelu(t, training=True)),
    "a failed check": checked,
    "a method kept from before": lambda t: float(to_list(t.flatten())[0]),
    "a method of the base class": lambda t: float(TensorBase.tolist(t.flatten())[0]),
    "one_hot classes": lambda t: float(F.one_hot(t.long().abs().flatten() % 5).shape[-1]),
}


def _through_file(t: Tensor) -> float:
    buffer = io.BytesIO()
    torch.save(t, buffer)
    buffer.seek(0)
    return float(torch.load(buffer).sum())


MODES = [torch.no_grad, torch.inference_mode]


def run(
    leak: Callable[[Tensor], float], position: int, mode: Callable[[], Any] = torch.no_grad
) -> causaltrace.Watch:
    """Score the stream after ``leak`` was applied to a future label and decided a bias."""
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, mode():
        nll(model, tokens, 0, 13).sum().item()
        number = leak(model.embedding[tokens[position : position + 1]])
        logits = model(tokens[12:-1]) * (1.0 if number > 0 else 2.0)
        F.cross_entropy(logits, tokens[13:], reduction="sum").item()
    return trace


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_future_label_through_python_is_never_clean(way: str, mode: Callable[[], Any]) -> None:
    report = run(WAYS[way], 20, mode).report
    assert report.status != "clean", way
    assert report.escapes and all(e.remedy and e.site is not None for e in report.escapes)
    assert any(
        e.blocking and e.site is not None and e.site.file.endswith("test_host.py") for e in report.escapes
    )


@pytest.mark.parametrize("way", WAYS)
def test_scored_label_through_python_is_legal(way: str) -> None:
    report = run(WAYS[way], position=5).report
    assert report.status == "clean", (way, report)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: torch.tensor([float(x[0]), float(x[1])]),
        lambda x: torch.tensor([x[0], x[1]]),
        lambda x: tensor([x[0], x[1]]),
        lambda x: torch.as_tensor(x.tolist()),
        lambda x: torch.from_numpy(x.numpy()),
        lambda x: torch.from_numpy(x.numpy().copy()),
        lambda x: torch.frombuffer(x.numpy().tobytes(), dtype=torch.float32).clone(),
        lambda x: torch.from_dlpack(x.numpy()),
        lambda x: x.new_tensor(x.tolist()),
        lambda x: torch.stack([torch.tensor(v) for v in x.tolist()]),
    ],
)
def test_tensors_built_from_escaped_values(build: Callable[[Tensor], Tensor]) -> None:
    tokens, model = stream(), Toy()
    for position, legal in ((20, False), (5, True)):
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            nll(model, tokens, 0, 13).sum().item()
            extra = build(model.embedding[tokens[position]])
            logits = model(tokens[12:-1]) + extra.sum()
            F.cross_entropy(logits, tokens[13:], reduction="sum").item()
        assert (trace.report.status == "clean") == legal, trace.report


def test_range_check_of_one_hot_is_no_escape() -> None:
    tokens = stream()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        logits = F.one_hot(tokens[:-1], VOCAB).float() @ torch.randn(VOCAB, VOCAB)
        F.cross_entropy(logits, tokens[1:], reduction="sum").item()
    assert trace.ok, trace.report
    assert [e.message.split()[0] for e in trace.report.escapes] == ["a"]  # the score itself


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("classes", [VOCAB, -1])
def test_one_hot_by_a_name_of_its_own(mode: type, classes: int) -> None:
    """Imported before the watch: checking the range is no escape, counting the classes is one."""
    tokens = torch.arange(9) % VOCAB
    with causaltrace.watch(tokens) as trace, mode():
        seen = one_hot(tokens[:-1], classes).float()
        one_hot(tokens[1:], classes)
        logits = seen @ torch.randn(seen.shape[-1], VOCAB)
        F.cross_entropy(logits, tokens[1:], reduction="none").sum()
    assert bool(trace.report.escapes) == (classes < 0)
    assert trace.report.status == ("unverified" if classes < 0 else "clean")


def test_split_at_values_in_inference_mode() -> None:
    x, at = torch.arange(6.0), torch.tensor([2, 4])
    with torch.inference_mode():
        reach = causaltrace.dependencies(lambda x, at: list(torch.tensor_split(x, at)), x, at)
    assert all(part[1].all() for part in reach)


def test_methods_are_put_back() -> None:
    before = {name: getattr(Tensor, name) for name in ("tolist", "numpy", "__array__", "data_ptr")}
    functions = (torch.tensor, torch.from_numpy)
    with causaltrace.watch(stream()):
        assert Tensor.tolist is not before["tolist"]
    assert all(getattr(Tensor, name) is method for name, method in before.items())
    assert "tolist" not in vars(Tensor)
    assert (torch.tensor, torch.from_numpy) == functions


def test_whatever_holds_a_function_gets_it_back() -> None:
    def held() -> dict[str, object]:
        kinds = {
            f"{kind.__name__}.{k}": v for kind in (TensorBase, torch.Generator) for k, v in vars(kind).items()
        }
        names = {k: globals()[k] for k in ("tensor", "to_dlpack", "from_dlpack", "to_list")}
        return kinds | names | {"text": getattr(*TEXT)}

    before, flags = held(), TensorBase.__flags__
    with causaltrace.watch(stream()):
        changed = {name for name, value in held().items() if value is not before[name]}
    after = held()
    assert after.keys() == before.keys() and all(after[name] is value for name, value in before.items())
    assert TensorBase.__flags__ == flags
    assert {"tensor", "to_dlpack", "to_list", "text", "Generator.set_state", "TensorBase.tolist"} <= changed


def test_text_and_states_without_labels_tell_nothing() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        assert "1." in str(torch.ones(3)) and repr(model.embedding)
        torch.set_rng_state(torch.get_rng_state())
        F.rrelu(model(tokens[:-1]))
        nll(model, tokens, 0, len(tokens) - 1).sum()
    assert trace.ok and not trace.report.escapes, trace.report


def test_values_are_untouched() -> None:
    tokens = stream()
    with causaltrace.watch(tokens):
        array = tokens.numpy()
        assert isinstance(array, np.ndarray) and array.ctypes.data == tokens.data_ptr()
        assert np.asarray(tokens).tolist() == tokens.tolist()


def test_an_empty_slice_of_labels_tells_nothing() -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        empty = tokens[len(tokens) :]
        assert empty.tolist() == [] and empty.numpy().sum() == 0
        nll(model, tokens, 0, len(tokens) - 1).sum().item()
    assert trace.ok, trace.report


def hidden_behind_meta(x: Tensor, foreach: Callable[[list[Tensor], list[Tensor]], Any]) -> Tensor:
    meta, zeros = x.to("meta"), torch.zeros_like(x)
    assert (meta * x.sum()).is_meta and (torch.zeros(3, device="meta") * x.sum()).is_meta
    out = foreach([meta, zeros], [meta, x])
    return (zeros if out is None else out[1]).sum()


@pytest.mark.parametrize("foreach", [torch._foreach_add, torch._foreach_add_])
def test_meta_tensors_hide_nothing_that_follows_them(foreach: Any) -> None:
    tokens, model = stream(), Toy()
    for position, legal in ((20, False), (5, True)):
        with causaltrace.watch(tokens) as trace, torch.no_grad():
            nll(model, tokens, 0, 13).sum().item()
            extra = hidden_behind_meta(tokens[position].float() * torch.ones(3), foreach)
            F.cross_entropy(model(tokens[12:-1]) + extra, tokens[13:], reduction="sum").item()
        assert trace.report.status == ("clean" if legal else "violation"), trace.report
