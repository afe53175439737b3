"""The pictures: what they show, and that nothing in them covers anything else."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from compare.summaries import NASTY, TASKS, done_cell, finished, method_row, nasty, summary, unfinished, unstarted
from peft_aot.compare.report.figures import Picture, draw_pictures, inline_svg, plain_style
from peft_aot.compare.report.stretched import closeness, round_ticks
from peft_aot.compare.report.styles import COLOURS, GRID, INK, PAPER, QUIET, method_styles
from peft_aot.compare.summary import Summary, TaskColumn

pytest.importorskip("matplotlib", reason="pictures need matplotlib")

from matplotlib.image import imread  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from peft_aot.compare.report.curves import draw_curves  # noqa: E402
from peft_aot.compare.report.scatter import draw_bytes, draw_ratio  # noqa: E402

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def pictures() -> tuple[Picture, ...]:
    return draw_pictures(unfinished(8, 6))


def one_score(score: float = 0.5) -> Summary:
    task = TaskColumn("rte", ("accuracy",), (), 10)
    row = method_row(
        "aot",
        [done_cell("rte", "aot", [score], [score])],
        macro=score,
        macro_tasks=("rte",),
        evp=(score,),
        stored_bytes=100.0,
        ratio=1.0,
        ratio_low=1.0,
        ratio_high=1.0,
    )
    return summary([task], [row])


def curves(axes: Any) -> list[list[float]]:
    return sorted([round(float(y), 6) for y in line.get_ydata()] for line in axes.lines)


def labels(figure: Any) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def extents(texts: list[Any]) -> list[Any]:
    return [text.get_window_extent() for text in texts]


def test_a_panel_per_task_and_one_for_all() -> None:
    comparison = unfinished()
    figure = draw_curves(comparison)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    shared_title = "macro average of 11 tasks (partial data)"
    assert titles == [shared_title, *(task.label for task in comparison.tasks)]
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    shared = [row for row in comparison.methods if row.evp]
    assert curves(panels[shared_title]) == sorted([round(100 * s, 6) for s in row.evp] for row in shared)
    cola = [row.cells[0].evp for row in comparison.methods]
    assert curves(panels["cola"]) == sorted([round(100 * score, 6) for score in curve] for curve in cola)
    assert list(panels["cola"].lines[0].get_xdata()) == list(range(1, 9))
    assert [text.get_text() for text in panels["super_glue/rte (partial)"].texts] == ["nothing has run yet"]


def test_the_legend_is_there_once_and_in_the_order_of_the_curves() -> None:
    comparison = finished()
    legends = [axes.get_legend() for axes in draw_curves(comparison).axes if axes.get_legend()]
    assert len(legends) == 1
    texts = [text.get_text() for text in legends[0].get_texts()]
    assert len(texts) == 16
    ends = [float(text.split()[0]) for text in texts]
    assert ends == sorted(ends, reverse=True)
    assert {text.split("  ")[1] for text in texts} == {row.title for row in comparison.methods}


def test_nothing_is_cut_off_or_covered_in_the_curves() -> None:
    figure = draw_curves(unfinished())
    figure.draw_without_rendering()
    page = figure.bbox
    panels = [axes for axes in figure.axes if axes.axison]
    boxes = [axes.get_tightbbox() for axes in panels]
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1))
    for axes in panels:
        ticks = [label.get_window_extent() for label in axes.get_yticklabels()]
        for lower, upper in itertools.pairwise(sorted(ticks, key=lambda box: box.y0)):
            assert upper.y0 >= lower.y1 - 1


@pytest.mark.parametrize("draw", [draw_bytes, draw_ratio])
@pytest.mark.parametrize("comparison", [finished(), unfinished(), finished(2, 16)], ids=["12", "unfinished", "2"])
def test_labels_of_points_cover_nothing(draw: Any, comparison: Summary) -> None:
    figure = draw(comparison)
    figure.draw_without_rendering()
    found = labels(figure)
    shown = [row for row in comparison.methods if row.macro is not None and row.ratio is not None or draw is draw_bytes]
    assert {text.get_text() for text in found} <= {row.title for row in shown}
    assert len(found) == len([row for row in shown if row.macro is not None])
    boxes, axes = extents(found), figure.axes[0]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    frame = axes.get_window_extent()
    points = [axes.transData.transform(text.xy) for text in found]
    for box in boxes:
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
        assert not any(box.contains(*point) for point in points)


@pytest.mark.parametrize("draw", [draw_curves, draw_bytes, draw_ratio])
def test_every_picture_says_that_data_is_partial(draw: Any) -> None:
    whole = one_score()
    partial = dataclasses.replace(whole, tasks=(dataclasses.replace(whole.tasks[0], partial=("train",)),))
    for comparison, words in ((whole, ""), (partial, " (partial data)")):
        axes = draw(comparison).axes[0]
        text = f"{axes.get_title(loc='left')} {axes.get_ylabel()}"
        assert f"of 1 task{words}" in text
        assert ("partial" in text) == bool(words)


def test_what_a_picture_lacks_is_named() -> None:
    text = draw_ratio(unfinished()).axes[0].get_xlabel()
    assert "not shown" in text
    assert "Houlsby adapters" in text
    assert "not shown" not in draw_ratio(finished(1, 4)).axes[0].get_xlabel()


def test_ratios_have_quartiles_and_a_line_at_1() -> None:
    comparison = finished(1, 3)
    axes = draw_ratio(comparison).axes[0]
    segments = [tuple(map(float, line.get_xdata())) for line in axes.lines]
    for row in comparison.methods:
        assert (row.ratio_low, row.ratio_high) in segments
        assert (row.ratio,) in segments
    assert (1.0, 1.0) in segments


def test_bytes_are_logarithmic_and_have_units() -> None:
    axes = draw_bytes(finished()).axes[0]
    assert axes.get_xscale() == "log"
    assert {"10 kB", "1 MB", "100 MB"} <= {label.get_text() for label in axes.get_xticklabels()}


@pytest.mark.parametrize("comparison", [one_score(), one_score(-0.2), one_score(1.0)])
@pytest.mark.parametrize("draw", [draw_curves, draw_bytes, draw_ratio])
def test_one_score_is_drawn(draw: Any, comparison: Summary) -> None:
    figure = draw(comparison)
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert low < 100 * (comparison.methods[0].macro or 0) < high
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize("comparison", [unstarted(), summary([], [])], ids=["unstarted", "empty"])
@pytest.mark.parametrize("draw", [draw_curves, draw_bytes, draw_ratio])
def test_pictures_of_nothing_say_so(draw: Any, comparison: Summary) -> None:
    figure = draw(comparison)
    figure.draw_without_rendering()
    assert re.search("no task has a score|nothing to show yet", figure.axes[0].texts[0].get_text())


def imread_size(picture: Picture) -> tuple[int, int]:
    import io

    height, width, _ = imread(io.BytesIO(picture.png)).shape
    return height, width


def test_pngs_are_wide_enough_and_svgs_well_formed(pictures: tuple[Picture, ...]) -> None:
    assert [picture.name for picture in pictures] == ["evp", "bytes", "ratio"]
    for picture in pictures:
        assert imread_size(picture)[1] == 1800
        assert ElementTree.fromstring(picture.svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_summary_gives_the_same_bytes_whatever_the_users_own_style() -> None:
    import matplotlib

    before = draw_pictures(one_score())
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert draw_pictures(one_score()) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_names_are_shown_as_they_are() -> None:
    comparison = nasty()
    with plain_style("evp"):
        figures = [draw(comparison) for draw in (draw_curves, draw_bytes, draw_ratio)]
        for figure in figures:
            assert not any(text.get_parse_math() for text in figure.findobj(Text))  # `$` is no formula
            figure.draw_without_rendering()
    titles = {axes.get_title(loc="left").replace("\n", " ") for axes in figures[0].axes}
    assert {" ".join(f"{name} (partial)".split()) for name in NASTY} <= titles
    legend = next(axes.get_legend() for axes in figures[0].axes if axes.get_legend())
    assert {text.get_text().split("  ", 1)[1] for text in legend.get_texts()} == set(NASTY)


def test_inline_svgs_are_named_and_keep_apart(pictures: tuple[Picture, ...]) -> None:
    inline = [inline_svg(picture) for picture in pictures]
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in inline]
    for one, other in itertools.combinations(ids, 2):
        assert not one & other
    for svg, own, picture in zip(inline, ids, pictures, strict=True):
        assert set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg)) <= own
        assert svg.startswith('<svg viewBox="0 0 ')
        assert f'role="img" aria-labelledby="{picture.name}-title"' in svg
        assert "http" not in svg
        assert "<!--" not in svg


def test_pictures_have_no_colours_but_the_known_ones(pictures: tuple[Picture, ...]) -> None:
    for picture in pictures:
        assert set(re.findall(r"#[0-9a-f]{6}\b", picture.svg)) <= {*COLOURS, INK, QUIET, GRID, PAPER}


def test_42_methods_look_different() -> None:
    for group in ("ours", "peft"):
        styles = method_styles([method_row(str(number), [], group) for number in range(42)])
        assert len(set(styles.values())) == 42
    rows = finished().methods
    assert len(set(method_styles(rows).values())) == len(rows) == 16
    assert {style.line for style in method_styles(rows).values()} == {"-", "--", "-.", ":"}


def test_a_methods_look_depends_on_its_own_group_only() -> None:
    rows = finished().methods
    without = [row for row in rows if row.group != "control"]
    assert {name: style for name, style in method_styles(rows).items() if not name.startswith("aot-")} == {
        name: style for name, style in method_styles(without).items() if not name.startswith("aot-")
    }


def test_ticks_are_round_the_rounder_the_farther() -> None:
    assert round_ticks(0.99, 2.1, 1.0, 0.03, 0.08) == [1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0]
    assert round_ticks(55.0, 83.2, 82.8, 1.4, 0.1) == [60.0, 70.0, 75.0, 78.0, 80.0, 82.0, 83.0]


def test_an_axis_is_stretched_by_how_close_the_better_half_is() -> None:
    assert closeness([60.0, 80.0, 84.0]) == 2.0
    assert closeness([80.0]) == 0.5


def test_every_task_has_a_place() -> None:
    many = [dataclasses.replace(task, name=f"{task.name} {number}") for number in range(2) for task in finished().tasks]
    rows = [dataclasses.replace(row, cells=row.cells * 2) for row in finished().methods[:2]]
    figure = draw_curves(summary(many, rows))
    assert len([axes for axes in figure.axes if axes.axison]) == 2 * len(TASKS) + 1
