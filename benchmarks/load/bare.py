"""The backbone without tasks, on the engine's own queue: as much tokenizing, the same batches, the same padding."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel

from load.demand import demand
from load.setting import CPU, Setting
from peft_aot.serving import Limits, Request
from peft_aot.serving.body import load_body
from peft_aot.serving.encode import Encoded
from peft_aot.serving.job import Job
from peft_aot.serving.scheduler import Scheduler


class Bare:
    """Runs texts through the backbone, one thread, no heads.

    Args:
        setting: What is measured on.
        mix: How tasks are drawn, which here only decides who is next.
    """

    def __init__(self, setting: Setting, mix: str) -> None:
        self._encoder = load_body(setting.model, setting.precision, CPU).encoder
        self._body = AutoModel.from_pretrained(str(setting.model), dtype=setting.dtype).eval()
        if getattr(self._body, "pooler", None) is not None:
            self._body.pooler = None
        self._stream = demand(setting.texts, setting.counts[-1], mix, seed=1)
        self.forget()

    def forget(self) -> None:
        """Begin again to note what batches are like."""
        self._batches = self._examples = self._tokens = self._padded = 0

    def told(self) -> dict[str, float]:
        """Return means of batches."""
        batches, tokens = max(1, self._batches), max(1, self._tokens)
        return {
            "examples": round(self._examples / batches, 2),
            "padded_over_tokens": round(self._padded / tokens, 4),
        }

    def run(self, number: int) -> None:
        """Run as many texts; the queue is filled as far as the engine's would be, then emptied by a batch."""
        self._answer(list(itertools.islice(self._stream, number)))

    def _answer(self, requests: Sequence[Request]) -> None:
        scheduler: Scheduler[Encoded] = Scheduler(Limits())
        numbers, left = itertools.count(), list(reversed(requests))
        while left or len(scheduler):
            while left and scheduler.room(left[-1].task):
                request = left.pop()
                encoded = self._encoder.encode(request.text, None, {})
                scheduler.add(Job(encoded, request.task, len(encoded), float(next(numbers))))
            batch = [job.item for job in scheduler.next_batch(time.monotonic())]
            states = self._states(batch)
            self._batches += 1
            self._examples += len(batch)
            self._tokens += sum(len(encoded) for encoded in batch)
            self._padded += states.shape[0] * states.shape[1]

    def _states(self, batch: Sequence[Encoded]) -> Tensor:
        with torch.inference_mode():
            states: Tensor = self._body(**self._encoder.pad(batch, CPU)).last_hidden_state
        return states

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return (texts, D): the means of each text's hidden states, of length 1."""
        means = [self._states([self._encoder.encode(text, None, {})])[0].float().mean(0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(means))
