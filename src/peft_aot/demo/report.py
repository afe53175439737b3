"""The comparison as Markdown: a table, and under which conditions its numbers arose.

`table_cells` is what any table shows, so that terminal and file never differ.
"""

from __future__ import annotations

from peft_aot.demo.results import Comparison, Row
from peft_aot.sizes import format_bytes

COLUMNS = ("method", "accuracy", "trainable", "stored", "training", "time / backbone")


def table_cells(row: Row) -> tuple[str, ...]:
    """Return what a table shows of a method, in the order of `COLUMNS`."""
    return (
        row.title,
        f"{row.score:.1%}",
        f"{row.trainable_parameters:,}",
        format_bytes(row.stored_bytes),
        f"{row.train_seconds:.0f} s",
        f"{row.ratio:.2f} ({row.ratio_low:.2f}-{row.ratio_high:.2f})",
    )


def conditions(comparison: Comparison) -> tuple[str, ...]:
    """Say in sentences how the numbers were made and what they do not show."""
    return (
        f"Task: {comparison.task}, backbone {comparison.model}.",
        f"Each method was trained once, without a search for learning rates and with one seed, on "
        f"{comparison.train_examples:,} examples, {comparison.epochs:g} times over; accuracy is on "
        f"{comparison.test_examples:,} test examples that "
        f"no training saw. Differences of a percent or so are within chance: this is a demonstration, not a benchmark.",
        f"Trainable and stored are per task, head included. Inference: {comparison.batch_size} test sentences padded "
        f"to {comparison.batch_tokens} tokens, float32; the "
        f"bare backbone needs {comparison.backbone_milliseconds:.0f} ms. The ratio is the median over "
        f"{comparison.rounds} interleaved rounds of the time relative to the backbone in the same round "
        f"(in brackets its quartiles).",
        f"AoT fused reads its rows from the memory-mapped table; its logits differ from those of the factors by at "
        f"most {comparison.fused_difference:.1e}. The table is a cache: it can be made again from the factors.",
        "LoRA could be merged into the backbone, and would then cost nothing, but serve only one task at a time; it is "
        "timed unmerged, as mixing tasks needs it. BitFit stands in the backbone's own biases.",
        f"Machine: {comparison.machine}.",
    )


def markdown(comparison: Comparison, picture: str | None = None) -> str:
    """Render a comparison as a Markdown page.

    Args:
        comparison: The comparison.
        picture: File name of its picture, to be shown below the table; None shows none.
    """
    lines = [
        "# AoT P-Tuning beside other methods",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
        *("| " + " | ".join(table_cells(row)) + " |" for row in comparison.rows),
        "",
    ]
    if picture is not None:
        lines += [f"![Accuracy, inference time and size of each method]({picture})", ""]
    lines += [f"- {sentence}" for sentence in conditions(comparison)]
    return "\n".join(lines) + "\n"
