"""The comparison as data, Markdown and picture."""

from dataclasses import replace

import pytest

from peft_aot.demo.picture import OTHERS, OURS, draw
from peft_aot.demo.report import COLUMNS, conditions, markdown, table_cells
from peft_aot.demo.results import Comparison, Row, load_comparison, save_comparison
from peft_aot.sizes import format_bytes

matplotlib = pytest.importorskip("matplotlib")

LORA = Row("LoRA", False, 0.9771, 150_151, 600_000, 27.4, 30.0, 1.2049, 1.19, 1.25)
AOT = Row("AoT fused", True, 0.9742, 298_000, 142_000_000, 24.0, 25.0, 1.02, 0.99, 1.06)
COMPARISON = Comparison(
    task="Moods (2 labels)",
    model="tiny",
    machine="a machine, 2 cores",
    train_examples=2400,
    epochs=1,
    test_examples=699,
    batch_size=16,
    batch_tokens=22,
    rounds=40,
    backbone_milliseconds=24.6,
    fused_difference=1.2e-4,
    rows=(LORA, AOT),
)


def test_json_round_trip(tmp_path):
    save_comparison(COMPARISON, tmp_path / "c.json")
    assert load_comparison(tmp_path / "c.json") == COMPARISON


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (11_264, "11.3 kB"),
        (999_600, "1 MB"),
        (142e6, "142 MB"),
        (2e9, "2 GB"),
    ],
)
def test_bytes_in_words(number, text):
    assert format_bytes(number) == text


def test_cells_match_columns_and_numbers():
    cells = table_cells(LORA)
    assert len(cells) == len(COLUMNS)
    assert cells == ("LoRA", "97.7%", "150,151", "600 kB", "27 s", "1.20 (1.19-1.25)")


def test_markdown_is_a_table_with_its_conditions():
    page = markdown(COMPARISON, "c.png")
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "| AoT fused | 97.4% | 298,000 | 142 MB | 24 s | 1.02 (0.99-1.06) |" in table
    assert "](c.png)" in page
    for sentence in conditions(COMPARISON):
        assert sentence in page
    assert "2,400 examples" in page
    assert "699 test examples" in page


def test_markdown_without_a_picture_shows_none():
    assert "![" not in markdown(COMPARISON)


def pixels(path):
    from matplotlib.image import imread

    return (imread(path)[..., :3] * 255).round().astype(int)


def share(image, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(image - wanted).max(axis=-1) <= 2).mean()


def test_picture_is_a_png_with_both_colours_and_text(tmp_path):
    path = draw(COMPARISON, tmp_path / "c.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    image = pixels(path)
    height, width, _ = image.shape
    assert width >= 1600
    assert height >= 350
    assert share(image, OURS) > 0.01
    assert share(image, OTHERS) > 0.01
    assert 0.005 < (image.sum(axis=-1) < 150).mean() < 0.2  # dark: letters and axes
    assert share(image, "#FFFFFF") > 0.5


def test_longer_bars_for_larger_numbers(tmp_path):
    one = pixels(draw(COMPARISON, tmp_path / "1.png"))
    small = replace(AOT, stored_bytes=1_000_000)
    two = pixels(draw(replace(COMPARISON, rows=(LORA, small)), tmp_path / "2.png"))
    assert share(one, OURS) > share(two, OURS)


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_picture_of_extreme_scores(tmp_path, score):
    draw(replace(COMPARISON, rows=(replace(LORA, score=score), AOT)), tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
