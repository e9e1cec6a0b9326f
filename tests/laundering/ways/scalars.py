"""Plain Python: labels as numbers, keys, text, bytes and the state of other things."""

from __future__ import annotations

import array
import bisect
import collections
import contextvars
import functools
import hashlib
import heapq
import itertools
import json
import math
import os
import random
import struct
import sys
import zlib
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.laundering import MODEL, VOCAB, numbers, tensors

TABLE = [0.1 * v for v in range(VOCAB)]


@numbers("arithmetic of Python numbers")
def arithmetic(x: list[int]) -> float:
    return x[-1] * 0.1 + (x[0] ^ x[1]) / 7


@numbers("a list that is indexed: TABLE[label]")
def list_index(x: list[int]) -> float:
    return TABLE[x[-1]]


@numbers("a tensor that is indexed with a Python number: MODEL[0, label]")
def tensor_index(x: list[int]) -> Tensor:
    return MODEL[0, x[-1]]


@numbers("a tensor that is built from Python numbers: torch.tensor(x)")
def rebuilt(x: list[int]) -> Tensor:
    return torch.tensor(x, dtype=torch.float64).sum() * 0.1


@numbers("the value that a tensor is filled with: torch.full, fill_")
def filled(x: list[int]) -> Tensor:
    return torch.full((VOCAB,), x[-1] * 0.1, dtype=torch.float64)


@numbers("the size of a new tensor: torch.ones(label)")
def sized(x: list[int]) -> Tensor:
    return torch.ones(x[-1], dtype=torch.float64).sum() * 0.1


@numbers("an argument: torch.roll(t, label), the end of a slice")
def argument(x: list[int]) -> Tensor:
    return torch.roll(MODEL[0], x[-1]) + MODEL[1, : x[-1]].sum()


@numbers("a dict that is looked up")
def dict_lookup(x: list[int]) -> float:
    return {1: 0.1, 2: 0.5, 3: 0.9}.get(x[-1], 0.0)


@numbers("a Counter of labels")
def counter(x: list[int]) -> Tensor:
    counts = collections.Counter(x)
    return torch.tensor([counts[c] / 3 for c in range(VOCAB)], dtype=torch.float64)


@numbers("membership in a set")
def set_membership(x: list[int]) -> Tensor:
    seen = set(x)
    return torch.tensor([0.5 * (c in seen) for c in range(VOCAB)], dtype=torch.float64)


@numbers("the order in which keys were put into a dict")
def dict_order(x: list[int]) -> float:
    places = dict.fromkeys([*x, *range(VOCAB)])
    return 0.1 * list(places).index(3) + 0.01 * next(iter(places))


@numbers("formatted as text and parsed")
def formatted(x: list[int]) -> float:
    return float(f"0.{x[-1]}{x[0]:d}")


@numbers("characters: chr, join, str.translate, ord")
def characters(x: list[int]) -> float:
    text = "".join(map(chr, x)).translate({v: v + 1 for v in range(VOCAB)})
    return 0.1 * ord(text[-1])


@numbers("source text that is evaluated")
def evaluated(x: list[int]) -> float:
    return eval(f"{x[-1]} * 0.1 + {x[1]} / 7")


@numbers("hash() of a tuple")
def hashed(x: list[int]) -> float:
    return hash(tuple(x)) % 97 / 97


@numbers("hashlib over their bytes")
def hashlib_digest(x: list[int]) -> float:
    return hashlib.sha256(bytes(x)).digest()[0] / 256


@numbers("a checksum: zlib.crc32")
def crc(x: list[int]) -> float:
    return zlib.crc32(bytes(x)) % 97 / 97


@numbers("the length of what they compress to")
def compressed(x: list[int]) -> float:
    return 0.1 * len(zlib.compress(bytes(v for label in x for v in range(0, 40 * label, 3))))


@numbers("struct.pack and int.from_bytes")
def packed(x: list[int]) -> float:
    return int.from_bytes(struct.pack("<3h", *x), "little") % 97 / 97


@numbers("array.array and its buffer")
def typed_array(x: list[int]) -> Tensor:
    return torch.frombuffer(array.array("q", x), dtype=torch.int64).double().sum() * 0.1


@numbers("JSON")
def as_json(x: list[int]) -> float:
    return json.loads(json.dumps({"seen": x}))["seen"][-1] * 0.1


@numbers("other kinds of number: Fraction, Decimal, complex")
def other_numbers(x: list[int]) -> float:
    return float(Fraction(x[-1], 7)) + float(Decimal(x[0]) / 7) + abs(complex(x[1], 1))


@numbers("bisect and heapq")
def bisected(x: list[int]) -> float:
    return 0.1 * bisect.bisect([1, 3, 5], x[-1]) + 0.01 * heapq.nsmallest(1, x)[0]


@numbers("sorted with labels as keys")
def sorted_by(x: list[int]) -> float:
    return sorted([0.1, 0.5, 0.9], key=dict(zip([0.1, 0.5, 0.9], x, strict=True)).__getitem__)[0]


@numbers("Python's random numbers, seeded with a label")
def seeded(x: list[int]) -> float:
    return random.Random(x[-1]).random()


@numbers("torch's random numbers: torch.manual_seed(label)")
def torch_seeded(x: list[int]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(x[-1])
        return torch.rand((), dtype=torch.float64)


@numbers("a function that remembers results: lru_cache")
def cached(x: list[int]) -> Tensor:
    @functools.lru_cache
    def tilt(label: int) -> Tensor:
        return torch.tensor(label * 0.1, dtype=torch.float64)

    return tilt(x[-1]) + tilt(x[0])


@numbers("a generator that is resumed, a closure, a partial")
def closure(x: list[int]) -> float:
    made = functools.partial(lambda a, b: a * 0.1 + b * 0.01, x[-1])
    return next(made(label) for label in itertools.islice(x, 1, None))


@numbers("itertools and reduce")
def folded(x: list[int]) -> float:
    return functools.reduce(lambda a, b: (a * 7 + b) % 97, itertools.accumulate(x)) / 97


@numbers("an attribute whose name holds the label")
def named_attribute(x: list[int]) -> float:
    return getattr(SimpleNamespace(**{f"a{v}": TABLE[v] for v in range(VOCAB)}), f"a{x[-1]}")


@numbers("the number of turns of a loop")
def turns(x: list[int]) -> Tensor:
    hint = torch.zeros((), dtype=torch.float64)
    for _ in range(x[-1]):
        hint = hint + 0.1
    return hint


@numbers("the depth of a recursion")
def depth(x: list[int]) -> float:
    def down(n: int) -> float:
        return 0.1 + down(n - 1) if n else 0.0

    return down(x[-1])


@numbers("an exception that carries the label")
def raised(x: list[int]) -> float:
    try:
        raise KeyError(x[-1])
    except KeyError as error:
        return error.args[0] * 0.1


@numbers("a default argument that keeps state")
def default_argument(x: list[int]) -> float:
    def remember(value: int, kept: list[int] = []) -> int:  # noqa: B006
        kept.append(value)
        return kept[-1]

    return remember(x[-1]) * 0.1


@numbers("an environment variable")
def environment(x: list[int]) -> float:
    os.environ["CAUSALTRACE_TEST_LABEL"] = str(x[-1])
    try:
        return int(os.environ["CAUSALTRACE_TEST_LABEL"]) * 0.1
    finally:
        del os.environ["CAUSALTRACE_TEST_LABEL"]


@numbers("an attribute of a module in sys.modules")
def module_attribute(x: list[int]) -> float:
    module = sys.modules[__name__]
    vars(module)["_kept"] = x[-1]
    try:
        return vars(module)["_kept"] * 0.1
    finally:
        del vars(module)["_kept"]


@numbers("a context variable")
def context_variable(x: list[int]) -> float:
    kept: contextvars.ContextVar[int] = contextvars.ContextVar("kept")
    kept.set(x[-1])
    return kept.get() * 0.1


@numbers("the number of references to an object")
def references(x: list[int]) -> float:
    thing = object()
    held = [thing] * x[-1]
    return 0.1 * (sys.getrefcount(thing) - sys.getrefcount(object())) + 0.0 * len(held)


@numbers("math functions, whether a number is finite")
def maths(x: list[int]) -> float:
    return math.sin(x[-1]) + math.isclose(x[0], 3) + math.gcd(x[1], 6)


@tensors("one label at a time: .item()")
def item(x: Tensor) -> float:
    return x[-1].item() * 0.1


@tensors("int(), float(), complex(), operator.index() of a tensor")
def converted(x: Tensor) -> float:
    return int(x[-1]) * 0.1 + float(x[0]) * 0.01 + TABLE[x[1]]


@tensors("the text of a tensor: an f-string, format")
def text(x: Tensor) -> float:
    return float(f"0.{x[-1]}") + int(format(x[0], "d"))


@tensors("the text of a tensor: str, repr")
def shown(x: Tensor) -> float:
    return float(str(x[-1])[7:-1]) + int(repr(x)[-3]) * 0.1


@tensors("iteration and unpacking: for label in x, a, b, c = x")
def unpacked(x: Tensor) -> float:
    a, b, c = (int(label) for label in x)
    return a * 0.1 + b * 0.01 + c * 0.001


@tensors("a tensor as a key of a dict, by its value")
def dict_key(x: Tensor) -> float:
    return {v: TABLE[v] for v in range(VOCAB)}[x[-1].item()]
