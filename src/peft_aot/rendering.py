"""How a raw row of a data set becomes the text, text pair or choices that a model reads.

Pure functions from a row (column name -> value) to `Item`s. Knows nothing of files, tokenizers and models.
Span marks and prompts are our own choice where the data set leaves them open; they are spelled out per function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One thing that a model answers.

    Attributes:
        sequences: (text, second text or None), one for a classification, one per choice for multiple choice.
        label: The raw label (a class id or name, a number), or None if the row has none.
        group: Items of one group are scored together (the answers to one MultiRC question); "" stands alone.
        candidate: What "true" claims about the group (the ReCoRD entity).
        answers: The right candidates of the group.
    """

    sequences: tuple[tuple[str, str | None], ...]
    label: Any = None
    group: str = ""
    candidate: str = ""
    answers: tuple[str, ...] = ()


Render: TypeAlias = Callable[[Row], list[Item]]


@dataclass(frozen=True)
class Columns:
    """Renders one column as the text and, if named, another as the second text.

    Attributes:
        text: Column of the text.
        pair: Column of the second text, or None.
        label: Column of the label.
    """

    text: str
    pair: str | None = None
    label: str = "label"

    def __call__(self, row: Row) -> list[Item]:
        """Render one row."""
        pair = None if self.pair is None else str(row[self.pair])
        return [Item(((str(row[self.text]), pair),), row.get(self.label))]


def _mark(text: str, start: int, end: int, sign: str) -> str:
    return f"{text[:start]}{sign} {text[start:end]} {sign}{text[end:]}"


def render_wic(row: Row) -> list[Item]:
    """WiC: both sentences with the word between asterisks, and the word itself in front of the first."""
    first = _mark(row["sentence1"], row["start1"], row["end1"], "*")
    second = _mark(row["sentence2"], row["start2"], row["end2"], "*")
    return [Item(((f"{row['word']}: {first}", second),), row.get("label"))]


def render_wsc(row: Row) -> list[Item]:
    """WSC: the noun phrase between asterisks, the pronoun between hashes; spans are counted in words."""
    words = str(row["text"]).split()
    marks = (("*", row["span1_index"], row["span1_text"]), ("#", row["span2_index"], row["span2_text"]))
    # From right to left, so that an inserted mark never moves a span that is still to be marked.
    for sign, start, span in sorted(marks, key=lambda mark: -int(mark[1])):
        end = start + len(str(span).split())
        words[start:end] = [sign, *words[start:end], sign]
    return [Item(((" ".join(words), None),), row.get("label"))]


COPA_QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}


def render_copa(row: Row) -> list[Item]:
    """COPA: premise and question against each of the two choices."""
    prompt = f"{row['premise']} {COPA_QUESTIONS[row['question']]}"
    return [Item(((prompt, str(row["choice1"])), (prompt, str(row["choice2"]))), row.get("label"))]


def render_multirc(row: Row) -> list[Item]:
    """MultiRC: paragraph against question and one answer; the answers to one question form a group."""
    index = row.get("idx") or {}
    group = f"{index.get('paragraph', row['paragraph'])}/{index.get('question', row['question'])}"
    return [Item(((str(row["paragraph"]), f"{row['question']} {row['answer']}"),), row.get("label"), group)]


def render_record(row: Row) -> list[Item]:
    """ReCoRD: passage against the query with each entity in the placeholder's stead; one item per distinct entity."""
    passage = str(row["passage"]).replace("\n@highlight\n", " ")
    index = row.get("idx") or {}
    group = f"{index.get('passage', row['passage'])}/{index.get('query', row['query'])}"
    answers = tuple(dict.fromkeys(row.get("answers") or ()))
    return [
        Item(
            ((passage, str(row["query"]).replace("@placeholder", entity)),),
            (int(entity in answers) if answers else None),
            group,
            entity,
            answers,
        )
        for entity in dict.fromkeys(row["entities"])
    ]
