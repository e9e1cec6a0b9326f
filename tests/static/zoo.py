"""Audit every causal language model of ``transformers``, and compare with the verdicts that flips confirm.

python -m tests.static.zoo                    both kinds of attention, against docs/zoo.md
python -m tests.static.zoo --model DogeForCausalLM --attention eager
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch
import transformers

import causaltrace
from tests.zoo.judge import BATCH, LENGTH
from tests.zoo.models import ATTENTION, models

TABLE = Path(__file__).parents[2] / "docs" / "zoo.md"


def expected() -> dict[tuple[str, str], tuple[str, str]]:
    """By model and attention: the status that the flips ask for, and the one that a watch gives."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines()]
    return {(r[0], r[1]): (r[2], r[3]) for r in rows if len(r) == 7 and r[2] in ("clean", "violation")}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.static.zoo", description=__doc__)
    parser.add_argument("--model", help="one model, as docs/zoo.md names it")
    parser.add_argument("--attention", choices=ATTENTION, help="one kind of attention (default: both)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    known, ids = models(), torch.empty(BATCH, LENGTH, dtype=torch.long, device="meta")
    agree, count, start = Counter[str](), Counter[str](), time.perf_counter()
    for (name, attention), (true, watched) in expected().items():
        if args.model not in (None, name) or args.attention not in (None, attention):
            continue
        try:
            found = causaltrace.audit(known[name].build(attention), ids).status
        except causaltrace.AuditError as error:
            found = f"AuditError: {error}"
        count[attention] += 1
        agree[attention] += found == true
        if found != true:
            print(f"{name} ({attention}): {true}, watch {watched}, audit {found}", flush=True)
    for attention in count:
        print(f"{attention}: {agree[attention]} of {count[attention]} get the verdict of the flips")
    print(f"{time.perf_counter() - start:.0f} s")
    return int(sum(agree.values()) < 0.9 * sum(count.values()))


if __name__ == "__main__":
    sys.exit(main())
