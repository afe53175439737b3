"""The sentences that the demo asks, and the two JSON files that carry questions and answers between processes.

Knows nothing of models, so that the asking process need not load any.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """A sentence and the task that shall judge it."""

    task: str
    text: str


@dataclass(frozen=True)
class Questions:
    """What the answering process is given.

    Attributes:
        model: Hub id or local path of the backbone.
        adapters: Directory of each task's adapter.
        questions: Sentences, the tasks in any order.
    """

    model: str
    adapters: Mapping[str, str]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Answer:
    """What was found for one question.

    Attributes:
        task: The task that judged.
        text: The sentence.
        label: Name of the most probable label.
        probability: Its probability.
    """

    task: str
    text: str
    label: str
    probability: float


@dataclass(frozen=True)
class Answers:
    """What the answering process reports.

    Attributes:
        pid: Its process id.
        load_seconds: Time to load the backbone once and every adapter.
        table_bytes: Size of the fused tables it mapped, all adapters together.
        batch_milliseconds: Time of the one mixed batch.
        alone_difference: max |probability in the mixed batch - probability of the same text run alone|.
        answers: One per question, in order.
    """

    pid: int
    load_seconds: float
    table_bytes: int
    batch_milliseconds: float
    alone_difference: float
    answers: tuple[Answer, ...]


SENTENCES = (
    Question("snips", "will it rain in lisbon tomorrow morning"),
    Question("reviews", "a warm, funny and quietly moving film that never outstays its welcome"),
    Question("spam", "WINNER! You have been selected for a 1000 pound prize. Call 09061701461 now to claim."),
    Question("snips", "book a table for four at an italian place near the station tonight"),
    Question("spam", "ok, see you at seven then, i will bring the kids"),
    Question("reviews", "two hours of noise in search of a plot, and it never finds one"),
    Question("snips", "play the newest album by miles davis"),
    Question("reviews", "the jokes are tired and the ending is worse"),
    Question("spam", "Free entry in our weekly draw! Text WIN to 80086. T&Cs apply, 150p per msg"),
)


def parse_question(text: str, tasks: tuple[str, ...]) -> Question:
    """Read "task: sentence".

    Raises:
        ValueError: No colon, no sentence, or an unknown task.
    """
    task, colon, sentence = (part.strip() for part in text.partition(":"))
    if not colon or not sentence or task not in tasks:
        raise ValueError(
            f"expected 'TASK: SENTENCE' with TASK among {list(tasks)}, got {text!r}; "
            f"for example '{tasks[0]}: will it rain tomorrow'"
        )
    return Question(task, sentence)


def write_json(value: Questions | Answers, path: Path) -> None:
    """Write questions or answers as readable JSON."""
    path.write_text(json.dumps(asdict(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_questions(path: Path) -> Questions:
    """Read a file of questions."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Questions(raw["model"], raw["adapters"], tuple(Question(**question) for question in raw["questions"]))


def read_answers(text: str) -> Answers:
    """Read what the answering process printed."""
    raw = json.loads(text)
    return Answers(**{**raw, "answers": tuple(Answer(**answer) for answer in raw["answers"])})
