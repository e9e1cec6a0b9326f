"""The demo's screen, made from its JSON data and from nothing else."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from causaltrace.report.summary import ranges

_STYLE = {"clean": "green", "violation": "bold red", "unverified": "bold yellow"}

Data = dict[str, Any]


def screen(data: Data) -> RenderableType:
    """Both questions, then the table of examples."""
    return Group(
        _setting(data),
        Text(),
        _title("PR #1240", "does SLOT let labels reach scores that they must not reach?"),
        _pairs(data["pr_1240"]),
        *_pair_notes(data["pr_1240"]),
        Text(),
        _title("Issue #1336", "is context-only SLOT causal?"),
        *_windows(data["issue_1336"]),
        Text(),
        _title("All examples", "bits per byte that each claims, and that it may claim"),
        _examples(data["examples"]),
        *_example_notes(data["examples"]),
        Text(),
    )


def _title(name: str, question: str) -> RenderableType:
    return Text.assemble((name, "bold"), ": ", question)


def _status(status: str, as_expected: bool = True) -> Text:
    return Text(status + ("" if as_expected else " !"), style=_STYLE.get(status, ""))


def _indent(text: Text | str) -> Padding:
    return Padding(Text(text) if isinstance(text, str) else text, (0, 0, 0, 2))


def _setting(data: Data) -> Text:
    model, text = data["model"], data["text"]
    return Text(
        f"A byte-level GPT ({model['layers']} layers, dim {model['dim']}), trained {model['train_steps']} "
        f"steps ({model['train_seconds']:.0f} s) on {text['train_bytes']:,} bytes of Python's language "
        f"reference; scored on its last {text['stream_bytes']:,} bytes.",
        style="dim",
    )


# ---------------------------------------------------------------------------------------------- PR #1240


def _pairs(rows: list[Data]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("  one window")
    for row in rows:
        table.add_column(row["eval"], justify="right")

    def add(name: str, cells: list[Any]) -> None:
        table.add_row(name, *(c if isinstance(c, Text) else str(c) for c in cells))

    watched = [row["watched"] for row in rows]
    flips = [row["flips"] for row in rows]
    agreement = [row["agreement"] for row in rows]
    add("  causaltrace", [_status(row["watched"]["status"], row["as_expected"]) for row in rows])
    add("    pairs covered", [f"{w['pairs_covered']:,}" for w in watched])
    add(
        "    violating scores",
        [f"{len(w['violating_positions'])} of {w['scored_positions']}" for w in watched],
    )
    add("    seconds, one watched run", [f"{w['seconds']:.2f}" for w in watched])
    add("  flips, as in the PR", ["" for _ in rows])
    add("    pairs moved", [f"{f['pairs_moved']} of {f['pairs_sampled']}" for f in flips])
    add(
        "    of those with the label later",
        [f"{f['forbidden_pairs_moved']} of {f['forbidden_pairs_sampled']}" for f in flips],
    )
    add("    largest change, nats", [f"{f['largest_change_nats']:.4f}" for f in flips])
    add(f"    seconds, {flips[0]['runs']} runs", [f"{f['seconds']:.2f}" for f in flips])
    add("    the same for every label", [f"~{f['seconds_for_every_label_estimated']:.1f}" for f in flips])
    add("  agreement", ["" for _ in rows])
    add(
        "    positions judged alike",
        [f"{a['positions_agreeing']} of {a['positions_compared']}" for a in agreement],
    )
    add("    moved pairs ruled out", [str(a["moved_pairs_ruled_out_by_report"]) for a in agreement])
    return table


def _pair_notes(rows: list[Data]) -> list[RenderableType]:
    watched, flips = rows[0]["watched"], rows[0]["flips"]
    note = (
        f"Covered: had any of the {watched['forbidden_pairs_covered']:,} pairs whose label is not before its "
        "score leaked, that score would be listed. The report names the latest label that reached it and "
        f"does not tell the ones in between apart. Moved: by more than {flips['threshold_nats']:g} nats; C1 "
        "forbids it only where the label is later."
    )
    return [_indent(Text(note, style="dim"))]


# ------------------------------------------------------------------------------------------- issue #1336


def _windows(data: Data) -> list[RenderableType]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    names = {"one_window": "one window at a time", "shared": f"{data['windows']} windows share one delta"}
    for key, name in names.items():
        row = data[key]
        count = f"{len(row['violating_positions'])} of {row['scored_positions']} scores violate"
        table.add_row(f"  {name}", _status(row["status"], row["as_expected"]), count)
    lines: list[RenderableType] = [table]
    if data["state"] is not None:
        for name, key in (("state updated at", "updated_at"), ("read again at   ", "read_at")):
            site = data["state"][key]
            lines.append(Text.assemble(f"  {name}  ", (site["place"], "cyan")))
            lines.append(Text(f"    {site['source']}"))
    by_label: dict[int, list[Data]] = defaultdict(list)
    for leak in data["leaks"]:
        by_label[leak["latest_label"]].append(leak)
    for label, leaks in by_label.items():
        sources, first = ranges(leaks[0]["label_is_context_of_windows"]), leaks[0]
        victims = ranges(leak["into_window"] for leak in leaks)
        lines.append(
            _indent(
                f"Window {sources} leaks into {victims}: delta was fitted on x_{label}, context of window "
                f"{sources}, which window {first['label_is_scored_by_window']} had yet to score."
            )
        )
    return lines


# ---------------------------------------------------------------------------------------------- examples


def _short(name: str) -> str:
    return name.replace("test-time training", "TTT").replace(" with logit bias", " + bias")


def _examples(rows: list[Data]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("  eval, start of the path", no_wrap=True)
    table.add_column("claims", justify="right", no_wrap=True)
    table.add_column("stream", no_wrap=True)
    table.add_column("scored", no_wrap=True)
    table.add_column("violate", justify="right", no_wrap=True)
    table.add_column("kinds")
    table.add_column("may claim", justify="right", no_wrap=True)
    for row in rows:
        clean = row["status"] == "clean"
        path = row["witness"]["path"] if row["witness"] else []
        name = Text("  " + _short(row["eval"]))
        if path:
            name.append("\n    " + path[0]["place"].removeprefix("examples/"), style="cyan")
        table.add_row(
            name,
            f"{row['claims_bits_per_byte']:.4f}",
            _status(row["orders"]["stream"], row["as_expected"]),
            _status(row["orders"]["scored"], row["as_expected"]),
            f"{len(row['violating_positions'])}/{row['scored_positions']}",
            " ".join(row["kinds"]),
            f"{'' if clean else '* '}{row['may_claim_bits_per_byte']:.4f}",
        )
    return table


def _example_notes(rows: list[Data]) -> list[RenderableType]:
    if all(row["status"] == "clean" for row in rows):
        return []
    return [_indent(Text("* not a compression rate; the plain eval's number may be claimed", style="dim"))]
