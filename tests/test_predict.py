"""Predictions: what may be asked, what comes back, and refusals. Scores of evaluate beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from peft_aot import evaluate as evaluation
from peft_aot import predict as prediction
from peft_aot.evaluate import EvaluateOptions, evaluate
from peft_aot.features import Features
from peft_aot.loading import Trained, load_trained
from peft_aot.predict import predict
from peft_aot.task import LocalFiles
from peft_aot.task_card import save_card
from peft_aot.train import TrainOptions, train
from tiny_text import colour_rows, write_backbone, write_csv


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    backbone = write_backbone(folder / "bb")
    files = LocalFiles(write_csv(folder / "f.csv", colour_rows(64)), write_csv(folder / "g.csv", colour_rows(16)))
    options = TrainOptions(files, str(backbone), folder / "out", "full", epochs=8, learning_rate=1e-3, precision="fp32")
    assert train(options).score == 1.0
    return folder / "out"


@pytest.fixture(scope="module")
def trained(adapter: Path) -> Trained:
    return load_trained(adapter)


def as_task(trained: Trained, **changes: object) -> Trained:
    return dataclasses.replace(trained, card=dataclasses.replace(trained.card, own_files=None, **changes))  # type: ignore[arg-type]


def fake_logits(monkeypatch: pytest.MonkeyPatch, rows: list[list[float]]) -> None:
    def compute(_model: object, features: Features, *_rest: object) -> np.ndarray:
        assert len(features) == len(rows)
        return np.array(rows, dtype=np.float32)

    monkeypatch.setattr(prediction, "compute_logits", compute)


def test_answers_keep_the_order_whatever_the_batch_size(trained: Trained) -> None:
    questions = ["the dog is red", "a cat is blue", "a very very very green bird", "yellow horse"]
    answers = predict(trained, questions)
    assert [answer.label for answer in answers] == ["warm", "cold", "cold", "warm"]
    for one, many in zip(predict(trained, questions, batch_size=1), answers, strict=True):
        assert one.label == many.label
        assert one.probability == pytest.approx(many.probability, abs=1e-5)
        assert many.probability == max(many.probabilities.values())
    assert predict(trained, []) == []


def test_an_object_with_the_column_is_the_same_as_its_text(trained: Trained) -> None:
    assert predict(trained, [{"text": "red dog", "label": "cold", "other": 1}]) == predict(trained, ["red dog"])


def test_refusals(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"expected the keys text in input 2, got no 'text'; did you mean 'txt'\?"):
        predict(trained, ["red", {"txt": "red"}])
    with pytest.raises(ValueError, match="expected the keys text in input 5, got no 'text'; the object is empty"):
        predict(trained, [{}], first_number=5)
    with pytest.raises(ValueError, match="expected text in input 1, got nothing; write something or leave"):
        predict(trained, ["  "])
    pair = as_task(trained, task="rte", labels=("entailment", "not_entailment"))
    message = (
        r"expected an object with sentence1, sentence2 for the task 'rte', got plain text in input 1; "
        r'write {"sentence1": ..., "sentence2": ...}'
    )
    with pytest.raises(ValueError, match=message):
        predict(pair, ["red"])


def test_record_answers_with_the_likeliest_entity(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_logits(monkeypatch, [[0, 1], [0, 3], [0, 2], [5, 0]])
    record = as_task(trained, task="record", labels=("False", "True"))
    row = {"passage": "p", "query": "@placeholder spoke"}
    first, second = predict(record, [{**row, "entities": ["Ann", "Bob", "Cid"]}, {**row, "entities": ["Dan"]}])
    assert (first.label, second.label) == ("Bob", "Dan")
    assert list(first.probabilities) == ["Ann", "Bob", "Cid"]
    assert first.probability == pytest.approx(1 / (1 + np.exp(-3)))


def test_regression_answers_with_a_number(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_logits(monkeypatch, [[3.25]])
    stsb = as_task(trained, task="stsb", kind="regression", labels=())
    (answer,) = predict(stsb, [{"sentence1": "a", "sentence2": "b"}])
    assert answer == prediction.Prediction(None, None, {}, 3.25)


def test_evaluate_scores_other_files_and_samples(adapter: Path, tmp_path: Path) -> None:
    wrong = [(text, {"warm": "cold", "cold": "warm"}[label]) for text, label in colour_rows(12)]
    whole = evaluate(EvaluateOptions(adapter))
    assert (whole.score, whole.examples, whole.partial) == (1.0, 16, False)
    flipped = evaluate(EvaluateOptions(adapter, file=write_csv(tmp_path / "w.csv", wrong)))
    assert (flipped.scores, flipped.examples) == ({"accuracy": 0.0}, 12)
    sampled = evaluate(EvaluateOptions(adapter, limit=3))
    assert (sampled.examples, sampled.partial) == (3, True)


def test_evaluate_computes_in_the_precision_of_the_card(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = evaluation.compute_logits

    def spy(model: object, features: Features, collate: object, device: object, precision: str, size: int) -> object:
        asked.append(precision)
        return original(model, features, collate, device, precision, size)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "compute_logits", spy)
    evaluate(EvaluateOptions(adapter))
    evaluate(EvaluateOptions(adapter, precision="bf16"))
    assert asked == ["fp32", "bf16"]


def test_bad_data_is_refused_before_the_model_is_loaded(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "load_trained", lambda *_: pytest.fail("loaded the model first"))
    with pytest.raises(ValueError, match=r"expected a label seen in training, got 'hot' in .*; choose one of cold"):
        evaluate(EvaluateOptions(adapter, file=write_csv(tmp_path / "f.csv", [("a", "hot")])))


def test_the_backbone_may_have_moved(adapter: Path, tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "bb")
    files = LocalFiles(write_csv(tmp_path / "f.csv", colour_rows(32)), write_csv(tmp_path / "g.csv", colour_rows(16)))
    result = train(TrainOptions(files, str(backbone), tmp_path / "out", "head", epochs=1, precision="fp32"))
    moved = backbone.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="expected a tokenizer in .*; pass the local path"):
        load_trained(tmp_path / "out")
    assert evaluate(EvaluateOptions(tmp_path / "out", model=str(moved))).score == result.score
    save_card(dataclasses.replace(result.card, base_model=str(moved)), tmp_path / "out")
    assert evaluate(EvaluateOptions(tmp_path / "out")).score == result.score
