"""Judge the rules over PyTorch's test database.

python -m tests.opdb --op softmax --sample 1 --show     one sample, with both matrices' differences
python -m tests.opdb --shard 0/4                        every fourth op, all samples
python -m tests.opdb --jobs 2 --table docs/op-coverage.md     everything, written as a table
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from causaltrace.perturb import Refused
from tests.opdb.judge import Verdict, judge
from tests.opdb.samples import EXCLUDED, LARGER, Sample, all_ops, samples

#: Other inputs for one op after which only few are looked at.
LONG = 20_000


@dataclasses.dataclass
class Row:
    """What was found for one op: numbers of samples, forward and backward."""

    name: str
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    reported: int = 0
    true: int = 0
    looked: int = 0
    opaque: set[str] = dataclasses.field(default_factory=set)
    problems: list[str] = dataclasses.field(default_factory=list)

    def add(self, sample: Sample, verdict: Verdict) -> None:
        self.counts["samples"] += 1
        self.opaque |= set(verdict.opaque)
        self.looked += verdict.looked
        self.reported += verdict.reported
        self.true += verdict.true
        where = f"{self.name} sample {sample.number}{' backward' if sample.backward else ''}: {sample.text}"
        if verdict.missed:
            self.problems.append(f"MISSED {len(verdict.missed)} {verdict.missed[:3]} in {where}")
        if not verdict.horizon:
            self.problems.append(f"HORIZON is not the latest member in {where}")
        kind = "conservative" if verdict.opaque else "exact" if verdict.exact else "larger"
        self.counts[kind] += 1

    def line(self) -> str:
        if self.name in EXCLUDED:
            return f"| {self.name} | 0 | | | | excluded: {EXCLUDED[self.name]} |"
        c = self.counts
        ratio = f"{self.reported / self.true:.2f}" if self.true and self.reported > self.true else ""
        note = "no rule: " + ", ".join(sorted(self.opaque)) if self.opaque else ""
        if c["larger"]:
            note = note or LARGER.get(self.name, "")
        if not c["samples"]:
            note = (
                "not on a CPU, or no tensors" if c["refused"] else "no sample of dense tensors of this size"
            )
        return (
            f"| {self.name} | {c['samples']} | {c['exact']} | {ratio} | {c['conservative'] or ''} | {note} |"
        )


def run(
    name: str,
    limit: int | None,
    only: int | None,
    elements: int,
    values: int,
    dtype: torch.dtype | None = None,
) -> Row:
    row = Row(name)
    for sample in samples(name, all_ops()[name], limit, dtype):
        if only is not None and sample.number != only:
            continue
        try:
            # an op that is larger in some samples, or took long, is looked at less closely in the others
            effort = 1 / 40 if row.looked > LONG else 1 / 8 if row.counts["larger"] >= 3 else 1
            row.add(sample, judge(sample, elements, values, effort=effort))
        except Refused:
            row.counts["refused"] += 1
        except Exception as error:
            row.problems.append(f"ERROR {error!r} in {name} sample {sample.number}: {sample.text}")
    return row


def show(name: str, number: int, elements: int, values: int, dtype: torch.dtype | None) -> None:
    for sample in samples(name, all_ops()[name], number + 1, dtype):
        if sample.number != number:
            continue
        print(sample.text)
        try:
            verdict = judge(sample, elements, values)
        except Refused:
            print("  does not run here, or gives no dense tensor")
            continue
        print(f"  reported {verdict.reported}, true {verdict.true}, opaque {verdict.opaque or 'none'}")
        for out, element in verdict.missed:
            source = "several at once" if element < 0 else f"input element {element}"
            print(f"  missed: output element {out} changes with {source}")


def table(rows: list[Row], elements: int) -> str:
    judged = [r for r in rows if r.counts["samples"]]
    exact = sum(r.counts["exact"] == r.counts["samples"] for r in judged)
    conservative = sum(bool(r.counts["conservative"]) for r in judged)
    total = sum(r.counts["samples"] for r in judged)
    missed = sum(any(p.startswith("MISSED") for p in r.problems) for r in rows)
    return "\n".join(
        [
            "# Rules over PyTorch's test database",
            "",
            f"Written by `python -m tests.opdb --table` with torch {torch.__version__.split('+')[0]}: "
            f"{len(rows)} ops, {total} samples, forward and backward. Of {len(judged)} judged {exact} are "
            f"exact on all samples, {conservative} have parts without a rule, {missed} miss dependencies.",
            "",
            f"A sample is judged by changing up to {elements} of its input elements one at a time, to a few "
            "values each, and by changing at once all that a result is said not to depend on. *Larger* is "
            "reported pairs over true pairs. A pair that does not show is looked for at other inputs where "
            "the rules report the same; where many places compete for one maximum, some pairs are never "
            "met: a ratio of a few percent is mostly the search, not the rule.",
            "",
            "| op | samples | exact | larger | conservative | note |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
            *[r.line() for r in rows],
            "",
        ]
    )


def apart(one: Callable[[str], Row], name: str) -> Row:
    """An op in a process of its own: there are kernels that crash on numbers that they do not check."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(one(name)))
    child.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        row = Row(name, problems=[f"CRASHED in {name}"])
    child.join()
    return row


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.opdb", description=__doc__)
    parser.add_argument("--op", help="one op, as the table names it")
    parser.add_argument("--sample", type=int, help="one sample of it")
    parser.add_argument("--show", action="store_true", help="print what was found for the sample")
    parser.add_argument("--shard", default="0/1", help="every n-th op: i/n")
    parser.add_argument("--limit", type=int, help="samples of each op (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--dtype", help="int64, bool ...: the ops that take it (default: see dtype_of)")
    parser.add_argument("--elements", type=int, default=6, help="input elements changed in each sample")
    parser.add_argument("--values", type=int, default=6, help="other values tried for each")
    parser.add_argument("--table", type=Path, help="write the table here")
    args = parser.parse_args()
    if args.op not in (None, *all_ops()) or args.show and not args.op:
        parser.error("--op takes the name of an op as docs/op-coverage.md lists it")
    dtype = getattr(torch, args.dtype, None) if args.dtype else None
    if args.dtype and not isinstance(dtype, torch.dtype):
        parser.error(f"--dtype takes the name of a dtype of torch, not {args.dtype!r}")
    _quiet()
    if args.show:
        show(args.op, args.sample or 0, args.elements, args.values, dtype)
        return 0
    shard, of = map(int, args.shard.split("/"))
    names = [args.op] if args.op else [n for i, n in enumerate(all_ops()) if i % of == shard]
    rows, start = [], time.perf_counter()
    one = partial(
        run, limit=args.limit, only=args.sample, elements=args.elements, values=args.values, dtype=dtype
    )
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(partial(apart, one), names):
            rows.append(row)
            if len(rows) % 100 == 0:
                print(
                    f"{len(rows)} of {len(names)} ops, {time.perf_counter() - start:.0f} s", file=sys.stderr
                )
            for problem in row.problems:
                print(problem, flush=True)
    print(f"{sum(r.counts['samples'] for r in rows)} samples, {time.perf_counter() - start:.0f} s")
    if args.table:
        args.table.write_text(table(rows, args.elements))
    return int(any(r.problems for r in rows))


if __name__ == "__main__":
    sys.exit(main())
