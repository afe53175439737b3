"""Runs side by side through Ray Tune, one trial per run, on this machine or on a cluster.

Needs Ray (`pip install "peft_aot[ray]"`), and is therefore imported only where it is asked for. Ray decides where and
when a run is executed, never how: a trial calls the same `execute` as a run in this process.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from peft_aot.progress import Progress, ProgressCallback

from .execute import execute, now, versions
from .executor import RunListener
from .options import CompareOptions
from .records import Run, RunRecord

try:
    import ray
    from ray import tune
    from ray.exceptions import RayTaskError
    from ray.tune.experiment import Trial
except ImportError as error:
    raise ImportError(
        f'expected the extra "ray" to run on Ray, got no Ray ({error}); do: pip install "peft_aot[ray]"'
    ) from error

from .ray_cluster import SETTINGS, connected, environment

INTERVAL = 2.0  # seconds between two reports of a training; evaluations are always reported
RUN, RECORD, PROGRESS = "run", "record", "progress"
Work = Callable[[CompareOptions, Run, ProgressCallback], RunRecord]


@dataclass(frozen=True)
class RayExecutor:
    """Executes the runs of a comparison in parallel on Ray.

    Scores are bit-equal to those of a run in this process if that has `cpus_per_run` threads, the same processor or
    accelerator and the same packages.

    Attributes:
        address: A running cluster's, as `head:6379`, or "auto" for the one this machine belongs to; None starts Ray on
            this machine and stops it at the end. A cluster's nodes need the same packages, and whatever local paths
            the options name, relative to the same working directory; variables of the environment that begin with
            `HF_`, `TOKENIZERS_` or `TRANSFORMERS_` go with the runs, but no token.
        cpus_per_run: Cores that a run occupies, and the threads that torch gets.
        gpus_per_run: Accelerators that a run occupies, a fraction to share one; 0 trains on the CPU. None gives each
            run one if there are any.
    """

    address: str | None = None
    cpus_per_run: int = 1
    gpus_per_run: float | None = None

    def __post_init__(self) -> None:
        if self.cpus_per_run < 1:
            raise ValueError(f"expected cpus_per_run of at least 1, got {self.cpus_per_run}; pass 1 or more")
        if self.gpus_per_run is not None and not 0 <= self.gpus_per_run < math.inf:
            raise ValueError(f"expected gpus_per_run of at least 0, got {self.gpus_per_run}; 0 trains on the CPU")
        if self.address is not None and "://" in self.address:
            raise ValueError(
                f"expected the address of a cluster's head as host:6379, got {self.address!r}; start the comparison on "
                'a machine of the cluster and pass "auto": through Ray Client its records would stay there'
            )

    def __call__(self, options: CompareOptions, runs: Sequence[Run], listener: RunListener) -> None:
        """Execute runs, as many at once as there is room for.

        Args:
            options: The comparison.
            runs: What to run.
            listener: Told, in this process, how it goes: progress every two seconds and at evaluations. A run whose
                worker died is recorded as failed.

        Raises:
            ConnectionError: There is no cluster at the address, or it cannot start a worker.
            ValueError: No machine of it has as much as one run is to occupy.
            RuntimeError: Tune was stopped from outside.
            OSError: As from `execute`; the runs in progress are stopped, and nothing of them is kept.
        """
        trials = _Trials(options, runs, listener)
        with (
            tempfile.TemporaryDirectory(prefix="peft-aot-ray-", ignore_cleanup_errors=True) as folder,
            environment({**SETTINGS, "TMPDIR": folder}),  # what killed workers leave is deleted with it
            connected(self.address, folder),
        ):
            train = tune.with_parameters(
                _train, work=execute, options=options, runs=runs, directory=os.getcwd(), threads=self.cpus_per_run
            )
            tuner = tune.Tuner(
                tune.with_resources(train, self._resources()),
                param_space={RUN: tune.grid_search(list(range(len(runs))))},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(name="runs", storage_path=folder, callbacks=[trials], verbose=0),
            )
            try:
                tuner.fit()
            except _Stopped as stopped:
                raise stopped.reason from stopped.reason.__cause__
        if waiting := len(runs) - len(trials.finished):
            raise RuntimeError(
                f"expected {len(runs)} runs from Ray Tune, got {waiting} fewer; start again to go on where it stopped"
            )

    def _resources(self) -> dict[str, float]:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        gpus = self.gpus_per_run
        if gpus is None:
            gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
        wanted = {"cpu": float(self.cpus_per_run), "gpu": gpus}
        if not any(all(node.get(name.upper(), 0) >= amount for name, amount in wanted.items()) for node in nodes):
            found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
            raise ValueError(
                f"expected a machine with {self.cpus_per_run} cores and {gpus:g} accelerators for a run, got machines "
                f"with {found}; pass smaller cpus_per_run and gpus_per_run"
            )
        return wanted


def _train(
    config: Mapping[str, Any],
    work: Work,
    options: CompareOptions,
    runs: Sequence[Run],
    directory: str,
    threads: int,
) -> None:
    """Execute one run in a worker, and report to `_Trials` in JSON."""
    if os.path.isdir(directory):
        os.chdir(directory)
    torch.set_num_threads(threads)
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        if progress.phase == "evaluate" or time.monotonic() - told > INTERVAL:
            tune.report({PROGRESS: json.dumps(asdict(progress))})
            told = time.monotonic()

    tune.report({RECORD: json.dumps(asdict(work(options, runs[config[RUN]], tell)))})


class _Stopped(BaseException):
    """Leaves Tune's loop at once.

    Were it an `Exception`, Tune would wait for the workers, and then raise something of its own.
    """

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


class _Trials(tune.Callback):
    """Hears in the driver what becomes of the trials, and tells the listener in terms of runs."""

    def __init__(self, options: CompareOptions, runs: Sequence[Run], listener: RunListener) -> None:
        self.options = options
        self.runs = runs
        self.listener = listener
        self.started: dict[int, float] = {}
        self.finished: set[int] = set()

    def __reduce__(self) -> tuple[type[tune.Callback], tuple[()]]:
        # Tune writes its callbacks into files that nobody reads here; a listener may hold a terminal, or a lock
        return tune.Callback, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hear that a worker has begun."""
        index = trial.config[RUN]
        self.started[index] = time.monotonic()
        with _stopping():
            self.listener.started(self.runs[index])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear what `_train` reports."""
        index = trial.config[RUN]
        with _stopping():
            if RECORD in result:
                self._finish(index, RunRecord(**json.loads(result[RECORD])))
            else:
                self.listener.progress(self.runs[index], Progress(**json.loads(result[PROGRESS])))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hear that an exception left `execute`, or that a worker died."""
        index = trial.config[RUN]
        with _stopping():
            pickled = Path(trial.pickled_error_file)
            error = pickle.loads(pickled.read_bytes()) if pickled.is_file() else None
            if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
                raise error.cause  # as from `execute` in this process
            reason = _reason(Path(trial.error_file).read_text(encoding="utf-8"))
            if index not in self.started:
                raise ConnectionError(
                    f"expected a worker from Ray, got: {reason}; see that its machines have memory to spare and the "
                    "same packages as this one, and start again"
                )
            self._finish(index, _lost(self.options, self.runs[index], reason, time.monotonic() - self.started[index]))

    def _finish(self, index: int, record: RunRecord) -> None:
        if index not in self.finished:
            self.finished.add(index)
            self.listener.finished(record)


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Stopped(error) from error


def _reason(text: str) -> str:
    """Shorten what Tune writes of a failure: no date, ids, addresses and lines of code, which are indented."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("Failure #", "\t", " "))]
    return textwrap.shorten(" ".join(lines), 300, placeholder=" ...")


def _lost(options: CompareOptions, run: Run, reason: str, seconds: float) -> RunRecord:
    """Record a run of which nothing is known but that its worker died."""
    return RunRecord(
        task=run.task,
        method=run.method,
        trial=run.trial,
        settings=run.settings,
        seed=run.seed,
        status="failed",
        reason=f"the worker died, perhaps for lack of memory: {reason}",
        score=None,
        scores={},
        history=[],
        partial=[],
        train_examples=0,
        trained_parameters=0,
        stored_bytes=0,
        peak_memory_bytes=None,
        train_seconds=round(seconds, 2),
        precision="",
        protocol=options.protocol_of(run.task),
        versions=versions(),
        machine="",
        finished=now(),
    )
