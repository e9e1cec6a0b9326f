"""Rules that users register: the recipe in the docs, every kind of operator, and what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import causaltrace
from causaltrace import custom, rules
from causaltrace.custom import Call, RuleError, Support, register_rule
from causaltrace.testing import check_rule
from tests.small import Toy, applied, stream

LIBRARY = torch.library.Library("ct_custom", "DEF")


@pytest.fixture(autouse=True)
def clean_table() -> Any:
    before = dict(rules.TABLE)
    yield
    rules.TABLE.clear()
    rules.TABLE.update(before)


def define(schema: str, fn: Callable[..., Any], key: str = "CPU", **options: Any) -> Any:
    """A new operator ``ct_custom::<name>``."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, **options)
    LIBRARY.impl(name, fn, key)
    return getattr(torch.ops.ct_custom, name.split(".")[0])


def same(op: Call) -> Support:
    return op.support("x")


# -- the recipe -------------------------------------------------------------------------------------------


def test_the_recipe_works_when_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "rules.md").read_text()
    recipe, ready, attention, loss = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    space: dict[str, Any] = {}
    exec(recipe, space)
    printed = capsys.readouterr().out.strip()
    assert printed in text
    for name in ("swiglu(Tensor x, Tensor y)", "softmax(Tensor x)", "mix(Tensor x)"):
        torch.library.define(f"mylib::{name.split('(')[0]}", name[name.index("(") :] + " -> Tensor")
    torch.library.define("mylib::attention", "(Tensor q, Tensor k, Tensor v, bool causal=True) -> Tensor")
    torch.library.define("mylib::fused_nll", "(Tensor logits, Tensor target) -> Tensor")
    for name, fn in {
        "swiglu": lambda x, y: F.silu(x) * y,
        "softmax": lambda x: torch.softmax(x, -1),
        "mix": lambda x: x.sum() - x,
        "attention": lambda q, k, v, causal=True: F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal
        ).transpose(1, 2).contiguous(),
        "fused_nll": lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
    }.items():  # fmt: skip
        torch.library.impl(f"mylib::{name}", "CPU", fn)
    for code in (ready, attention, loss):
        exec(code, space)
    x = torch.randn(2, 3)
    assert check_rule("mylib::swiglu", x, torch.randn(3)).exact
    assert check_rule("mylib::softmax", x).exact
    assert check_rule("mylib::mix", x).ratio < 1.3
    qkv = [torch.randn(1, 3, 2, 2) for _ in range(3)]
    causal, full = check_rule("mylib::attention", *qkv), check_rule("mylib::attention", *qkv, False)
    assert full.exact and causal.ratio < 1.25  # causal by default; the first query has one key to choose from
    assert check_rule("mylib::fused_nll", x, torch.tensor([0, 2]), values={1: [0, 1, 2]}).exact


# -- in a watch -------------------------------------------------------------------------------------------

shift = define("shift(Tensor x) -> Tensor", lambda x: F.pad(x, (0, 0, 1, 0))[:-1])
peek = define("peek(Tensor x) -> Tensor", lambda x: F.pad(x, (0, 0, 0, 1))[1:])


def judged(op: Callable[[Tensor], Tensor], **options: Any) -> causaltrace.Watch:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens, **options) as trace, torch.no_grad():
        F.cross_entropy(op(model(tokens[:-1])), tokens[1:], reduction="sum").item()
    return trace


def test_a_rule_turns_unverified_into_a_proof_or_a_violation_and_is_named() -> None:
    assert judged(shift).report.status == judged(peek).report.status == "unverified"
    register_rule(shift)(lambda op: op.support("x").moved(lambda t: F.pad(t, (0, 0, 1, 0))[:-1]))
    register_rule(peek)(lambda op: op.support("x").moved(lambda t: F.pad(t, (0, 0, 0, 1))[1:]))
    clean, bad = judged(shift).report, judged(peek, strict=True).report
    assert (clean.status, bad.status) == ("clean", "violation")
    (note,) = [n for n in clean.notes if n.kind == "CT096"]
    assert "ct_custom.shift.default" in note.message and __file__ in note.message and not note.blocking
    assert {f.kind for f in bad.violations} == {"CT002"}


def test_strict_and_reports_name_the_op_the_place_and_the_remedy() -> None:
    with pytest.raises(
        RuntimeError, match=r"ct_custom\.shift\.default has no rule.*test_custom\.py:\d+"
    ) as e:
        judged(shift, strict=True)
    assert "causaltrace.register_rule" in str(e.value)
    (notice,) = judged(shift).report.opaque
    assert "causaltrace.register_rule" in notice.remedy and notice.site is not None
    assert notice.site.file == __file__


def test_a_registered_loss_is_a_readout() -> None:
    fused = define(
        "fused(Tensor logits, Tensor target, bool mean=False) -> Tensor",
        lambda x, y, mean=False: F.cross_entropy(x, y, reduction="mean" if mean else "none"),
    )

    @register_rule(fused, reads="target")
    def rule(op: Call) -> Support:
        out = op.support("logits").over(-1, keepdim=False) | op.support("target")
        return out.over(keepdim=False) if op.value("mean") else out

    tokens, model = stream(), Toy()
    for lead, status in ((0, "clean"), (1, "violation")):
        with causaltrace.watch(tokens, strict=True) as trace, torch.no_grad():
            fused(model(tokens[lead : len(tokens) - 1 + lead]), tokens[1:]).sum().item()
        assert trace.report.status == status
        assert list(trace.report.positions) == list(range(1, len(tokens)))
    values = {1: [0, 1, 2]}
    assert check_rule(fused, torch.randn(2, 3), torch.tensor([0, 2]), values=values).exact
    assert check_rule(fused, torch.randn(2, 3), torch.tensor([0, 2]), values=values, mean=True).exact
    with causaltrace.watch(tokens, strict=True) as trace, torch.no_grad():  # inside, the label is a cause
        scale = fused(model(tokens[:4]), tokens[1:5], True)
        F.cross_entropy(model(tokens[:4]) * scale, tokens[1:5], reduction="sum").item()
    assert {f.kind for f in trace.report.violations} == {"CT001", "CT002"}


def test_elementwise_keeps_readouts() -> None:
    halved = define("halved(Tensor x) -> Tensor", lambda x: x / 2)
    register_rule("ct_custom::halved")(custom.elementwise)
    tokens = stream()
    with causaltrace.watch(tokens, strict=True) as trace, torch.no_grad():
        halved(F.cross_entropy(Toy()(tokens[:-1]), tokens[1:], reduction="none"))[4:].sum().item()
    assert not trace.report.violations and trace.report.scored == len(tokens) - 5
    # a support says nothing about the arithmetic: half of a charge may be anything
    assert trace.report.conditions["C1"] == "pass" and trace.report.conditions["C2"] == "not covered"


# -- operators of all kinds -------------------------------------------------------------------------------


def test_names_of_other_libraries_do_not_borrow_rules() -> None:
    mul = define("mul(Tensor self, Tensor other) -> Tensor", lambda a, b: a.sum() * b)
    (notice,) = judged(lambda x: mul(x, x)).report.opaque
    assert "ct_custom.mul.default" in notice.message
    clamp = define(
        "clamp_(Tensor(a!) self, Tensor other) -> ()", lambda a, b: a.add_(b.sum()).data_ptr() and None
    )
    assert judged(lambda x: clamp(x, x.clone()) or x).report.opaque


def test_packets_overloads_and_custom_ops() -> None:
    both = define("both(Tensor x) -> Tensor", lambda x: x + 1)
    define("both.scaled(Tensor x, float s) -> Tensor", lambda x, s: x * s)
    register_rule(both)(same)
    assert check_rule(both, torch.randn(3)).exact and check_rule(both, torch.randn(3), 2.0).exact

    one = define("one(Tensor x) -> Tensor", lambda x: x + 1)
    define("one.scaled(Tensor x, float s) -> Tensor", lambda x, s: x * s)
    register_rule("ct_custom::one.scaled")(same)
    assert check_rule(one.scaled, torch.randn(3), 2.0).exact
    with pytest.raises(AssertionError, match=r"no rule covers ct_custom\.one\.default: register one"):
        check_rule(one, torch.randn(3))

    @torch.library.custom_op("ct_custom::flipped", mutates_args=())
    def flipped(x: Tensor) -> Tensor:
        return x.flip(0)

    register_rule(flipped)(lambda op: op.support("x").moved(lambda t: t.flip(0)))
    assert check_rule(flipped, torch.randn(3, 2)).exact
    assert check_rule("ct_custom::flipped", torch.randn(3, 2)).exact


def test_operations_that_write_and_return() -> None:
    def step(state: Tensor, x: Tensor) -> Tensor:
        state.add_(x)
        return state.cumsum(0)

    write = define("write(Tensor(a!) state, Tensor x) -> Tensor", step)
    with pytest.raises(AssertionError, match="no rule"):
        check_rule(write, torch.randn(3), torch.randn(3))

    @register_rule(write)
    def rule(op: Call) -> list[Support]:
        new = op.support("state") | op.support("x")
        return [new.running(0), new]

    assert check_rule(write, torch.randn(3), torch.randn(3)).exact


def test_what_an_operation_that_writes_self_returns_is_followed() -> None:
    def push(self: Tensor, x: Tensor) -> Tensor:
        self.add_(x)
        return x.sum() + self

    pushed = define("push(Tensor(a!) self, Tensor x) -> Tensor", push)
    state = torch.zeros(3)
    (to_state, to_x) = causaltrace.dependencies(lambda s, x: pushed(s, x), state, torch.randn(3))[0]
    assert to_state.all() and to_x.all()
    register_rule(pushed)(lambda op: [op.support("self") | op.support("x").over(), op.support("self")])
    with pytest.raises(AssertionError, match=r"argument 0, written, \[0\] changes with argument 1 \[0\]"):
        check_rule(pushed, state, torch.randn(3))


def test_lists_optional_arguments_and_several_results() -> None:
    def fn(xs: list[Tensor], bias: Tensor | None = None, n: int = 3) -> tuple[list[Tensor], Tensor]:
        return [x * n for x in xs], sum(x.sum() for x in xs) + (0 if bias is None else bias)

    many = define("many(Tensor[] xs, Tensor? bias=None, int n=3) -> (Tensor[], Tensor)", fn)

    @register_rule(many)
    def rule(op: Call) -> list[Support]:
        assert op.value("n") == 3
        xs = [op.support(t) for t in op.value("xs")]
        total = op.support("bias")
        for x in xs:
            total |= x.over(keepdim=False)
        return [*xs, total]

    a, b = torch.randn(2), torch.randn(2, 2)
    assert check_rule(lambda x, y: many([x, y]), a, b).exact
    assert check_rule(lambda x, y, z: many([x, y], z), a, b, torch.randn(())).exact


def test_numbers_that_an_operation_returns_have_left_torch() -> None:
    count = define("count(Tensor x) -> (int, Tensor)", lambda x: (int((x > 0).sum()), x * 2))
    read = causaltrace.dependencies(lambda x: torch.full((2,), float(count(x)[0])), torch.randn(3))
    assert read[0][0].all()
    assert causaltrace.dependencies(lambda x: count(x)[1], torch.randn(3))[0][0].all()
    register_rule(count)(same)
    ((other,),) = causaltrace.dependencies(lambda x: [count(x)[1]][0], torch.randn(3))
    assert other.all()  # built after the number left
    trace = judged(lambda x: count(x)[1])
    assert any(n.kind == "CT091" and "count" in n.message for n in trace.report.escapes)


def test_higher_order_operators() -> None:
    def doubled(x: Tensor) -> Any:
        return applied(lambda t: t * 2, (x,))

    with pytest.raises(AssertionError, match=r"no rule covers higher_order\.ct_applied"):
        check_rule(doubled, torch.randn(3))
    tokens = stream()
    with pytest.raises(RuntimeError, match="ct_applied has no rule"), causaltrace.watch(tokens, strict=True):
        doubled(Toy()(tokens[:-1]))

    @register_rule(applied)
    def rule(op: Call) -> Support:
        assert op.value("times") == 1
        return op.support(op.value("operands")[0])

    assert check_rule(doubled, torch.randn(3)).exact
    with causaltrace.watch(tokens, strict=True) as trace, torch.no_grad():
        F.cross_entropy(doubled(Toy()(tokens[:-1])), tokens[1:], reduction="sum").item()
    assert trace.ok


# -- backward ---------------------------------------------------------------------------------------------


def test_backward_in_torch_operations_is_followed() -> None:
    @torch.library.custom_op("ct_custom::square", mutates_args=())
    def square(x: Tensor) -> Tensor:
        return x * x

    square.register_autograd(
        lambda ctx, g: 2 * g * ctx.saved_tensors[0],
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    register_rule(square)(custom.elementwise)
    assert check_rule(square, torch.randn(2, 3, requires_grad=True)).exact


def test_backward_by_another_opaque_operation_needs_its_own_rule() -> None:
    @torch.library.custom_op("ct_custom::cube_backward", mutates_args=())
    def cube_backward(g: Tensor, x: Tensor) -> Tensor:
        return 3 * g * x * x

    @torch.library.custom_op("ct_custom::cube", mutates_args=())
    def cube(x: Tensor) -> Tensor:
        return x * x * x

    cube.register_autograd(
        lambda ctx, g: cube_backward(g, *ctx.saved_tensors),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    register_rule(cube)(custom.elementwise)
    x = torch.randn(2, 3, requires_grad=True)
    assert check_rule(cube, x.detach()).exact
    with pytest.raises(AssertionError, match=r"no rule covers ct_custom\.cube_backward\.default"):
        check_rule(cube, x)
    register_rule(cube_backward)(custom.elementwise)
    assert check_rule(cube, x).exact


# -- what goes wrong --------------------------------------------------------------------------------------

one_in = define("one_in(Tensor x, int n=1) -> Tensor", lambda x, n=1: x + n)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda op: None, "returned NoneType, not a Support"),
        (lambda op: [None], "returned NoneType for tensor 0, not a Support"),
        (lambda op: op.value("x"), "returned Tensor, not a Support"),
        (lambda op: [op.support("x")] * 2, "returned 2 supports for 1 tensors"),
        (lambda op: op.support("x").moved(lambda t: t.t()), r"shape \[3, 2\] for tensor 0 of shape \[2, 3\]"),
        (lambda op: op.support("x").moved(lambda t: t[None]), r"shape \[1, 2, 3\] for tensor 0 of"),
        (lambda op: op.support("x").over(2), r"raised IndexError: dim 2 of a support of shape \[2, 3\]"),
        (lambda op: op.support("y"), r"raised KeyError: .*no argument 'y'; it has x, n"),
        (lambda op: op.support("n"), "raised TypeError: argument 'n' is int, not a tensor"),
        (lambda op: op.support(op.value("x") * 1), "raised ValueError: .* no argument of the operation"),
    ],
)
def test_a_bad_rule_is_named_with_its_operation(rule: Any, said: str) -> None:
    register_rule(one_in)(rule)
    with pytest.raises(RuleError, match=said) as error:
        check_rule(one_in, torch.randn(2, 3))
    assert "the rule of ct_custom.one_in.default (" in str(error.value)
    assert f"registered at {__file__}:" in str(error.value)


def test_a_rule_is_checked_where_no_element_is_told_from_another() -> None:
    """A wrong shape shows although the support is one value for the whole tensor."""
    register_rule(one_in)(lambda op: op.support("x").over().moved(lambda t: t[None]))
    with pytest.raises(RuleError, match="shape"):
        causaltrace.dependencies(lambda x: one_in(x.sum().expand(2, 3, 4)), torch.randn(2))


def test_built_in_rules_stay() -> None:
    for op in (torch.ops.aten.mul, torch.ops.aten.add_.Tensor, torch.ops.aten.sin, "aten::relu"):
        with pytest.raises(ValueError, match="built in; a built-in rule cannot be replaced"):
            register_rule(op)(custom.elementwise)
    with pytest.raises(ValueError, match="view of its input and needs no rule"):
        register_rule(define("half(Tensor(a) x) -> Tensor(a)", lambda x: x[1:]))(same)
    with pytest.raises(ValueError, match="followed into the functions"):
        register_rule(torch.ops.higher_order.cond)(same)
    made = define("made(Tensor x) -> Tensor", lambda x: x + 1, "CompositeImplicitAutograd")
    with pytest.raises(ValueError, match="made of other operations"):
        register_rule(made)(same)


def test_two_rules_for_one_operation_are_an_error_and_a_cell_may_run_again() -> None:
    def make(factor: int) -> Callable[[Call], Support]:
        def rule(op: Call) -> Support:
            assert factor == 2
            return op.support("x")

        return rule

    register_rule(one_in)(make(1))
    register_rule(one_in)(make(2))  # the same definition, run again
    assert check_rule(one_in, torch.randn(2)).exact
    with pytest.raises(ValueError, match=rf"has a rule already, registered at {re.escape(__file__)}:\d+"):
        register_rule(one_in)(same)


def test_what_is_no_operator() -> None:
    for bad in (torch.softmax, lambda x: x, 3):
        with pytest.raises(TypeError, match=r"takes an operator"):
            register_rule(bad)
    for name in ("ct_custom::nothing", "one_in", "ct_custom::one_in.nothing"):
        with pytest.raises(ValueError, match="there is no operator"):
            register_rule(name)
    with pytest.raises(ValueError, match="reads='y'"):
        register_rule(one_in, reads="y")(same)


KEPT: list[Tensor] = []


@torch.library.custom_op("ct_kept::keep", mutates_args=())
def keep(x: Tensor) -> Tensor:
    KEPT.append(x + 1)
    return torch.zeros(1)


@torch.library.custom_op("ct_kept::log", mutates_args=())
def log(x: Tensor) -> None:
    KEPT.append(x + 1)


GIVE = define("given_back(int i) -> Tensor", lambda i: KEPT[i].sum().double(), "CompositeExplicitAutograd")


@pytest.mark.parametrize("keeps", [keep, log])
@pytest.mark.parametrize("ahead", [0, 1])
def test_what_an_operation_keeps_may_come_back(keeps: Callable[[Tensor], object], ahead: int) -> None:
    tokens, model = stream(), Toy()
    with causaltrace.watch(tokens) as trace, torch.no_grad():
        for t in range(2, 9):
            keeps(tokens[t - 2 + ahead : t + ahead])
            hint = GIVE(-1).float()
            F.cross_entropy(model(tokens[:t])[-1:] + hint * model.head[0], tokens[t : t + 1]).item()
    report = trace.report
    assert report.status == ("unverified" if ahead else "clean")
    assert all(notice.blocking == bool(ahead) and "ct_kept" in notice.message for notice in report.opaque)
    assert report.opaque
