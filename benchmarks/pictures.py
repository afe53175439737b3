"""Draw the pictures of docs/benchmarks.md, and its tables, from the newest lines of results/*.jsonl.

    python benchmarks/pictures.py

Nothing is measured here. It writes docs/images/bench-*.png and, in the page, what stands between `<!-- NAME -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt

from _serving_pictures import draw_serving
from peft_aot.compare.report.styles import COLOURS, GRID, INK, QUIET

matplotlib.use("Agg")
RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
SHOWN = {
    "AoT ram": (COLOURS[0], "o"),
    "AoT mmap": (COLOURS[2], "s"),
    "AoT mmap int8": (COLOURS[5], "^"),
    "AoT factors": (COLOURS[4], "v"),
    "LoRA q,v": (COLOURS[1], "D"),
    "LoRA all linear": (COLOURS[3], "P"),
    "adapters BatchSplit": (QUIET, "X"),
    "vLLM LoRA": (INK, "*"),
}
PEERS = {"seq_bn": "adapters BatchSplit"}
BACKBONES = {"minilm": "MiniLM-L6", "roberta": "RoBERTa-base size"}


def lines(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of results, oldest first; none if there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def points() -> dict[tuple[str, str], dict[tuple[int, int, int], dict[str, dict[str, Any]]]]:
    """Return the newest figures by (backbone, dtype), (batch, length, tasks) and method, those of peers too."""
    found: dict[tuple[str, str], dict[tuple[int, int, int], dict[str, dict[str, Any]]]] = {}
    for line in lines("forward_time"):
        at = found.setdefault((line["backbone"], line["dtype"]), {})
        at[line["batch"], line["length"], line["tasks"]] = dict(line["methods"])
    for line in lines("peers"):
        key = line["backbone"].partition("-")[0], line["dtype"]
        place = found.get(key, {}).get((line["batch"], line["length"], line["tasks"]))
        name = peer_name(line)
        if place is not None and name is not None:
            place[name] = {"ratio": line["ratio"], "ratio_quartiles": line["ratio_quartiles"]}
    return found


def peer_name(line: dict[str, Any]) -> str | None:
    """Return the name a peer is drawn under, or None if it is not drawn."""
    if "vllm" in str(line.get("peer", "")).lower():
        return "vLLM LoRA"
    return PEERS.get(line["method"])


def draw_forward() -> str:
    """Draw the time of a forward over the backbone's; return the table."""
    found = points()
    if not found:
        return ""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharey=True, layout="constrained")
    rows = []
    for place, (backbone, dtype) in enumerate((b, d) for b in BACKBONES for d in ("float32", "bfloat16")):
        ax, at = axes.flat[place], found.get((backbone, dtype), {})
        labels = [f"{b} x {t}\n{k} task{'s' * (k > 1)}" for b, t, k in at]
        for method, (colour, marker) in SHOWN.items():
            xs = [x for x, point in enumerate(at.values()) if method in point]
            ys = [point[method]["ratio"] for point in at.values() if method in point]
            ax.plot(xs, ys, marker=marker, color=colour, label=method, linestyle=":", linewidth=1)
        ax.axhline(1.0, color=INK, linewidth=1)
        ax.set_yscale("log", base=2)
        ax.set_yticks([1, 1.1, 1.25, 1.5, 2, 3, 4, 5], ["1.0", "1.1", "1.25", "1.5", "2", "3", "4", "5"])
        ax.set_ylim(0.9, 5.6)
        ax.set_xticks(range(len(at)), labels, fontsize=8)
        ax.grid(color=GRID)
        ax.set_title(f"{BACKBONES[backbone]}, {dtype}")
        ax.set_ylabel("time / bare backbone")
        for (batch, length, tasks), point in at.items():
            cells = [_cell(point.get(method)) for method in SHOWN]
            rows.append(f"| {BACKBONES[backbone]} | {dtype} | {batch} x {length} | {tasks} | {' | '.join(cells)} |")
    axes.flat[0].legend(fontsize=8, loc="upper right")
    figure.suptitle("Forward of a batch that mixes tasks (median of interleaved rounds, 2 CPU cores)")
    figure.savefig(IMAGES / "bench-forward.png", dpi=110)
    plt.close(figure)
    head = f"| backbone | format | texts x tokens | tasks | {' | '.join(SHOWN)} |"
    return "\n".join([head, f"|---|---|---|---:|{'---:|' * len(SHOWN)}", *rows])


def _cell(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return ""
    low, high = figures["ratio_quartiles"]
    return f"{figures['ratio']:.2f} ({low:.2f}-{high:.2f})"


def percentile(times: list[float], share: int) -> float:
    """Return a percentile."""
    return statistics.quantiles(times, n=100, method="inclusive")[share - 1]


def draw_many() -> str:
    """Draw what a batch takes with more and more tasks loaded; return the table."""
    newest = {line["mix"]: line for line in lines("many_tasks")}
    if not newest:
        return ""
    figure, axes = plt.subplots(1, len(newest), figsize=(11, 4.5), sharey=True, layout="constrained", squeeze=False)
    rows = [
        "| mix | tasks loaded | p50 | p95 | p99 | texts/s | factors and heads |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for ax, (mix, line) in zip(axes.flat, newest.items(), strict=True):
        samples = line["samples_ms"]
        tasks = sorted(int(key) for key in samples if key.isdigit())
        for share, colour, marker in ((50, COLOURS[0], "o"), (95, COLOURS[1], "s"), (99, COLOURS[2], "^")):
            ys = [percentile(samples[str(number)], share) for number in tasks]
            ax.plot(tasks, ys, color=colour, marker=marker, label=f"p{share}, AoT in a TaskBank")
        ax.axhline(percentile(samples["backbone"], 50), color=INK, linewidth=1, label="p50, bare backbone")
        peer = next(key for key in samples if key.startswith("LoRA"))
        ax.plot(
            [1024], [percentile(samples[peer], 50)], color=COLOURS[3], marker="P", linestyle="", label=f"p50, {peer}"
        )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(tasks, [f"{number:,}" for number in tasks])
        ax.set_xlabel("tasks loaded")
        ax.set_ylabel("ms per batch of 16 sentences")
        ax.set_title(f"tasks drawn {'by Zipf' if mix == 'zipf' else 'uniformly'}")
        ax.grid(color=GRID)
        for key in ("backbone", *map(str, tasks), peer):
            p50, p95, p99 = (percentile(samples[key], share) for share in (50, 95, 99))
            size = line["factor_bytes"].get(key)
            kept = "" if size is None else f"{size / 1e6:,.0f} MB"
            rate = line["batch"] * 1000 / p50
            rows.append(f"| {mix} | {key} | {p50:.1f} ms | {p95:.1f} ms | {p99:.1f} ms | {rate:.0f} | {kept} |")
    axes.flat[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("1 to 1,024 tasks, MiniLM-L6, 256 MiB for rows that are kept, 2 CPU cores")
    figure.savefig(IMAGES / "bench-many-tasks.png", dpi=110)
    plt.close(figure)
    return "\n".join(rows)


def draw_new() -> str:
    """Draw the time to the first answer of a new task; return the table."""
    found = lines("new_task")
    if not found:
        return ""
    samples = found[-1]["samples_ms"]
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    names = sorted(samples, key=lambda name: (name.partition(",")[0], int(name.split()[1])))
    colours = [COLOURS[0] if name.startswith("AoT") else COLOURS[1] for name in names]
    ax.bar(range(len(names)), [statistics.median(samples[name]) for name in names], color=colours)
    ax.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    ax.set_ylabel("ms to the first right answer (median)")
    ax.set_title("A saved task is added and answers one sentence, MiniLM-L6")
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    figure.savefig(IMAGES / "bench-new-task.png", dpi=110)
    plt.close(figure)
    rows = ["| | median | quartiles |", "|---|---:|---:|"]
    for name in names:
        low, middle, high = statistics.quantiles(samples[name], n=4)
        rows.append(f"| {name} | {middle:.1f} ms | {low:.1f}-{high:.1f} |")
    return "\n".join(rows)


def training() -> str:
    """Return the table of a training step's time and memory."""
    newest: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    for line in lines("training_step"):
        newest[(line["backbone"], line["precision"], *line["batch"])] = line["methods"]
    head = "| backbone | precision | texts x tokens | method | time / LoRA q,v | memory / LoRA q,v |"
    rows = [head, f"|{'---|' * 4}---:|---:|"]
    for (backbone, precision, batch, length), methods in newest.items():
        for method, found in methods.items():
            time, memory = found["time_to_lora"], found["memory_to_lora"]
            rows.append(f"| {backbone} | {precision} | {batch} x {length} | {method} | {time:.2f} | {memory:.2f} |")
    return "\n".join(rows) if newest else ""


def cold() -> str:
    """Return the table of cold reads."""
    found = lines("cold_table")
    rows = ["| file | read of 64 cold tokens, median | quartiles |", "|---|---:|---:|"]
    for name, times in (found[-1]["milliseconds"] if found else {}).items():
        low, middle, high = statistics.quantiles(times, n=4)
        rows.append(f"| {name} | {middle:.1f} ms | {low:.1f}-{high:.1f} |")
    return "\n".join(rows) if found else ""


def main() -> None:
    """Draw everything there are results for."""
    parts = {"forward": draw_forward(), "many": draw_many(), "new": draw_new(), "training": training(), "cold": cold()}
    parts["serving"] = draw_serving(lines("serving_load"), IMAGES / "bench-serving.png")
    text = PAGE.read_text(encoding="utf-8")
    for name, table in parts.items():
        head, marker, rest = text.partition(f"<!-- {name} -->")
        if marker and table:
            text = f"{head}{marker}\n\n{table}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
