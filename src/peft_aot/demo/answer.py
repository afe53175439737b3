"""The fresh process that answers: one backbone, every adapter, one mixed batch.

    python -m peft_aot.demo.answer peft-aot-demo/questions.json

reads the questions (`questions.Questions`) and prints the answers as JSON. It is told where things lie and nothing of
how they were trained; whoever wants to serve several tasks can start from it.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft_aot.demo.questions import Answer, Answers, Question, Questions, read_questions


def answer(request: Questions) -> Answers:
    """Load the backbone once and every adapter, and answer all questions in one batch.

    Raises:
        FileNotFoundError: An adapter's directory has no task card, or is not there.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from peft_aot.tables import TABLE_FILE
    from peft_aot.task_card import load_card

    cards = {name: load_card(Path(directory)) for name, directory in request.adapters.items()}
    start = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    backbone = AutoModelForSequenceClassification.from_pretrained(request.model)
    (first, directory), *others = request.adapters.items()
    model: Any = PeftModel.from_pretrained(backbone, directory, adapter_name=first)
    for name, directory in others:
        model.load_adapter(directory, adapter_name=name)
    model.eval()
    load_seconds = time.perf_counter() - start

    def ask(questions: tuple[Question, ...]) -> torch.Tensor:
        longest = max(card.max_length for card in cards.values())
        batch = tokenizer(
            [question.text for question in questions],
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits: torch.Tensor = model(**batch, adapter_names=[question.task for question in questions]).logits
        return logits.softmax(dim=-1)  # heads with fewer labels are padded with -inf, which takes no probability

    ask(request.questions)  # warm-up: the first call of a process pays for allocations
    start = time.perf_counter()
    probabilities = ask(request.questions)
    milliseconds = (time.perf_counter() - start) * 1000
    alone = torch.cat([_widen(ask((question,)), probabilities.shape[1]) for question in request.questions])
    found = []
    for question, row in zip(request.questions, probabilities, strict=True):
        best = int(row.argmax())
        found.append(Answer(question.task, question.text, cards[question.task].labels[best], float(row[best])))
    tables = (Path(directory) / TABLE_FILE for directory in request.adapters.values())
    return Answers(
        pid=os.getpid(),
        load_seconds=load_seconds,
        table_bytes=sum(table.stat().st_size for table in tables if table.is_file()),
        batch_milliseconds=milliseconds,
        alone_difference=float((probabilities - alone).abs().max()),
        answers=tuple(found),
    )


def _widen(probabilities: Any, width: int) -> Any:
    from torch.nn.functional import pad

    return pad(probabilities, (0, width - probabilities.shape[1]))


def main() -> None:
    """Answer the questions in the file named on the command line."""
    import json

    import peft_aot  # registers AoT with PEFT

    if len(sys.argv) != 2:
        raise SystemExit(f"expected one file of questions, got {len(sys.argv) - 1} arguments; see {peft_aot.__name__}")
    print(json.dumps(asdict(answer(read_questions(Path(sys.argv[1]))))))  # noqa: T201


if __name__ == "__main__":
    main()
