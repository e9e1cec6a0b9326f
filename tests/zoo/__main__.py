"""Judge every causal language model of ``transformers``, tiny and with random weights.

python -m tests.zoo --model MixtralForCausalLM --attention sdpa --show    one model, with what is not exact
python -m tests.zoo --shard 0/2                                           every second model
python -m tests.zoo --jobs 2 --table docs/zoo.md                          everything, written as a table
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from tests.zoo.judge import BATCH, LENGTH, VALUES, Verdict, judge
from tests.zoo.models import ATTENTION, Model, Unbuilt, models

#: Why some matrices are larger than the truth.
LARGER = {
    "BltForCausalLM": "the lengths of its patches leave torch",
    "JetMoeForCausalLM": "how many tokens each expert gets leaves torch",
    "ReformerModelWithLMHead": "sorts keys by hash and compares the sorted positions",
    "XLMWithLMHeadModel": "masks by how many tokens are not padding",
}


class Row(NamedTuple):
    """What was found for one model with one kind of attention."""

    model: str
    attention: str
    verdict: Verdict | None
    unbuilt: str = ""
    error: str = ""

    @property
    def problems(self) -> list[str]:
        where, v = f"{self.model} ({self.attention})", self.verdict
        if self.error:
            return [f"ERROR {self.error} in {where}"]
        if v is None:
            return []
        found = [f"NO RULE for {op} in {where}" for op in v.opaque]
        if not v.sound:
            missed = int(v.missed.sum())
            found.append(f"UNSOUND {missed} pairs missed, {v.status} instead of {v.expected} in {where}")
        return found

    def line(self) -> str:
        v = self.verdict
        if v is None:
            return (
                f"| {self.model} | {self.attention} | | | | | {self.error or 'not built: ' + self.unbuilt} |"
            )
        pairs = int((v.moved & ~v.rounding | v.elsewhere).sum())
        note = LARGER.get(self.model, "") if not v.exact else ""
        exact = "yes" if v.exact else f"no, {int(v.larger.sum())} more"
        found = f"{v.expected} | {v.status} | {int(v.reported.sum())} / {pairs} | {exact}"
        return f"| {self.model} | {self.attention} | {found} | {note} |"


def run(case: tuple[Model, str], values: int = VALUES) -> Row:
    model, attention = case
    try:
        return Row(model.name, attention, judge(model.build(attention), values))
    except Unbuilt as error:
        return Row(model.name, attention, None, unbuilt=reason(str(error)))
    except Exception as error:
        return Row(model.name, attention, None, error=repr(error))


def reason(text: str) -> str:
    """One line for the table."""
    if "scaled_dot_product_attention" in text and "does not support" in text:
        return "has no sdpa attention"
    return text.split(". ")[0][:110].replace("|", "/")


def show(row: Row) -> None:
    print(row.line())
    v = row.verdict
    if v is None:
        return
    for name, pairs in (("missed", v.missed), ("larger", v.larger), ("rounding", v.rounding & ~v.reported)):
        if pairs.any():
            print(f"  {name}: {listed(pairs)}")
    for op in v.opaque:
        print(f"  no rule: {op}")
    for site in v.escapes:
        print(f"  left torch: {site}")


def listed(pairs: Tensor) -> str:
    """The first pairs, as document:position of the score and of the label."""
    width = LENGTH + 1
    names = [f"{s // width}:{s % width} <- {t // width}:{t % width}" for s, t in pairs.nonzero().tolist()]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def table(rows: list[Row]) -> str:
    built = [r.verdict for r in rows if r.verdict is not None]
    exact, unsound = sum(v.exact for v in built), sum(not v.sound for v in built)
    ahead = sum(v.expected == "violation" for v in built)
    names = {r.model for r in rows}
    return "\n".join(
        [
            "# Models of transformers",
            "",
            f"Written by `python -m tests.zoo --table` with transformers {transformers.__version__} and "
            f"torch {torch.__version__.split('+')[0]}: {len(names)} models, tiny and with random weights, "
            f"judged {len(built)} times. {unsound} unsound, {exact} exact; {ahead} times a model looks "
            "ahead, and is found.",
            "",
            f"A batch of {BATCH} documents of {LENGTH} tokens is scored in one watch, and every token is "
            "flipped. *True* is the status that the flips ask for. *Pairs* are the scores and labels that "
            "depend on each other, reported and true. A true pair may show among other tokens only (which "
            "keys a sparse layer picks). One that moves a score by rounding only is not counted: a matrix "
            "product of more rows may add in another order.",
            "",
            "| model | attention | true | status | pairs | exact | note |",
            "| --- | --- | --- | --- | ---: | --- | --- |",
            *[r.line() for r in rows],
            "",
        ]
    )


def _quiet() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


def main() -> int:
    known = models()
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--model", help="one model, as the table names it")
    parser.add_argument("--attention", choices=ATTENTION, help="one kind of attention (default: both)")
    parser.add_argument("--show", action="store_true", help="print what was found, pair by pair")
    parser.add_argument("--shard", default="0/1", help="every n-th model: i/n")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--table", type=Path, help="write the table here")
    args = parser.parse_args()
    if args.model not in (None, *known):
        parser.error("--model takes the name of a model as docs/zoo.md lists it")
    shard, of = map(int, args.shard.split("/"))
    names = [args.model] if args.model else [n for i, n in enumerate(known) if i % of == shard]
    cases = [(known[n], a) for n in names for a in ([args.attention] if args.attention else ATTENTION)]
    rows, start = [], time.perf_counter()
    with ProcessPoolExecutor(args.jobs, initializer=_quiet) as pool:
        for row in pool.map(run, cases):
            rows.append(row)
            if args.show:
                show(row)
            for problem in row.problems:
                print(problem, flush=True)
    built = [r.verdict for r in rows if r.verdict is not None]
    exact = sum(v.exact for v in built)
    print(f"{len(built)} judged, {exact} exact, {time.perf_counter() - start:.0f} s")
    if args.table:
        args.table.write_text(table(rows))
    return int(any(r.problems for r in rows) or exact < 0.95 * len(built))


if __name__ == "__main__":
    sys.exit(main())
