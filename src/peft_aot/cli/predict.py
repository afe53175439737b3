"""`peft-aot predict`: texts as arguments or lines in, one JSON object per text out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

import peft_aot.predict as prediction
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.inference import EVALUATION_BATCH
from peft_aot.loading import load_trained


def parse_line(line: str, number: int) -> prediction.Question:
    """Read one line: a JSON object with the task's columns if it starts with a brace, else a text.

    Raises:
        ValueError: It starts with a brace and is no JSON; the message gives its number.
    """
    if not line.lstrip().startswith("{"):
        return line
    try:
        question: dict[str, object] = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected a JSON object in input {number}, got {error.msg}; repair the line") from error
    return question


def _chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(lines)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _standard_input() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"expected UTF-8 text on standard input, got byte 0x{line[error.start]:02x} in line {number}; "
                "convert it first, for example with `iconv -f latin1 -t utf-8`"
            ) from error
        if text.strip():
            yield text


def predict(
    directory: Annotated[Path, typer.Argument(help="Output directory of a training run.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts, or JSON objects for pairs; none reads lines from stdin.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Backbone, if it is not where the task card says.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per forward pass.")] = EVALUATION_BATCH,
) -> None:
    """Answer texts with a trained adapter: text in, JSON out."""
    quiet_libraries()
    trained = load_trained(directory, model)
    lines = iter(texts) if texts else _standard_input()
    # Someone who types lines wants each answer at once.
    size = 1 if not texts and sys.stdin.isatty() else batch_size
    number = 0
    for chunk in _chunks(lines, size):
        questions = [parse_line(line, number + index) for index, line in enumerate(chunk, start=1)]
        answers = prediction.predict(trained, questions, batch_size=batch_size, first_number=number + 1)
        for line, question, answer in zip(chunk, questions, answers, strict=True):
            asked = {"text": line} if isinstance(question, str) else dict(question)
            filled = {name: value for name, value in dataclasses.asdict(answer).items() if value not in (None, {})}
            typer.echo(json.dumps({**asked, **filled}, ensure_ascii=False))
        sys.stdout.flush()
        number += len(chunk)
