"""The page: whole, escaped, readable without a script, and, where there is a browser, sortable and silent."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compare.summaries import NASTY, done_cell, finished, method_row, nasty, summary, unfinished, unstarted
from peft_aot.compare.report.figures import Picture, draw_pictures
from peft_aot.compare.report.page import SECTIONS, render_page
from peft_aot.compare.report.table import build_table
from peft_aot.compare.summary import Summary, TaskColumn

VOID = {"meta", "link", "br", "input", "img", "hr"}
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)  # fmt: skip


class Document(HTMLParser):
    """What a page consists of; closing tags that close nothing are errors.

    Args:
        text: The page.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        """All that is read, on one line."""
        return " ".join(" ".join(self.words).split())


def rows(document: Document) -> list[list[str]]:
    """The first table's cells."""
    return [[" ".join(cell.split()) for cell in row] for row in document.tables[0]]


@pytest.fixture(scope="module")
def pictures() -> tuple[Picture, ...]:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    return draw_pictures(finished(3, 4))


@pytest.fixture(scope="module")
def page(pictures: tuple[Picture, ...]) -> str:
    return render_page(unfinished(), pictures)


@pytest.fixture
def document(page: str) -> Document:
    return Document(page)


def test_sections(document: Document) -> None:
    assert [attributes["id"] for tag, attributes in document.tags if tag == "section"] == [key for key, _ in SECTIONS]
    for _, heading in SECTIONS:
        assert heading in document.text


def test_what_was_compared(document: Document) -> None:
    text = document.text
    for words in (
        "Methods compared on roberta-base",
        "Runs done: 1,344 of 1,920",
        "search 8 trials per method and task, the best settings with 3 seeds",
        "batch size 32",
        "max length not set",
        "machine AMD EPYC 7763, 2 threads",
        "versions peft_aot 0.1.0, peft 0.21.2",
    ):
        assert words in text
    ((_, progress),) = [found for found in document.tags if found[0] == "progress"]
    assert (progress["value"], progress["max"]) == ("1344", "1920")


def test_a_path_of_the_backbone_is_kept_to_oneself() -> None:
    protocol = {"model": "/home/somebody/roberta-base", "epochs": 5.0}
    assert "somebody" not in render_page(dataclasses.replace(unstarted(), protocol=protocol), ())


def test_the_table_shows_every_entry(document: Document) -> None:
    table = build_table(unfinished())
    found = rows(document)
    assert found[0] == ["method", *(column.heading for column in table.columns)]
    assert [row[0] for row in found if len(row) == 1] == [block.title for block in table.blocks]
    by_method = {row[0]: row[1:] for row in found[1:] if len(row) > 1}
    for line in table.lines:
        shown = next(cells for label, cells in by_method.items() if label.startswith(line.label + line.method.name))
        for entry, cell in zip(line.entries, shown, strict=True):
            before = f"{entry.remark} " if entry.remark else ""
            after = f" ({entry.spread})".replace("-", "\N{EN DASH}") if entry.spread else ""
            assert cell == f"{before}{entry.text}{after}"


def test_the_best_are_bold(page: str) -> None:
    table = build_table(unfinished())
    best = [entry.text for line in table.lines for entry in line.entries if entry.best]
    assert re.findall(r'<td class="score best"[^>]*><strong>([^<]*)</strong>', page) == best


def test_labels_notes_and_legend_are_there(document: Document) -> None:
    table = build_table(unfinished())
    for sentence in (*table.notes, *table.legend):
        assert " ".join(sentence.split()) in document.text
    assert document.text.count("boolq (partial)") >= 4  # heading, summary of its details, caption, note


def test_every_task_has_its_searches(document: Document) -> None:
    comparison = unfinished()
    assert len(document.tables) == 2 + len(comparison.tasks)
    first = comparison.methods[0].cells[0]
    row = document.tables[2][1]
    assert row[0] == comparison.methods[0].title
    assert row[2] == ", ".join(f"{name} {value}" for name, value in (first.best_settings or {}).items())
    assert row[3].split() == [f"{100 * score:.1f}" for score in first.trials if score is not None]
    assert row[4] == ", ".join(f"{n}: {100 * first.evp[n - 1]:.1f}" for n in (1, 2, 4, 8))
    qnli = {row[0]: row for row in document.tables[8]}
    assert qnli["PaFi"][3].split()[0] == "failed"
    mnli = {row[0]: row for row in document.tables[7]}
    assert mnli["PaFi"][1:3] == ["failed", "loss is not finite"]
    assert "Official rows are missing in train and validation" in document.text


def test_the_settings_of_every_trial_are_there() -> None:
    row = method_row("aot", [done_cell("rte", "aot", [0.7, 0.8], [0.8])], points=({"rank": 4}, {"rank": 8}))
    document = Document(render_page(summary([TaskColumn("rte", ("accuracy",), (), 0)], [row]), ()))
    assert document.tables[1] == [["method", "settings"], ["aot", "rank 4; rank 8"]]


def test_the_first_of_equal_trials_is_the_best() -> None:
    row = method_row("aot", [done_cell("rte", "aot", [0.7, 0.8, 0.8], [0.8])])
    page = render_page(summary([TaskColumn("rte", ("accuracy",), (), 0)], [row]), ())
    assert "70.0 <strong>80.0</strong> 80.0" in page


def test_it_says_how_to_read_the_curves(document: Document) -> None:
    assert "Dodge et al. 2019" in document.text
    assert "assumes trials drawn at random with replacement" in document.text


def test_the_page_asks_for_nothing_outside(page: str, document: Document) -> None:
    for tag, attributes in document.tags:
        for name in ("src", "srcset", "data", "action", "poster", "background", "xlink:href"):
            assert name not in attributes, (tag, name)
        if "href" in attributes:
            assert attributes["href"].startswith("#") or tag == "a" or attributes["href"] == "data:,"
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", page)
    (policy,) = [a["content"] for _, a in document.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_it_is_accessible(page: str, document: Document) -> None:
    tags = document.tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(name, ids[0]) in ids
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    assert sum(tag == "caption" for tag, _ in tags) == sum(tag == "table" for tag, _ in tags)
    figures = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(figures) == 3
    assert all(attributes["role"] == "img" for attributes in figures)
    assert '<html lang="en">' in page
    assert "prefers-color-scheme: dark" in page


def test_nasty_names_break_nothing() -> None:
    document = Document(render_page(nasty(), ()))
    assert sum(tag == "script" for tag, _ in document.tags) == 1
    assert not any(tag == "b" for tag, _ in document.tags)
    for name in NASTY:
        assert document.text.count(" ".join(name.split())) >= 4
    found = rows(document)
    assert {len(row) for row in found} == {len(build_table(nasty()).columns) + 1}


def test_nasty_names_in_pictures_break_nothing() -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    comparison = dataclasses.replace(nasty(), tasks=nasty().tasks[:4], methods=tuple(
        dataclasses.replace(row, cells=row.cells[:4]) for row in nasty().methods[:4]
    ))  # fmt: skip
    document = Document(render_page(comparison, draw_pictures(comparison)))
    assert sum(tag == "script" for tag, _ in document.tags) == 1


@pytest.mark.parametrize(
    "comparison", [unstarted(), finished(1, 1), summary([], [])], ids=["unstarted", "one", "empty"]
)
def test_small_comparisons_have_a_page(comparison: Summary) -> None:
    document = Document(render_page(comparison, ()))
    assert len(document.tables) == 2 + len(comparison.tasks)
    assert "There is nothing to note." in document.text or comparison.notes


def test_without_pictures_it_says_how_to_get_them() -> None:
    assert 'pip install "peft_aot[plots]"' in Document(render_page(unstarted(), ())).text


def browse(page: Path, fragment: str = "") -> tuple[str, list[str]]:
    """Open a page in a fresh browser; return what it has become, and what stands in its console."""
    profile = page.parent / f"profile{fragment.replace('#', '-')}"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", f"{page.as_uri()}{fragment}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout, [line for line in result.stderr.splitlines() if "CONSOLE" in line]


def order(dom: str, group: int = 0) -> list[str]:
    """Names of the methods of a block, as they stand in the table."""
    table = dom[dom.index('<table id="scores"') : dom.index("</table>")]
    body = re.findall(r"<tbody>(.*?)</tbody>", table, re.DOTALL)[group]
    return re.findall(r'<th scope="row">[^<]*<small>([\w-]+)', body)


def expected(comparison: Summary, groups: tuple[str, ...], sign: int) -> list[str]:
    """Names by macro average, those without one last."""
    shown = [row for row in comparison.methods if row.group in groups]
    scored = sorted((row for row in shown if row.macro is not None), key=lambda row: sign * (row.macro or 0))
    return [row.name for row in (*scored, *(row for row in shown if row.macro is None))]


@pytest.mark.skipif(BROWSER is None, reason="no browser (chromium, chromium-browser, google-chrome) is installed")
def test_a_link_to_the_sorted_table(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    dom, console = browse(path, "#sort=macro")
    assert console == []
    assert order(dom) == expected(unfinished(), ("ours", "peft"), -1)
    assert order(dom, 1) == expected(unfinished(), ("reference",), -1)
    assert order(dom, 2) == expected(unfinished(), ("control",), -1)
    assert re.findall(r'<th [^>]*data-key="(\w+)"[^>]*aria-sort="descending"', dom) == ["macro"]


@pytest.mark.skipif(BROWSER is None, reason="no browser (chromium, chromium-browser, google-chrome) is installed")
def test_clicks_on_a_heading_sort_the_table_there_and_back(page: str, tmp_path: Path) -> None:
    clicks = """<script>
    const press = () => document.querySelector('th[data-key="macro"] button').click();
    press();
    press();
    document.body.dataset.hash = location.hash;
    document.body.dataset.requests = performance.getEntriesByType("resource").length;
    document.querySelector('th[data-key="macro"] button').focus();
    document.body.dataset.focused = document.activeElement.textContent;
    console.log("probe");
    </script></body>"""
    path = tmp_path / "clicked.html"
    path.write_text(page.replace("</body>", clicks), encoding="utf-8")
    dom, console = browse(path)
    assert len(console) == 1, console
    assert "probe" in console[0]  # so that the other test's empty console means something
    assert order(dom) == expected(unfinished(), ("ours", "peft"), 1)
    assert re.findall(r'<th [^>]*data-key="(\w+)"[^>]*aria-sort="ascending"', dom) == ["macro"]
    body = re.search(r"<body[^>]*>", dom)
    assert body is not None
    assert 'data-hash="#sort=-macro"' in body[0]
    assert 'data-requests="0"' in body[0]
    assert 'data-focused="macro"' in body[0]
