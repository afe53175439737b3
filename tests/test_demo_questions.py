"""Questions and answers as files, and sentences from the command line."""

import json
from dataclasses import asdict

import pytest

from peft_aot.demo.data import TASKS
from peft_aot.demo.questions import (
    SENTENCES,
    Answer,
    Answers,
    Question,
    Questions,
    parse_question,
    read_answers,
    read_questions,
    write_json,
)


def test_every_task_is_asked_in_a_mixed_order():
    asked = [question.task for question in SENTENCES]
    assert set(asked) == {task.name for task in TASKS}
    assert asked != sorted(asked)


def test_questions_round_trip(tmp_path):
    questions = Questions("model", {"moods": "dir"}, (Question("moods", 'caf\xe9 "quoted"\u2028'),))
    write_json(questions, tmp_path / "q.json")
    assert read_questions(tmp_path / "q.json") == questions


def test_answers_round_trip():
    answers = Answers(1, 2.5, 3, 4.5, 1e-7, (Answer("moods", "text", "glad", 0.75),))
    assert read_answers(json.dumps(asdict(answers))) == answers


def test_sentence_from_the_command_line():
    assert parse_question("moods:  to be: or not ", ("moods",)) == Question("moods", "to be: or not")


@pytest.mark.parametrize("text", ["no colon", "moods:", "moods:   ", "other: text", ": text", ""])
def test_refuses_what_is_no_question(text):
    with pytest.raises(ValueError, match=r"expected 'TASK: SENTENCE' with TASK among \['moods'\], got .*; for example"):
        parse_question(text, ("moods",))
