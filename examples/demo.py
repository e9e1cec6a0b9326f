"""The two seed questions on one screen, every example judged, and the same as JSON.

PR #1240 asked by flips whether SLOT lets labels reach scores that they must not reach; issue #1336 asks it of
context-only SLOT. Every verdict printed here comes from a report. ``LEGAL`` in the examples is only what is
expected, and decides the exit code.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import causaltrace
from causaltrace.report.html import to_html
from causaltrace.report.summary import place, short_file
from examples import (
    blend_target,
    byte_mixer,
    demo_view,
    lora_documents,
    mean_loss,
    ngram_dict,
    ngram_full,
    ngram_hashed,
    oracle_min,
    plain_sliding,
    slot_context,
    slot_per_sample,
    slot_standard,
    tilt_gated,
    tilt_hint,
    ttt_multi_epoch,
    ttt_saved,
    ttt_score_first,
    ttt_train_first,
    two_pass,
    warmup_restored,
)
from examples.common import (
    GPT,
    ModelConfig,
    Window,
    bits_per_byte,
    build_model,
    byte_tokens,
    load_text,
    sliding_windows,
    train,
)

SCHEMA = "causaltrace-demo/1"
PROBES = 16  # labels that the PR flipped, and scores that it looked at
THRESHOLD = 1e-4  # nats; the PR's threshold for "moved"


class Run(NamedTuple):
    """One example at one configuration, and whether it is expected to be legal."""

    name: str
    module: ModuleType
    config: Any
    legal: bool


@dataclasses.dataclass(frozen=True)
class Judged:
    """A run, the number it returned inside the watch, its report, and the seconds both took."""

    run: Run
    bits: float
    report: causaltrace.Report
    seconds: float

    @property
    def latest(self) -> dict[int, int]:
        """Every violating position, with the latest label that reached it."""
        found: dict[int, int] = {}
        for finding in self.report.violations:
            found[finding.target] = max(finding.source, found.get(finding.target, -1))
        return found

    @property
    def expected(self) -> bool:
        return self.report.status == ("clean" if self.run.legal else "violation")

    @property
    def witness(self) -> causaltrace.Finding | None:
        """The finding with a path whose label is furthest ahead of the score."""
        with_path = [finding for finding in self.report.violations if finding.path]
        return max(with_path, key=lambda f: f.source - f.target, default=None)


def examples(window: int, stride: int, windows: int) -> list[Run]:
    """Every example, at sizes that follow from those of the sliding windows."""
    half = window // 2
    slot = {"window": window, "stride": stride}
    shared = slot_context.Config(**slot, batch=windows)
    sgd = ttt_score_first.Config(chunk=window, sequence=half)
    adamw = dataclasses.replace(sgd, optimizer="adamw", lr=3e-4)
    return [
        _run(plain_sliding, plain_sliding.Config(**slot)),
        _run(mean_loss, mean_loss.Config(chunk=window)),
        _run(slot_standard, slot_standard.Config(**slot)),
        _run(slot_per_sample, slot_per_sample.Config(**slot)),
        _run(slot_context, slot_context.Config(**slot), ", batch 1"),
        Run(f"{slot_context.NAME}, batch {windows}", slot_context, shared, legal=False),
        _run(ttt_score_first, sgd, ", SGD"),
        _run(ttt_score_first, adamw, ", AdamW"),
        _run(ttt_train_first, ttt_train_first.Config(chunk=half)),
        _run(ttt_multi_epoch, ttt_multi_epoch.Config(chunk=half)),
        _run(ttt_saved, ttt_saved.Config(chunk=window)),
        _run(warmup_restored, warmup_restored.Config(chunk=window)),
        _run(lora_documents, lora_documents.Config(document=window, chunk=window // 4)),
        _run(ngram_dict, ngram_dict.Config(chunk=half)),
        _run(ngram_full, ngram_full.Config(chunk=half)),
        _run(ngram_hashed, ngram_hashed.Config(chunk=half)),
        _run(two_pass, two_pass.Config(chunk=half)),
        _run(oracle_min, oracle_min.Config(chunk=half)),
        _run(blend_target, blend_target.Config(chunk=half)),
        _run(byte_mixer, byte_mixer.Config(chunk=half)),
        _run(tilt_hint, tilt_hint.Config(chunk=half)),
        _run(tilt_gated, tilt_gated.Config(chunk=half)),
    ]


def _run(module: ModuleType, config: Any, suffix: str = "") -> Run:
    return Run(module.NAME + suffix, module, config, module.LEGAL)


def judge(run: Run, model: GPT, tokens: Tensor) -> Judged:
    """Run an example once, on a copy of the model, inside a watch."""
    model = copy.deepcopy(model)
    start = time.perf_counter()
    with causaltrace.watch(tokens) as trace:
        nats = run.module.evaluate(model, tokens, run.config)
    return Judged(run, bits_per_byte(nats), trace.report, time.perf_counter() - start)


# ---------------------------------------------------------------------------------------------- PR #1240


@contextlib.contextmanager
def _flipped(row: int | None) -> Iterator[list[Tensor]]:
    """Every cross-entropy sees another target in ``row``; the per-position losses are kept."""
    cross_entropy = F.cross_entropy
    kept: list[Tensor] = []

    def spied(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if row is not None:
            target = target.clone()
            target[row] = (target[row] + 1) % input.shape[-1]
        loss = cross_entropy(input, target, *args, **kwargs)
        if loss.dim():
            kept.append(loss.detach())
        return loss

    with mock.patch.object(F, "cross_entropy", spied):
        yield kept


def _losses(run: Run, model: GPT, tokens: Tensor, row: int | None = None) -> Tensor:
    model = copy.deepcopy(model)
    with _flipped(row) as kept:
        run.module.evaluate(model, tokens, run.config)
    return kept[-1]  # the call that scores comes last


def flip_pairs(run: Run, model: GPT, tokens: Tensor, stride: int) -> dict[str, Any]:
    """The PR's test: flip single targets of one window and run the eval again.

    Row r of the window is the score of position r + 1. The first ``PROBES`` of the last ``stride`` rows are
    flipped one by one; each time, the losses of the others are compared with those of the plain run.
    """
    first = len(tokens) - 1 - stride
    rows = range(first, first + min(PROBES, stride))
    start = time.perf_counter()
    base = _losses(run, model, tokens)
    change = {
        (row + 1, other + 1): abs(float(flipped[other] - base[other]))
        for row in rows
        for flipped in [_losses(run, model, tokens, row)]
        for other in rows
        if other != row
    }
    seconds = time.perf_counter() - start
    runs = len(rows) + 1
    return {
        "change": change,
        "seconds": seconds,
        "runs": runs,
        "seconds_for_every_label": seconds / runs * len(tokens),
    }


def compare(judged: Judged, flips: dict[str, Any], labels: int) -> dict[str, Any]:
    """One watched run beside the flips, as far as they speak about the same thing.

    A flip speaks about one pair (label, score). A report names, for every scored position, the latest label
    that reached it, so it says of each position whether *any* label at or after it did, and rules out all
    pairs with a later label than that. Only pairs whose label comes after the score are forbidden by C1.
    """
    change: dict[tuple[int, int], float] = flips["change"]
    latest, scored = judged.latest, sorted(set(judged.report.positions))
    moved = {pair for pair, size in change.items() if size > THRESHOLD}
    future = {(label, target) for label, target in change if label > target}
    tested = {target for _, target in future}
    by_flips = {target for _, target in moved & future}
    return {
        "eval": judged.run.name,
        "expected": "clean" if judged.run.legal else "violation",
        "as_expected": judged.expected,
        "watched": {
            "status": judged.report.status,
            "pairs_covered": labels * len(scored),
            "forbidden_pairs_covered": sum(labels - target for target in scored),
            "scored_positions": len(scored),
            "violating_positions": sorted(latest),
            "seconds": judged.seconds,
        },
        "flips": {
            "pairs_sampled": len(change),
            "pairs_moved": len(moved),
            "forbidden_pairs_sampled": len(future),
            "forbidden_pairs_moved": len(moved & future),
            "threshold_nats": THRESHOLD,
            "largest_change_nats": max(change.values()),
            "runs": flips["runs"],
            "seconds": flips["seconds"],
            "seconds_for_every_label_estimated": flips["seconds_for_every_label"],
        },
        "agreement": {
            "positions_compared": len(tested),
            "positions_agreeing": sum((target in by_flips) == (target in latest) for target in tested),
            "moved_pairs_in_accord": sum(latest.get(t, -1) >= label for label, t in moved & future),
            "moved_pairs_ruled_out_by_report": sum(latest.get(t, -1) < label for label, t in moved & future),
        },
    }


def pr_1240(model: GPT, tokens: Tensor, stride: int) -> list[dict[str, Any]]:
    """No SLOT, standard SLOT and per-sample SLOT on one window, with the PR's steps and learning rates."""
    window = {"window": len(tokens) - 1, "stride": stride, "batch": 1}
    runs = [
        Run("without SLOT", slot_standard, slot_standard.Config(**window, steps=0), True),
        Run("standard SLOT", slot_standard, slot_standard.Config(**window, steps=8, lr=0.005), False),
        Run("per-sample SLOT", slot_per_sample, slot_per_sample.Config(**window, steps=16, lr=0.008), False),
    ]
    return [
        compare(judge(run, model, tokens), flip_pairs(run, model, tokens, stride), len(tokens))
        for run in runs
    ]


# ------------------------------------------------------------------------------------------- issue #1336


def _context_of(label: int, windows: Sequence[Window]) -> list[int]:
    """Numbers of the windows, from 1, that fit their delta on ``label``."""
    return [n for n, w in enumerate(windows, 1) if w.start < label <= w.start + w.fresh]


def _scored_by(position: int, windows: Sequence[Window]) -> int:
    """Number of the window that scores ``position``; 0 is the opening, which goes unadapted."""
    return next((n for n, w in enumerate(windows, 1) if w.start + w.fresh < position <= w.stop), 0)


def _shared_state(judged: Judged) -> dict[str, Any] | None:
    """Where the witness's path updates state, and where it reads that again."""
    path = () if judged.witness is None else judged.witness.path
    updates = [n for n, hop in enumerate(path) if hop.site.phase == "update"]
    if not updates:
        return None
    update, read = path[updates[-1]].site, path[updates[-1] + 1].site
    return {
        "updated_at": {"place": place(update), "source": update.source},
        "read_at": {"place": place(read), "source": read.source},
    }


def issue_1336(alone: Judged, shared: Judged, n_tokens: int) -> dict[str, Any]:
    """Context-only SLOT with one window at a time and with a shared delta; who leaks into whom."""
    config = shared.run.config
    _, *windows = sliding_windows(n_tokens, config.window, config.stride)
    positions = Counter((_scored_by(target, windows), source) for target, source in shared.latest.items())
    leaks = [
        {
            "into_window": number,
            "positions": count,
            "latest_label": label,
            "label_is_context_of_windows": _context_of(label, windows),
            "label_is_scored_by_window": _scored_by(label, windows),
        }
        for (number, label), count in sorted(positions.items())
    ]
    return {
        "window": config.window,
        "stride": config.stride,
        "windows": len(windows),
        "one_window": describe(alone, None),
        "shared": describe(shared, None),
        "state": _shared_state(shared),
        "leaks": leaks,
    }


# ------------------------------------------------------------------------------------------ the whole demo


def describe(judged: Judged, plain_bits: float | None) -> dict[str, Any]:
    """A judged run for the JSON twin; ``plain_bits`` is what may be claimed where the claim is no rate."""
    report, witness = judged.report, judged.witness
    clean = report.status == "clean"
    row: dict[str, Any] = {
        "eval": judged.run.name,
        "file": short_file(judged.run.module.__file__ or ""),
        "expected": "clean" if judged.run.legal else "violation",
        "as_expected": judged.expected,
        "status": report.status,
        "orders": report.orders,
        "conditions": report.conditions,
        "kinds": sorted({finding.kind for finding in report.violations}),
        "scored_positions": report.scored,
        "violating_positions": sorted(judged.latest),
        "claims_bits_per_byte": judged.bits,
        "seconds": judged.seconds,
        "witness": None,
    }
    if plain_bits is not None:
        row["may_claim_bits_per_byte"] = judged.bits if clean else plain_bits
        row["may_claim"] = (
            "the claimed number" if clean else "not a compression rate; the plain eval's number"
        )
    if witness is not None:
        row["witness"] = {
            "label": witness.source,
            "target": witness.target,
            "path": [
                {
                    "phase": hop.site.phase,
                    "op": hop.site.op,
                    "place": place(hop.site),
                    "source": hop.site.source,
                }
                for hop in witness.path
            ],
        }
    return row


def demo(args: argparse.Namespace, console: Console) -> tuple[dict[str, Any], list[causaltrace.Report]]:
    """Train, judge, compare: all that is shown, as plain data; and the reports, that of issue #1336 first."""
    start = time.perf_counter()
    text = byte_tokens(load_text())
    size = 1 + args.window + args.windows * args.stride
    past, tokens = text[:-size], text[-size:].clone()
    config = ModelConfig(context=args.window, layers=args.layers, heads=args.heads, dim=args.dim)
    model = build_model(config, args.seed)
    with console.status("training a byte-level GPT"):
        steps = train(
            model, past, args.train_steps, args.window, batch=8, seed=args.seed, seconds=args.train_seconds
        )
        trained = time.perf_counter() - start
    model.zero_grad(set_to_none=True)

    judged = []
    for run in examples(args.window, args.stride, args.windows):
        with console.status(f"watching {run.name}"):
            judged.append(judge(run, model, tokens))
    with console.status("flipping labels as PR #1240 does"):
        pairs = pr_1240(model, tokens[: args.window + 1], args.pr_stride)
    plain = next(j.bits for j in judged if j.run.module is plain_sliding)
    alone, shared = (j for j in judged if j.run.module is slot_context)
    rows = [describe(j, plain) for j in judged]
    result = {
        "schema": SCHEMA,
        "as_expected": all(row["as_expected"] for row in [*rows, *pairs])
        and not any(row["agreement"]["moved_pairs_ruled_out_by_report"] for row in pairs),
        "seconds": time.perf_counter() - start,
        "model": dataclasses.asdict(config) | {"train_steps": steps, "train_seconds": trained},
        "text": {"source": "pydoc_data.topics", "train_bytes": len(past), "stream_bytes": size},
        "versions": {"python": sys.version.split()[0], "torch": str(torch.__version__)},
        "pr_1240": pairs,
        "issue_1336": issue_1336(alone, shared, size),
        "examples": rows,
    }
    for j in judged:
        j.report.run = dataclasses.replace(j.report.run, command=j.run.name)
    return result, [j.report for j in sorted(judged, key=lambda j: j is not shared)]


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="causaltrace demo", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--json", type=Path, default=Path("demo.json"), help="the JSON twin (default: %(default)s)")
    add("--html", type=Path, help="the page of all reports (default: beside the JSON twin)")
    add("--width", type=int, help="columns (default: the terminal's, at most 100)")
    add("--window", type=int, default=128, help="length of a window (default: %(default)s)")
    add("--stride", type=int, default=16, help="new scores per window (default: %(default)s)")
    add("--windows", type=int, default=32, help="windows that share a delta (default: %(default)s)")
    add("--pr-stride", type=int, default=64, help="stride in the test of PR #1240 (default: %(default)s)")
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--dim", type=int, default=64)
    add("--train-steps", type=int, default=240, help="at most so many steps (default: %(default)s)")
    add("--train-seconds", type=float, default=8.0, help="at most so long (default: %(default)s)")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if every verdict is as expected, 1 if one is not, 2 if a file cannot be written."""
    args = _flags(argv)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is small; timings are steadier
    try:
        return _main(args)
    finally:
        torch.set_num_threads(threads)


def _written(path: Path, text: str) -> bool:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"causaltrace: cannot write {path}: {error.strerror}", file=sys.stderr)
        return False
    return True


def _main(args: argparse.Namespace) -> int:
    console = Console(highlight=False)
    console.width = args.width or min(console.width, 100)
    result, reports = demo(args, console)
    console.print(demo_view.screen(result))
    page = args.html or args.json.with_suffix(".html")
    if not _written(args.json, json.dumps(result, indent=1) + "\n"):
        return 2
    console.print(f"{result['seconds']:.0f} s in all; the same as JSON: {args.json}", markup=False)
    if not _written(page, to_html(reports)):
        return 2
    console.print(f"every finding with its path, in a browser: {page}", markup=False)
    if not result["as_expected"]:
        print("causaltrace: not all verdicts are as the examples expect: see '!' above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
