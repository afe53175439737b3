"""The engine's answers are those of each task alone, whatever shares its batch."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from scipy.special import expit, softmax
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from peft_aot import BitFitConfig
from peft_aot.aot.bank import TaskBank
from peft_aot.serving import (
    Answer,
    BatchRecord,
    Classification,
    DeadlineExceeded,
    Embedding,
    Engine,
    EngineClosed,
    Limits,
    MultiLabel,
    Overloaded,
    Regression,
    Request,
    Tags,
    UnknownTask,
)
from peft_aot.serving.batch import Asked, Batches
from peft_aot.serving.encode import Encoded
from served_models import KINDS, TEXTS, Saved, alone, make_tokenizer, save_task

TOLERANCE = 1e-4
ARCHITECTURES = ["bert", "roberta", "mpnet", "distilbert", "electra", "deberta_v2"]
Make = Callable[[str], Saved]


def start(saved: Saved, limits: Limits = Limits(wait=0.01), **arguments: object) -> Engine:  # noqa: B008
    told = {"precision": "fp32", "device": "cpu", "memory_budget": 2**24, **arguments}
    engine = Engine(saved.backbone, limits=limits, **told)  # type: ignore[arg-type]
    for name, folder in saved.tasks.items():
        engine.add_task(name, folder)
    return engine


@pytest.fixture
def bert(saved: Make) -> Saved:
    return saved("bert")


@pytest.fixture
def engine(bert: Saved) -> Iterator[Engine]:
    with start(bert) as engine:
        yield engine


def check(saved: Saved, request: Request, answer: Answer) -> None:
    logits = alone(saved, request.task, request.text, request.pair)
    labels = KINDS[request.task].get("labels", [])
    if isinstance(answer, Classification):
        assert list(answer.scores) == labels
        np.testing.assert_allclose(list(answer.scores.values()), softmax(logits), atol=TOLERANCE)
        assert answer.score == max(answer.scores.values()) == answer.scores[answer.label]
    elif isinstance(answer, MultiLabel):
        np.testing.assert_allclose(list(answer.scores.values()), expit(logits), atol=TOLERANCE)
        assert answer.labels == tuple(label for label, logit in zip(labels, logits, strict=True) if logit >= 0)
    elif isinstance(answer, Regression):
        assert answer.value == pytest.approx(logits[0], abs=TOLERANCE)
    elif isinstance(answer, Tags):
        rows = logits[1:-1]  # one token a word, between [CLS] and [SEP]
        assert [word.label for word in answer.words] == [labels[i] for i in rows.argmax(-1)]
        np.testing.assert_allclose([w.score for w in answer.words], softmax(rows, axis=-1).max(-1), atol=TOLERANCE)
        assert [request.text[w.start : w.end] for w in answer.words] == request.text.split()
    else:
        mean = logits.mean(0)
        np.testing.assert_allclose(answer.vector, mean / np.linalg.norm(mean), atol=TOLERANCE)


def mixed(count: int, seed: int) -> list[Request]:
    chosen = random.Random(seed)
    tasks = list(KINDS)
    return [Request(chosen.choice(tasks), chosen.choice(TEXTS)) for _ in range(count)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_answers_are_those_of_each_task_alone(saved: Make, name: str) -> None:
    requests = [Request(task, text) for task in KINDS for text in TEXTS[:3]]
    requests += [Request(task, TEXTS[0], TEXTS[4]) for task in ("trec", "topics", "score")]
    random.Random(0).shuffle(requests)
    with start(saved(name)) as engine:
        answers = engine.answer(requests)
    kinds = {type(answer) for answer in answers}
    assert kinds == {Classification, MultiLabel, Regression, Tags, Embedding}
    for request, answer in zip(requests, answers, strict=True):
        check(saved(name), request, answer)


@pytest.mark.parametrize("placement", ["ram", "mmap", "factors"])
def test_placements_answer_alike(bert: Saved, placement: str) -> None:
    with start(bert, placement=placement, memory_budget="auto") as engine:
        for request, answer in zip(mixed(40, 1), engine.answer(mixed(40, 1)), strict=True):
            check(bert, request, answer)


def test_batches_mix_tasks(bert: Saved) -> None:
    records: list[BatchRecord] = []
    with start(bert, Limits(wait=0.2)) as engine:
        engine.observers.append(records.append)
        engine.answer([Request(task, TEXTS[0]) for task in ("trec", "topics", "score", "names", "vectors", "fused")])
    assert max(record.tasks for record in records) > 1
    assert sum(record.examples for record in records) == 6
    assert all(sum(record.hits.values()) == record.examples == len(record.waited) for record in records)
    assert {level for record in records for level in record.hits} >= {"table", "factors"}
    assert all(record.tokens <= record.padded_tokens for record in records)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_what_shares_a_batch_changes_nothing(bert: Saved, precision: str, tolerance: float) -> None:
    requests = [request for request in mixed(80, 11) if request.task != "names"]
    with start(bert, precision=precision) as engine:
        together = engine.answer(requests)
        for request, answer in zip(requests, together, strict=True):
            (alone_,) = engine.answer([request])
            assert numbers_of(answer) == pytest.approx(numbers_of(alone_), abs=tolerance)


def numbers_of(answer: Answer) -> list[float]:
    if isinstance(answer, Classification | MultiLabel):
        return list(answer.scores.values())
    if isinstance(answer, Regression):
        return [answer.value]
    assert isinstance(answer, Embedding)
    return answer.vector.tolist()


def test_whole_tables_in_memory_are_told(bert: Saved) -> None:
    records: list[BatchRecord] = []
    with start(bert, placement="ram", memory_budget="auto") as engine:
        engine.observers.append(records.append)
        for task in ("fused", "trec", "__base__"):
            engine.answer([Request(task, TEXTS[0])])
    assert [dict(record.hits) for record in records] == [{"memory": 1}, {"factors": 1}, {"none": 1}]


def test_positions_that_begin_after_paddings(saved: Make, tmp_path: Path) -> None:
    backbone = shutil.copytree(saved("roberta").backbone, tmp_path / "backbone")
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(backbone)
    with Engine(backbone, precision="fp32", device="cpu", memory_budget=2**24) as engine:
        info = engine.add_task("trec", saved("roberta").tasks["trec"])
        assert info.max_length == 62  # of 64 positions
        assert isinstance(engine.answer([Request("trec", " ".join(TEXTS * 20))])[0], Classification)


def test_backbone_alone_embeds(engine: Engine, bert: Saved) -> None:
    (answer,) = engine.answer([Request("__base__", TEXTS[0])])
    inputs = AutoTokenizer.from_pretrained(bert.backbone)(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        mean = AutoModel.from_pretrained(bert.backbone).eval()(**inputs).last_hidden_state[0].mean(0)
    assert isinstance(answer, Embedding)
    np.testing.assert_allclose(answer.vector, mean / mean.norm(), atol=TOLERANCE)
    assert answer.vector.shape == (engine.width,)


def test_long_texts_are_cut_where_the_task_says(bert: Saved, tmp_path: Path) -> None:
    with start(bert) as engine:
        assert engine.tasks["trec"].max_length == 40
        long = " ".join(TEXTS * 5)
        check(bert, Request("trec", long), engine.answer([Request("trec", long)])[0])
        (tags,) = engine.answer([Request("names", long)])
        assert isinstance(tags, Tags)
        assert len(tags.words) == 38  # of 40 tokens two are special


def test_what_is_told_of_tasks(engine: Engine, bert: Saved) -> None:
    assert {name: info.kind for name, info in engine.tasks.items()} == {
        "trec": "single_label",
        "topics": "multi_label",
        "score": "regression",
        "names": "tokens",
        "vectors": "embedding",
        "sentiment": "single_label",
        "fused": "single_label",
    }
    assert engine.tasks["fused"].has_table
    own = load_file(bert.tasks["sentiment"] / "adapter_model.safetensors")
    assert engine.tasks["sentiment"].nbytes == sum(tensor.nbytes for tensor in own.values())  # no shared pooler
    assert not engine.tasks["trec"].has_table
    assert engine.tasks["score"].labels == engine.tasks["vectors"].labels == ()
    assert engine.tasks["trec"].labels == tuple(KINDS["trec"]["labels"])


def test_async_answers(engine: Engine, bert: Saved) -> None:
    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(*[engine.ask(request) for request in mixed(30, 3)])

    for request, answer in zip(mixed(30, 3), asyncio.run(all_of_them()), strict=True):
        check(bert, request, answer)


def test_more_requests_than_the_queue_holds(bert: Saved) -> None:
    with start(bert, Limits(queue=8, wait=0.001)) as engine:
        assert len(engine.answer([Request("trec", text) for text in TEXTS * 20])) == 120


# tasks that come and go


def test_a_request_keeps_the_task_it_was_accepted_for(bert: Saved, tmp_path: Path) -> None:
    with start(bert, Limits(wait=0.5)) as engine:
        before = engine.submit(Request("trec", TEXTS[0]))
        engine.replace_task("trec", bert.tasks["sentiment"])
        after = engine.submit(Request("trec", TEXTS[0]))
        removed = engine.submit(Request("topics", TEXTS[0]))
        engine.remove_task("topics")
        check(bert, Request("trec", TEXTS[0]), before.result())
        check(bert, Request("sentiment", TEXTS[0]), after.result())
        check(bert, Request("topics", TEXTS[0]), removed.result())
        with pytest.raises(UnknownTask, match="expected the name of a task, got 'topics'"):
            engine.submit(Request("topics", TEXTS[0]))


@pytest.mark.parametrize("successor", [None, "sentiment"])
def test_a_task_that_goes_while_a_text_is_encoded(
    engine: Engine, bert: Saved, monkeypatch: pytest.MonkeyPatch, successor: str | None
) -> None:
    encode = engine._encoder.encode

    def change(*args: object, **kwargs: object) -> object:
        monkeypatch.undo()
        if successor is None:
            engine.remove_task("trec")
        else:
            engine.replace_task("trec", bert.tasks[successor])
        return encode(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._encoder, "encode", change)
    if successor is None:
        with pytest.raises(UnknownTask, match="expected the name of a task, got 'trec'"):
            engine.submit(Request("trec", TEXTS[0]))
    else:
        check(bert, Request(successor, TEXTS[0]), engine.submit(Request("trec", TEXTS[0])).result())


def test_retired_tasks_are_forgotten(engine: Engine, bert: Saved) -> None:
    before = len(engine._bank)
    for _ in range(3):
        future = engine.submit(Request("trec", TEXTS[0]))
        engine.replace_task("trec", bert.tasks["trec"])
        future.result()
    cancelled = engine.submit(Request("trec", TEXTS[0]))
    engine.replace_task("trec", bert.tasks["trec"])
    cancelled.cancel()
    wait([cancelled])
    deadline = time.monotonic() + 5
    while len(engine._bank) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(engine._bank) == before
    assert not engine._pipeline._uses
    assert not engine._pipeline._retired


def test_no_answer_is_another_tasks_while_tasks_change(bert: Saved) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def change(engine: Engine) -> None:
        chosen = random.Random(5)
        try:
            while not stop.is_set():
                name = chosen.choice(["trec", "sentiment", "names"])
                engine.replace_task(name, bert.tasks[name])
                engine.add_task("extra", bert.tasks["fused"])
                engine.remove_task("extra")
        except BaseException as error:
            failures.append(error)

    expected = {(r.task, r.text): None for r in mixed(500, 7)}
    with start(bert) as engine:
        thread = threading.Thread(target=change, args=(engine,))
        thread.start()
        answers = engine.answer(mixed(500, 7))
        stop.set()
        thread.join()
    assert not failures
    for request, answer in zip(mixed(500, 7), answers, strict=True):
        if expected[request.task, request.text] is None:
            check(bert, request, answer)
            expected[request.task, request.text] = answer  # type: ignore[assignment]


# refusals


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("trek", "a"), "expected the name of a task, got 'trek'; did you mean 'trec'"),
        (Request("trec", "  "), "expected text, got nothing; send at least one character"),
        (Request("trec", "a\ud800"), "got half of a surrogate pair at character 1; decode it"),
        (Request("trec", 3), "expected a text, got int; pass a str"),  # type: ignore[arg-type]
        (Request("names", "a", "b"), "expected one text for the task 'names', which answers tokens, got two; send one"),
        (Request("vectors", "a", "b"), "expected one text for the task 'vectors', which answers embedding"),
        (Request("trec", "a", timeout=0), "expected a timeout in seconds above zero, got 0; leave it out"),
        (Request("trec", "a", timeout="5"), "expected a timeout in seconds above zero, got '5'; leave"),  # type: ignore[arg-type]
        (Request(["x"], "a"), r"expected the name of a task, got \['x'\]; pass a str"),  # type: ignore[arg-type]
    ],
)
def test_requests_that_are_refused(engine: Engine, request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert engine.queued == 0


def test_a_text_of_which_nothing_is_left_is_refused(
    engine: Engine, bert: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine._encoder, "encode", lambda *given, **options: Encoded((), ()))
    with pytest.raises(ValueError, match="expected text, got nothing that the tokenizer reads; send letters or digits"):
        engine.submit(Request("trec", "\u200b"))
    assert engine.queued == 0


@pytest.mark.parametrize("name", ["", "__base__", "a\nb", 3])
def test_names_that_are_refused(engine: Engine, bert: Saved, name: str) -> None:
    with pytest.raises(ValueError, match="expected a task's name, got"):
        engine.add_task(name, bert.tasks["trec"])


def test_tasks_that_are_refused(engine: Engine, bert: Saved, tmp_path: Path) -> None:
    before = dict(engine.tasks)
    with pytest.raises(ValueError, match="expected a new name, got 'trec', which is taken"):
        engine.add_task("trec", bert.tasks["trec"])
    with pytest.raises(UnknownTask, match="expected the name of a task, got 'other'"):
        engine.replace_task("other", bert.tasks["trec"])
    with pytest.raises(FileNotFoundError, match=r"expected adapter_config.json in .*, got none; pass a folder"):
        engine.add_task("new", str(tmp_path))
    assert engine.tasks == before
    assert len(engine._bank) == len(before)


def test_overload_is_refused_with_a_time(bert: Saved) -> None:
    with start(bert, Limits(queue=4, wait=30)) as engine:
        futures = [engine.submit(Request("trec", TEXTS[0])), engine.submit(Request("trec", TEXTS[0]))]
        with pytest.raises(Overloaded, match="expected room in the queue for a request of task 'trec', got 2 of 4"):
            engine.submit(Request("trec", TEXTS[0]))
        futures.append(engine.submit(Request("score", TEXTS[0])))  # a newcomer finds room
        engine.close()
        assert all(future.result() for future in futures)


def test_room_is_looked_for_again_when_a_text_is_encoded(bert: Saved) -> None:
    with start(bert, Limits(queue=4, wait=30)) as engine:
        task = engine._tasks["trec"]
        asked = Asked(Request("trec", TEXTS[0]), task, engine._encoder.encode(TEXTS[0], None, {}))
        futures = [engine._pipeline.put(asked) for _ in range(2)]
        with pytest.raises(Overloaded):
            engine._pipeline.put(asked)
        engine.close()
        assert all(future.result() for future in futures)


def test_a_name_that_is_taken_meanwhile(engine: Engine, bert: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    add, known = engine._bank.add, len(engine._bank)

    def slow(key: str, adapter: str | Path) -> None:
        add(key, adapter)
        if key.startswith("new#") and "new" not in engine.tasks:
            monkeypatch.setattr(engine._bank, "add", add)
            engine.add_task("new", bert.tasks["topics"])

    monkeypatch.setattr(engine._bank, "add", slow)
    with pytest.raises(ValueError, match="expected a new name, got 'new', which is taken"):
        engine.add_task("new", bert.tasks["trec"])
    assert engine.tasks["new"].kind == "multi_label"
    assert len(engine._bank) == known + 1


def test_deadlines(bert: Saved) -> None:
    with start(bert, Limits(wait=30)) as engine:
        future = engine.submit(Request("trec", TEXTS[0], timeout=0.05))
        with pytest.raises(DeadlineExceeded, match=r"expected an answer within 0.05 s for task 'trec', got none"):
            future.result(timeout=5)
        assert engine.queued == 0


def test_withdrawn_requests_leave_the_queue(bert: Saved) -> None:
    with start(bert, Limits(wait=30)) as engine:
        future = engine.submit(Request("trec", TEXTS[0]))
        assert engine.queued == 1
        assert future.cancel()
        assert engine.queued == 0

        async def give_up() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(engine.ask(Request("trec", TEXTS[0])), 0.05)

        asyncio.run(give_up())
        deadline = time.monotonic() + 5
        while engine.queued and time.monotonic() < deadline:
            time.sleep(0.01)
        assert engine.queued == 0


def test_closing_answers_what_was_accepted(bert: Saved) -> None:
    engine = start(bert, Limits(wait=30))
    futures = [engine.submit(request) for request in mixed(100, 9)]
    engine.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(EngineClosed, match="expected an engine that is open"):
        engine.submit(Request("trec", TEXTS[0]))
    engine.close()


def test_closing_gives_the_memory_for_rows_back(bert: Saved) -> None:
    engine = start(bert, memory_budget=2**22)
    engine.answer(mixed(20, 2))
    lookup = engine._model.base_model.lookup
    assert lookup.stacks[0].cache is not None
    engine.close()
    assert lookup.stacks[0].cache is None


def test_closing_at_once_fails_what_waits(bert: Saved) -> None:
    engine = start(bert, Limits(wait=30))
    futures: list[Future[Answer]] = [engine.submit(request) for request in mixed(20, 9)]
    engine.close(drain=False)
    for future in futures:
        assert isinstance(future.exception(), EngineClosed)


def test_a_request_that_fails_spoils_no_other(engine: Engine, bert: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine._batches.run

    def breaks(prepared: object) -> list[Answer]:
        if any(one.request.text == TEXTS[5] for one in prepared.asked):  # type: ignore[attr-defined]
            raise MemoryError("no room")
        return run(prepared)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._batches, "run", breaks)
    futures = [engine.submit(Request("trec", text)) for text in TEXTS]
    for text, future in zip(TEXTS, futures, strict=True):
        if text == TEXTS[5]:
            with pytest.raises(MemoryError):
                future.result()
        else:
            check(bert, Request("trec", text), future.result())


def test_cancelled_futures_are_cancelled(bert: Saved) -> None:
    with start(bert, Limits(wait=30)) as engine:
        future = engine.submit(Request("trec", TEXTS[0]))
        future.cancel()
        with pytest.raises(CancelledError):
            future.result()


def test_other_methods_adapters_are_refused(engine: Engine, bert: Saved, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert.backbone)
    folder = tmp_path / "bitfit"
    get_peft_model(model, BitFitConfig(task_type="SEQ_CLS")).save_pretrained(folder)
    with pytest.raises(TypeError, match="expected an AoT adapter"):
        engine.add_task("bitfit", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "expected a regression head of one output in .*, got 2; an engine answers"),
        (
            {"num_labels": 1, "id2label": {"0": "bad"}},
            r"expected as many labels as the head in .* has outputs, 2, got 1 in head.json; save the adapter again",
        ),
        (
            {"task_type": "QUESTION_ANS"},
            "expected a task type among SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION in .*QUESTION",
        ),
        ({"task_type": "FEATURE_EXTRACTION"}, r"expected an embedding task without a head in .*, got classifier\.bias"),
        ({"pooling": "max"}, "expected pooling"),
    ],
)
def test_heads_that_are_refused(
    engine: Engine, bert: Saved, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(bert.tasks["sentiment"], tmp_path / "changed")
    card = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps({**card, **changes}))
    with pytest.raises(ValueError, match=message):
        engine.add_task("changed", folder)
    assert "changed" not in engine.tasks


def change_weights(folder: Path, changes: Mapping[str, Tensor]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    name = {suffix: next(name for name in weights if name.endswith(suffix)) for suffix in changes}
    save_file({**weights, **{name[suffix]: tensor for suffix, tensor in changes.items()}}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classifier.weight": torch.zeros(2, 7)}, r"expected classifier.weight of shape \(2, 32\) .*got \(2, 7\)"),
        ({"classifier.weight": torch.zeros(3, 32)}, r"expected classifier.\w+ of shape .* and floating point in"),
        ({"classifier.bias": torch.zeros(2, 1)}, r"expected classifier.bias of shape \(2,\) .*train it on this"),
        ({"classifier.bias": torch.zeros(2, dtype=torch.int64)}, r"got \(2,\), torch.int64; train it on this backbone"),
    ],
)
def test_heads_that_no_request_could_use_are_refused(
    engine: Engine, bert: Saved, tmp_path: Path, changes: Mapping[str, Tensor], message: str
) -> None:
    folder = shutil.copytree(bert.tasks["sentiment"], tmp_path / "changed")
    change_weights(folder, changes)
    with pytest.raises(ValueError, match=message):
        engine.add_task("changed", folder)
    assert "changed" not in engine.tasks


def test_what_is_written_into_the_file_of_a_served_task_changes_nothing(
    engine: Engine, bert: Saved, tmp_path: Path
) -> None:
    folder = shutil.copytree(bert.tasks["sentiment"], tmp_path / "served")
    engine.add_task("served", folder)
    (before,) = engine.answer([Request("served", TEXTS[0])])
    path = folder / "adapter_model.safetensors"
    size = path.stat().st_size
    with path.open("r+b") as file:  # in place, as `cp` over it does
        file.write(b"\xff" * size)
    (after,) = engine.answer([Request("served", TEXTS[0])])
    assert isinstance(before, Classification) and isinstance(after, Classification)
    assert after.scores == before.scores
    with pytest.raises(ValueError, match=r"expected weights in .*adapter_model.safetensors, got unreadable ones"):
        engine.replace_task("served", folder)


@pytest.mark.parametrize("content", ['{"peft_type": "ZZZ"}', "[]", "{", "\x00"])
def test_configurations_that_cannot_be_read(engine: Engine, bert: Saved, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(bert.tasks["sentiment"], tmp_path / "broken")
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected an adapter's configuration in .*broken, got an unreadable"):
        engine.add_task("broken", folder)


def test_without_a_card_labels_are_numbered(engine: Engine, bert: Saved, tmp_path: Path) -> None:
    folder = shutil.copytree(bert.tasks["sentiment"], tmp_path / "old")
    (folder / "head.json").unlink()
    info = engine.add_task("old", folder)
    assert (info.kind, info.labels) == ("single_label", ("LABEL_0", "LABEL_1"))


def test_a_head_that_lacks_a_part_is_refused(saved: Make, tmp_path: Path) -> None:
    distil = saved("distilbert")
    folder = save_task(distil.backbone, "sentiment", tmp_path / "part", 3)
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "pre_classifier.bias" not in n}, path)
    with start(distil) as engine, pytest.raises(ValueError, match=r"expected pre_classifier .*got all but bias"):
        engine.add_task("part", folder)


def test_only_the_thread_that_runs_has_more_than_one(bert: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[int]] = {}

    def noting(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def noted(*arguments: object, **named: object) -> object:
            seen.setdefault(name, set()).add(torch.get_num_threads())
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, noted)

    for owner, name in ((TaskBank, "add"), (Batches, "prepare"), (Batches, "run")):
        noting(owner, name)
    noting(AutoModel, "from_pretrained")
    torch.set_num_threads(3)
    with start(bert) as engine:
        engine.answer([Request("trec", text) for text in TEXTS])
    assert seen == {"from_pretrained": {1}, "add": {1}, "prepare": {1}, "run": {3}}
    assert torch.get_num_threads() == 3
