"""Other ways to serve many tasks from one machine, on the same texts in the same rounds.

LoRA in PEFT with its adapters in one model: switched with `set_adapter` for every request, or once for all of a task's
requests that wait; or mixed in a batch with `adapter_names`. LoRA merged into one whole model per task, as many as fit
into memory. Heads are of one size, as PEFT's mixed batches need. Batches are formed by the engine's own queue where a
peer can mix them. Every answer is compared with that of the task alone before anything is timed.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import psutil
import torch
from peft import PeftModel
from rich.progress import Progress
from torch import Tensor, nn
from transformers import AutoTokenizer

from _record import figures
from load.apart import Apart
from load.capacity import CHECKED, Loaded, check_engine
from load.demand import demand
from load.saved import alone, aot_tasks, check, classifier, lora_tasks
from load.setting import Setting, console
from peft_aot.serving import Limits, Request
from peft_aot.serving.job import Job
from peft_aot.serving.scheduler import Scheduler
from peft_aot.timing import interleave

ENGINE = "engine"
MERGED = "LoRA, merged models"
Way = Callable[[Sequence[Request]], Tensor]
MOST_MEMORY = 0.6
"""Share of the free memory that merged models may take."""


class Texts:
    """Turns texts into the arguments of a model."""

    def __init__(self, setting: Setting) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(str(setting.model))

    def __call__(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return (B, T) each."""
        texts = [request.text for request in requests]
        return dict(self._tokenizer(texts, return_tensors="pt", padding=True, truncation=True))

    def tokens(self, request: Request) -> int:
        """Return the length of a text."""
        return len(self._tokenizer(request.text, truncation=True).input_ids)


class Lora:
    """One model with an adapter per task."""

    def __init__(self, setting: Setting, tasks: int) -> None:
        folders = lora_tasks(setting, setting.counts[-1])[:tasks]
        self._texts = Texts(setting)
        self.model = PeftModel.from_pretrained(
            classifier(setting), folders[0], adapter_name="0", autocast_adapter_dtype=False
        )
        for folder in folders[1:]:
            self.model.load_adapter(
                str(folder), adapter_name=folder.name, low_cpu_mem_usage=True, autocast_adapter_dtype=False
            )
        self.model.to(setting.dtype).eval()  # adapters loaded later keep the format of their files

    def ways(self) -> dict[str, Way]:
        """Return the ways to answer with it."""
        return {
            "LoRA, set_adapter per request": self.per_request,
            "LoRA, set_adapter per task": self.per_group,
            "LoRA, mixed batches": self.mixed,
        }

    def per_request(self, requests: Sequence[Request]) -> Tensor:
        """Switch to the task of each request."""
        return _grouped(requests, [[number] for number in range(len(requests))], self._switched)

    def per_group(self, requests: Sequence[Request]) -> Tensor:
        """Switch to each task once, and answer what waits for it together."""
        return _grouped(requests, _by_task(requests), self._switched)

    def _switched(self, requests: Sequence[Request]) -> Tensor:
        self.model.set_adapter(requests[0].task, inference_mode=True)
        with torch.inference_mode():
            found: Tensor = self.model(**self._texts(requests)).logits
        return found

    def mixed(self, requests: Sequence[Request]) -> Tensor:
        """Answer batches of all tasks."""
        return _grouped(requests, list(_queued(requests, self._texts)), self._mixed)

    def _mixed(self, requests: Sequence[Request]) -> Tensor:
        names = [request.task for request in requests]
        with torch.inference_mode():
            found: Tensor = self.model(**self._texts(requests), adapter_names=names).logits
        return found


class Merged:
    """A whole model per task, as many as fit; raises MemoryError if they do not."""

    def __init__(self, setting: Setting, tasks: int) -> None:
        self._texts = Texts(setting)
        self.models: dict[str, nn.Module] = {}
        size = sum(p.numel() * p.element_size() for p in classifier(setting).parameters())
        room = int(MOST_MEMORY * psutil.virtual_memory().available / size)
        if tasks > room:
            raise MemoryError(f"{tasks} merged models of {size / 1e6:.0f} MB do not fit, {room} would")
        for folder in lora_tasks(setting, setting.counts[-1])[:tasks]:
            adapted = PeftModel.from_pretrained(classifier(setting), folder, autocast_adapter_dtype=False)
            self.models[folder.name] = adapted.merge_and_unload().eval()

    def ways(self) -> dict[str, Way]:
        """Return the only way to answer with them."""
        return {MERGED: self.per_group}

    def per_group(self, requests: Sequence[Request]) -> Tensor:
        """Answer what waits for each task together, by its own model."""
        return _grouped(requests, _by_task(requests), self._run)

    def _run(self, requests: Sequence[Request]) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self.models[requests[0].task](**self._texts(requests)).logits
        return found


def _by_task(requests: Sequence[Request]) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        groups[request.task].append(number)
    size = Limits().batch_examples
    return [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]


def _queued(requests: Sequence[Request], texts: Texts) -> Iterator[list[int]]:
    """Yield batches as the engine's queue forms them."""
    scheduler: Scheduler[int] = Scheduler(Limits())
    left = list(reversed(range(len(requests))))
    while left or len(scheduler):
        while left and scheduler.room(requests[left[-1]].task):
            number = left.pop()
            request = requests[number]
            scheduler.add(Job(number, request.task, texts.tokens(request), float(number)))
        yield [job.item for job in scheduler.next_batch(time.monotonic())]


def _grouped(
    requests: Sequence[Request], groups: Sequence[Sequence[int]], run: Callable[[Sequence[Request]], Tensor]
) -> Tensor:
    """Return probabilities (requests, labels) in the order asked, of answers that are computed group by group."""
    order = [number for group in groups for number in group]
    logits = torch.cat([run([requests[number] for number in group]) for group in groups])
    found = torch.empty_like(logits, dtype=torch.float32)
    found[order] = logits.float().softmax(-1)
    return found


def measure(setting: Setting, texts: int, rounds: int, warmup: int) -> None:
    """Measure every number of tasks under the last mix; see `capacity.measure`."""
    mix = setting.mixes[-1]
    for tasks in setting.counts:
        if not setting.book.has("peers", model=setting.name, mix=mix, tasks_loaded=tasks):
            _measure(setting, tasks, mix, texts, rounds, warmup)


class Peer:
    """One kind of model, and what it is asked.

    Args:
        kind: Makes it.
        setting: What is measured on.
        tasks: How many.
        mix: How they are drawn.
    """

    def __init__(self, kind: type[Lora] | type[Merged], setting: Setting, tasks: int, mix: str) -> None:
        self._ways = kind(setting, tasks).ways()
        self._streams = {name: demand(setting.texts, tasks, mix, seed=1) for name in self._ways}

    def names(self) -> list[str]:
        """Return the ways to answer with it."""
        return list(self._ways)

    def run(self, way: str, number: int) -> None:
        """Answer as many requests."""
        self._ways[way](list(itertools.islice(self._streams[way], number)))

    def probabilities(self, way: str, requests: Sequence[Request]) -> Tensor:
        """Return (requests, labels)."""
        return self._ways[way](requests)


def _measure(setting: Setting, tasks: int, mix: str, texts: int, rounds: int, warmup: int) -> None:
    console.print(f"peers: loading {tasks} tasks of each kind ...")
    aot_tasks(setting, setting.counts[-1])
    lora_tasks(setting, setting.counts[-1])
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        engine = stack.enter_context(Apart(Loaded, setting, tasks, mix))
        peers: dict[str, Apart] = {}
        for kind in (Lora, Merged):
            try:
                peer = stack.enter_context(Apart(Peer, kind, setting, tasks, mix))
                peers.update(dict.fromkeys(peer.call("names"), peer))
            except RuntimeError as error:
                if not str(error).startswith(MemoryError.__name__):
                    raise
                left_out[MERGED] = str(error)
                console.print(f"    merged models are left out: {error}")
        check_engine(setting, engine, tasks, mix)
        check_peers(setting, peers, tasks)
        with Progress(console=console) as bar:
            ticks = bar.add_task(f"peers, {tasks} tasks", total=(warmup + rounds) * (1 + len(peers)))

            def call(name: str) -> Callable[[], None]:
                def run() -> None:
                    if name == ENGINE:
                        engine.call("run", texts)
                    else:
                        peers[name].call("run", name, texts)
                    bar.advance(ticks)

                return run

            calls = {name: call(name) for name in (ENGINE, *peers)}
            timings = interleave(calls, ENGINE, rounds=rounds, warmup=warmup)
    rates = {name: round(texts * 1000 / timing.milliseconds, 2) for name, timing in timings.items()}
    for name, rate in rates.items():
        console.print(f"    {tasks:4d} tasks, {name:30s} {rate:8.1f} requests/s, {timings[name].ratio:6.2f} x the time")
    setting.book.add(
        "peers",
        **setting.facts(),
        mix=mix,
        tasks_loaded=tasks,
        requests=texts,
        warmup_requests=texts * warmup,
        requests_per_second=rates,
        time_over_engine={name: figures(timing) for name, timing in timings.items()},
        left_out=left_out,
    )


def check_peers(setting: Setting, peers: Mapping[str, Apart], tasks: int) -> None:
    """Compare each peer's answers with those of each task alone."""
    folders = lora_tasks(setting, setting.counts[-1])[:tasks][-CHECKED:]
    asked = [Request(folder.name, text) for text in setting.texts[:4] for folder in folders]
    expected = torch.stack([alone(setting, folder, setting.texts[:4]) for folder in folders], 1).flatten(0, 1)
    for name, peer in peers.items():
        check(setting, f"{name} with {tasks} tasks", peer.call("probabilities", name, asked), expected)
