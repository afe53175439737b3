"""The backbone without tasks, on the engine's own queue: as much tokenizing, the same batches, the same padding."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModel

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

    Attributes:
        tokens: Of all texts so far.
        padded: The same with padding.
    """

    def __init__(self, setting: Setting) -> None:
        self._encoder = load_body(setting.model, setting.precision, CPU).encoder
        self._body = AutoModel.from_pretrained(str(setting.model), dtype=setting.dtype).eval()
        if getattr(self._body, "pooler", None) is not None:
            self._body.pooler = None
        self.tokens = self.padded = 0

    def answer(self, requests: Sequence[Request]) -> None:
        """Run texts; the queue is filled as far as the engine's would be, then emptied by a batch."""
        scheduler: Scheduler[Encoded] = Scheduler(Limits())
        numbers, left = itertools.count(), list(reversed(requests))
        while left or len(scheduler):
            while left and scheduler.room(left[-1].task):
                request = left.pop()
                encoded = self._encoder.encode(request.text, None, {})
                scheduler.add(Job(encoded, request.task, len(encoded), float(next(numbers))))
            batch = [job.item for job in scheduler.next_batch(time.monotonic())]
            states = self.run(batch)
            self.tokens += sum(len(encoded) for encoded in batch)
            self.padded += states.shape[0] * states.shape[1]

    def run(self, batch: Sequence[Encoded]) -> Tensor:
        """Return the last hidden states of a batch."""
        with torch.inference_mode():
            states: Tensor = self._body(**self._encoder.pad(batch, CPU)).last_hidden_state
        return states

    def embedding(self, text: str) -> Tensor:
        """Return the mean of a text's hidden states, of length 1."""
        states = self.run([self._encoder.encode(text, None, {})])[0].float()
        return torch.nn.functional.normalize(states.mean(0), dim=0)
