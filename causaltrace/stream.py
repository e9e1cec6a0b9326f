"""Label streams: which tensors hold labels, and which position each element has."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Positions of all streams together; two bits of an int32 lane are taken.
MAX_POSITIONS = 1 << 30


@dataclass(frozen=True, slots=True)
class Stream:
    """A run of label positions ``offset .. offset + size - 1`` in the one global numbering."""

    name: str
    offset: int
    size: int


class Streams:
    """The streams of one watch, numbered one after the other in the order in which they were given."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    @property
    def size(self) -> int:
        return self.streams[-1].offset + self.streams[-1].size if self.streams else 0

    def add(self, name: str, tokens: Tensor) -> Stream:
        """A new stream with the elements of ``tokens``, in row-major order.

        Raises:
            TypeError: ``tokens`` are not integers.
            ValueError: ``tokens`` are empty, or there are more labels than can be numbered.
        """
        check_tokens(tokens)
        stream = Stream(name, self.size, tokens.numel())
        if stream.offset + stream.size > MAX_POSITIONS:
            raise ValueError(
                f"more than {MAX_POSITIONS:,} labels in one watch; watch a part of the stream at a time"
            )
        self.streams.append(stream)
        return stream

    def locate(self, position: int) -> tuple[Stream, int]:
        """The stream of a global position, and the position in it."""
        i = bisect_right([s.offset for s in self.streams], position) - 1
        stream = self.streams[i]
        return stream, position - stream.offset

    def find(self, name: str) -> Stream | None:
        return next((s for s in self.streams if s.name == name), None)


def check_tokens(tokens: object) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"tokens must be a torch tensor of integer labels, not {type(tokens).__name__}; "
            "convert it first (torch.as_tensor) and slice inputs and targets from that tensor"
        )
    if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
        raise TypeError(
            f"tokens must have an integer dtype, not {tokens.dtype}; labels are class ids "
            "(for real-valued series label the integer targets with causaltrace.label)"
        )
    if tokens.numel() == 0:
        raise ValueError("tokens are empty: there is no label to follow")


def named(tokens: object) -> list[tuple[str, Tensor]]:
    """The streams meant by the argument of ``watch``: a tensor, a sequence or a mapping of tensors."""
    if tokens is None:
        return []
    if isinstance(tokens, Mapping):
        items: Iterable[tuple[str, object]] = [(str(k), v) for k, v in tokens.items()]
    elif isinstance(tokens, (list, tuple)) and all(isinstance(t, Tensor) for t in tokens):
        items = (
            [(f"labels[{i}]", t) for i, t in enumerate(tokens)]
            if len(tokens) != 1
            else [("labels", tokens[0])]
        )
    else:
        items = [("labels", tokens)]
    out: list[tuple[str, Tensor]] = []
    for name, tensor in items:
        check_tokens(tensor)
        assert isinstance(tensor, Tensor)
        out.append((name, tensor))
    if not out:
        raise ValueError("no token tensors given: there is no label to follow")
    return out


def starts(piece: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.intp]:
    """The places at which a piece of labels stands in ``labels``. By methods of arrays: a watch follows what
    functions make of labels."""
    (places,) = (labels[: labels.size - piece.size + 1] == piece[0]).nonzero()
    for at in range(1, piece.size):
        if len(places) < 2:
            break
        places = places[labels[places + at] == piece[at]]
    if len(places) == 1 and not (labels[places[0] : places[0] + piece.size] == piece).all():
        return places[:0]
    return places
