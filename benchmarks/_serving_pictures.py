"""Draw the newest run of `serving_load.py` and write its table; `pictures.py` puts both into docs/benchmarks.md."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from peft_aot.compare.report.styles import COLOURS, GRID, INK

Line = dict[str, Any]
PEERS = {
    "engine": (COLOURS[0], "o"),
    "LoRA, merged models": (COLOURS[2], "s"),
    "LoRA, mixed batches": (COLOURS[1], "D"),
    "LoRA, set_adapter per task": (COLOURS[3], "^"),
    "LoRA, set_adapter per request": (COLOURS[4], "v"),
}
SHARES = (("p50", COLOURS[0], "o"), ("p95", COLOURS[1], "s"), ("p99", COLOURS[2], "^"))
STYLES = (":", "-")
HEAD = ["| backbone | what | figure |", "|---|---|---|"]


def newest(lines: list[Line]) -> dict[str, list[Line]]:
    """Return the lines of each section that are newest for their point, whatever their run."""
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        found[tuple(line.get(key) for key in ("section", "model", "mix", "share", "tasks_loaded"))] = line
    sections: dict[str, list[Line]] = {}
    for line in found.values():
        sections.setdefault(line["section"], []).append(line)
    return sections


def draw_serving(lines: list[Line], image: Path) -> str:
    """Draw throughput and latency against the number of tasks; return the table.

    Args:
        lines: Of serving_load.jsonl, oldest first.
        image: Where the picture goes.
    """
    if not lines:
        return ""
    sections = newest(lines)
    models = list(dict.fromkeys(line["model"] for line in lines if line["section"] in {"capacity", "latency", "peers"}))
    figure, axes = plt.subplots(
        max(1, len(models)), 2, figsize=(11, 4.5 * max(1, len(models))), layout="constrained", squeeze=False
    )
    for (left, right), model in zip(axes, models, strict=False):
        own = {name: [line for line in found if line["model"] == model] for name, found in sections.items()}
        _throughput(left, own.get("peers", []), own.get("capacity", []))
        _latency(right, own.get("latency", []))
        left.set_title(f"{model}: saturated, without HTTP")
        right.set_title(f"{model}: Poisson arrivals over HTTP")
    figure.savefig(image, dpi=110)
    plt.close(figure)
    return "\n".join([*HEAD, *(row for found in sections.values() for line in found for row in _rows(line))])


def _throughput(ax: Axes, peers: list[Line], capacity: list[Line]) -> None:
    ticks: set[int] = set()
    for name, (colour, marker) in PEERS.items():
        own = sorted(
            (p["tasks_loaded"], p["requests_per_second"][name]) for p in peers if name in p["requests_per_second"]
        )
        if own:
            ax.plot(*zip(*own, strict=True), color=colour, marker=marker, label=name)
            ticks.update(tasks for tasks, _ in own)
    for line, style in zip(capacity, STYLES, strict=False):
        rates = {int(name): rate for name, rate in line["requests_per_second"].items() if name.isdigit()}
        label = f"engine, long rounds, {line['mix']}"
        ax.plot(list(rates), list(rates.values()), color=COLOURS[5], marker="x", linestyle=style, label=label)
        ticks.update(rates)
    if capacity:
        bare = statistics.median(line["requests_per_second"]["bare"] for line in capacity)
        ax.axhline(bare, color=INK, linewidth=1, label="bare backbone, long rounds")
    ax.set_ylabel("requests per second")
    _tasks(ax, ticks)
    ax.set_ylim(0, 1.05 * max(1.0, ax.dataLim.y1))


def _latency(ax: Axes, lines: list[Line]) -> None:
    ticks: set[int] = set()
    chosen = [line for line in lines if line["mix"] == "zipf"] or lines
    for line, style in zip(sorted(chosen, key=lambda line: line["share"]), STYLES, strict=False):
        tasks = sorted(int(number) for number in line["tasks"])
        for name, colour, marker in SHARES:
            ys = [line["tasks"][str(number)][name] for number in tasks]
            label = f"{name} at {line['share']} of capacity"
            ax.plot(tasks, ys, color=colour, marker=marker, linestyle=style, label=label)
        ticks.update(tasks)
    ax.set_ylabel("ms per request")
    ax.set_yscale("log")
    _tasks(ax, ticks)


def _tasks(ax: Axes, ticks: set[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), [f"{number:,}" for number in sorted(ticks)])
    ax.set_xlabel("tasks loaded")
    ax.grid(color=GRID)
    if ticks:
        ax.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    else:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=INK)
        ax.set_axis_off()


def _rows(line: Line) -> list[str]:
    """Return the rows of the table that a line gives."""
    cells = {
        "capacity": _capacity_rows,
        "latency": _latency_rows,
        "overload": _overload_rows,
        "peers": _peer_rows,
        "isolation": _isolation_rows,
        "malformed": _malformed_rows,
    }[line["section"]](line)
    return [f"| {line['model']} | {what} | {told} |" for what, told in cells]


def _capacity_rows(line: Line) -> list[tuple[str, str]]:
    rates = line["requests_per_second"]
    told = ", ".join(f"{rate:.0f}/s {_named(name)}" for name, rate in rates.items())
    over = {name: figures["ratio"] for name, figures in line["time_over_bare"].items() if name != "bare"}
    most = max(over, key=int)
    least = min(over, key=int)
    kept = line["batches"][most]["rows_kept"]
    return [
        (f"saturated, {line['mix']}", told),
        (f"{most} over {least} tasks, {line['mix']}", f"{1 / line['time_most_over_least']['ratio']:.2f}"),
        (f"{most} tasks over the bare backbone, {line['mix']}", f"{1 / over[most]:.2f}; {kept:.0%} of rows were kept"),
    ]


def _named(name: str) -> str:
    return f"with {name} task{'s' * (name != '1')}" if name.isdigit() else f"{name} backbone"


def _latency_rows(line: Line) -> list[tuple[str, str]]:
    tasks = line["tasks"]
    shown = [
        f"{_named(number)} {p['p50']:.0f} / {p['p95']:.0f} / {p['p99']:.0f} ms, "
        f"{sum(count for status, count in p['statuses'].items() if status != '200') + p['unanswered']} errors"
        for number, p in sorted(tasks.items(), key=lambda item: int(item[0]))
    ]
    where = f"{line['share']} of capacity ({line['rate']:.0f}/s), {line['mix']}"
    ratio = statistics.median(line["p95_most_over_least"])
    most, least = max(tasks, key=int), min(tasks, key=int)
    return [
        (f"p50 / p95 / p99 at {where}", "; ".join(shown)),
        (f"p95 with {most} over p95 with {least}, same load", f"{ratio:.2f}"),
    ]


def _overload_rows(line: Line) -> list[tuple[str, str]]:
    statuses = ", ".join(f"{count:,} x {status}" for status, count in sorted(line["statuses"].items()))
    return [
        (
            f"twice the capacity for {line['seconds']:.0f} s, {line['tasks_loaded']} tasks",
            f"{statuses}, {line['unanswered']} unanswered; p99 {line['p99']:.0f} ms; memory at most "
            f"{line['memory_most_over_first']:.2f} of the beginning's; {'up' if line['alive'] else 'down'} afterwards",
        )
    ]


def _peer_rows(line: Line) -> list[tuple[str, str]]:
    told = ", ".join(f"{name} {rate:.0f}/s" for name, rate in line["requests_per_second"].items())
    missing = "".join(f"; {reason}" for reason in line["left_out"].values())
    return [(f"peers, {line['tasks_loaded']} tasks, {line['mix']}", f"{told}{missing}")]


def _isolation_rows(line: Line) -> list[tuple[str, str]]:
    counts = line["counts"]
    changes = sum(counts.get(name, 0) for name in ("added", "removed", "replaced"))
    wrong = counts["of another task"] + counts["of another version"] + counts["other numbers"]
    return [
        (f"{counts['answered']:,} answers while {changes:,} tasks came, went or changed", f"{wrong} of another task")
    ]


def _malformed_rows(line: Line) -> list[tuple[str, str]]:
    statuses = ", ".join(f"{count:,} x {status}" for status, count in line["statuses"].items())
    return [
        (
            f"{line['sent']:,} malformed calls",
            f"{statuses}; {line['server_errors']} x 5xx, {line['unanswered']} unanswered, the slowest after "
            f"{line['slowest_ms']:.0f} ms; {'up' if line['alive'] else 'down'} afterwards",
        )
    ]
