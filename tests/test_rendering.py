"""Rows of every unusual data set as a model reads them."""

from __future__ import annotations

from peft_aot.rendering import Columns, render_copa, render_multirc, render_record, render_wic, render_wsc


def test_columns_render_one_text_or_a_pair() -> None:
    row = {"a": "first", "b": "second", "y": 1}
    (single,) = Columns("a", label="y")(row)
    (pair,) = Columns("a", "b", "y")(row)
    assert single.sequences == (("first", None),)
    assert pair.sequences == (("first", "second"),)
    assert single.label == pair.label == 1


def test_wic_marks_the_word_in_both_sentences() -> None:
    row = {
        "word": "place",
        "sentence1": "come to my place later",
        "sentence2": "no place here",
        "start1": 11,
        "end1": 16,
        "start2": 3,
        "end2": 8,
        "label": 0,
    }
    (item,) = render_wic(row)
    assert item.sequences == (("place: come to my * place * later", "no * place * here"),)


def test_wsc_marks_both_spans_whichever_comes_first() -> None:
    words = "Mark told Pete many lies . He should rest ."
    forward = {
        "text": words,
        "span1_index": 0,
        "span1_text": "Mark",
        "span2_index": 6,
        "span2_text": "He",
        "label": 1,
    }
    backward = {**forward, "span1_index": 7, "span1_text": "should rest", "span2_index": 2, "span2_text": "Pete"}
    assert render_wsc(forward)[0].sequences[0][0] == "* Mark * told Pete many lies . # He # should rest ."
    assert render_wsc(backward)[0].sequences[0][0] == "Mark told # Pete # many lies . He * should rest * ."


def test_copa_asks_about_cause_or_effect_once_per_choice() -> None:
    row = {"premise": "It rained.", "choice1": "Wet.", "choice2": "Dry.", "question": "effect", "label": 0}
    (item,) = render_copa(row)
    assert item.sequences == (
        ("It rained. What happened as a result?", "Wet."),
        ("It rained. What happened as a result?", "Dry."),
    )
    assert render_copa({**row, "question": "cause"})[0].sequences[0][0] == "It rained. What was the cause?"


def test_multirc_groups_the_answers_to_one_question() -> None:
    row = {"paragraph": "P", "question": "Q?", "label": 1, "idx": {"paragraph": 3, "question": 4, "answer": 0}}
    first, second = (render_multirc({**row, "answer": answer})[0] for answer in ("yes", "no"))
    other = render_multirc({**row, "answer": "yes", "idx": {"paragraph": 3, "question": 5, "answer": 0}})[0]
    assert first.sequences == (("P", "Q? yes"),)
    assert first.group == second.group != other.group
    assert render_multirc({"paragraph": "P", "question": "Q?", "answer": "a"})[0].group == "P/Q?"


def test_record_makes_one_item_per_distinct_entity() -> None:
    row = {
        "passage": "Ann met Bob\n@highlight\nThey talked",
        "query": "@placeholder spoke first",
        "entities": ["Ann", "Bob", "Ann"],
        "answers": ["Bob", "Bob"],
        "idx": {"passage": 0, "query": 7},
    }
    items = render_record(row)
    assert [item.sequences[0] for item in items] == [
        ("Ann met Bob They talked", "Ann spoke first"),
        ("Ann met Bob They talked", "Bob spoke first"),
    ]
    assert [item.label for item in items] == [0, 1]
    assert [item.candidate for item in items] == ["Ann", "Bob"]
    assert {item.group for item in items} == {"0/7"}
    assert items[0].answers == ("Bob",)
    assert [item.label for item in render_record({**row, "answers": []})] == [None, None]
