"""``python -m tests.laundering > docs/laundering.md``: what a watch says about every way to hide a label."""

from __future__ import annotations

import sys
import warnings

import torch

import tests.laundering.ways  # noqa: F401
from tests.laundering import WAYS, Program, Way, verdict

HEAD = """# Ways to hide a label

Written by `python -m tests.laundering`: {count} small programs that let a label reach a score that it must
not reach, each with a legal twin that does the same with labels that are scored already. An exhaustive flip
of all labels proves that the one leaks and the other does not.

*Followed*: the label was found on its way to the score. *Noticed*: the watch saw it leave torch, or saw
something that it does not know, and does not call the run clean. **Missed** is a hole: the leak is called
clean. The last column is the verdict on the legal twin.
"""

FOUND = {"violation": "followed", "unverified": "noticed", "clean": "**missed**"}


def status(program: Program, says: bool) -> str:
    """The verdict in one word; a watch that fails gives none."""
    try:
        return verdict(program, says).status
    except Exception:
        return "error"


def line(way: Way, leak: str, legal: str) -> str:
    """The row of a way, by the verdicts on its two programs."""
    words = way.words.replace("|", "\\|")
    return f"| {words} | {leak} | {FOUND.get(leak, '**error**')} | {legal} |"


def page() -> str:
    parts = [HEAD.format(count=len(WAYS))]
    for group in dict.fromkeys(way.group for way in WAYS.values()):
        doc = sys.modules[f"tests.laundering.ways.{group}"].__doc__ or ""
        title, _, rest = doc.strip().partition(": ")
        parts += [f"\n## {title}\n\n{rest[:1].upper()}{rest[1:]}\n" if rest else f"\n## {doc.strip(' .')}\n"]
        parts += ["\n| way | leak | label | legal twin |\n| --- | --- | --- | --- |\n"]
        for way in (way for way in WAYS.values() if way.group == group):
            parts += [line(way, *(status(program, way.says) for program in (way.leaking, way.legal))) + "\n"]
    return "".join(parts)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(page(), end="")
