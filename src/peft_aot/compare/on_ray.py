"""Runs side by side through Ray Tune, one trial per run, on this machine or on a cluster.

Needs Ray (`pip install "peft_aot[ray]"`), and is therefore imported only where it is asked for. Ray decides where and
when a run is executed, never how: a trial calls the same `execute` as a run in this process.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
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

INTERVAL = 2.0  # seconds between two reports of a training; evaluations are always reported
PATIENCE = 15.0  # seconds in which a cluster must answer; Ray itself would try for minutes
SOCKET_ROOM = 38  # longest folder that Ray's sockets, 64 characters below it, can have on every system
USUAL_PLACE = "/tmp/ray"  # Ray's own, where TMPDIR is longer
OBJECT_STORE_BYTES = 100 * 2**20  # only options and records pass through it
RUN, RECORD, PROGRESS = "run", "record", "progress"
SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a run that was given no accelerator sees none
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table even when told to be silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 lets any other program starve the runs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune's own waits for every worker
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
CARRIED = ("HF_", "TOKENIZERS_", "TRANSFORMERS_")  # variables that a cluster's workers are given
SECRET = ("HF_TOKEN",)  # a cluster shows the variables it was given to whoever may look at it

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
        if self.gpus_per_run is not None and self.gpus_per_run < 0:
            raise ValueError(f"expected gpus_per_run of at least 0, got {self.gpus_per_run}; 0 trains on the CPU")
        if self.address is not None and "://" in self.address:
            raise ValueError(
                f"expected the address of a cluster's head as host:6379, got {self.address!r}; start the comparison on "
                'a machine of the cluster and pass "auto": through Ray Client its records would stay there'
            )

    def __call__(
        self,
        options: CompareOptions,
        runs: Sequence[Run],
        on_start: Callable[[Run], None],
        on_progress: Callable[[Run, Progress], None],
        on_finish: Callable[[RunRecord], None],
    ) -> None:
        """Execute runs, as many at once as there is room for.

        Args:
            options: The comparison.
            runs: What to run.
            on_start: Told, in this process, which run begins.
            on_progress: Told how it goes, every two seconds and at evaluations.
            on_finish: Given its record as soon as it has ended. A run whose worker died is recorded as failed.

        Raises:
            ConnectionError: There is no cluster at the address, or it cannot start a worker.
            ValueError: No machine of it has as much as one run is to occupy.
            RuntimeError: Tune was stopped from outside.
            OSError: As from `execute`; the runs in progress are stopped, and nothing of them is kept.
        """
        listener = _Listener(options, runs, on_start, on_progress, on_finish)
        with (
            tempfile.TemporaryDirectory(prefix="peft-aot-ray-", ignore_cleanup_errors=True) as folder,
            _environment({**SETTINGS, "TMPDIR": folder}),  # what killed workers leave is deleted with it
            _connected(self.address, folder),
        ):
            train = tune.with_parameters(
                _train, work=execute, options=options, runs=runs, directory=os.getcwd(), threads=self.cpus_per_run
            )
            tuner = tune.Tuner(
                tune.with_resources(train, self._resources()),
                param_space={RUN: tune.grid_search(list(range(len(runs))))},
                tune_config=tune.TuneConfig(reuse_actors=True),
                run_config=tune.RunConfig(name="runs", storage_path=folder, callbacks=[listener], verbose=0),
            )
            try:
                tuner.fit()
            except _Stopped as stopped:
                raise stopped.reason from stopped.reason.__cause__
        if waiting := len(runs) - len(listener.finished):
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


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _connected(address: str | None, folder: str) -> Iterator[None]:
    """Start Ray in `folder`, or connect; at the end take leave of it, which stops what still runs."""
    if ray.is_initialized():
        raise ValueError(
            "expected a process that is not connected to Ray, got one that is; call ray.shutdown(), and pass the "
            "address to stay on that cluster"
        )
    try:
        if address is None:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                _temp_dir=folder if len(folder) <= SOCKET_ROOM else USUAL_PLACE,
            )
        else:
            _check(address)
            carried = {
                name: value
                for name, value in os.environ.items()
                if name.startswith(CARRIED) and not name.startswith(SECRET)
            }
            try:
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env={"env_vars": {**carried, **SETTINGS}},
                )
            except RuntimeError as error:  # other versions than this process has
                raise _no_cluster(address, " ".join(str(error).split())) from error
        yield
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Ask for the cluster's status in a process of its own: Ray cannot be told when to give up.

    Raises:
        ConnectionError: It does not answer.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        reason = "" if asked.returncode == 0 else (asked.stderr.strip().splitlines() or ["no answer"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PATIENCE:g} seconds"
    if reason:
        raise _no_cluster(address, reason)


def _no_cluster(address: str, reason: str) -> ConnectionError:
    return ConnectionError(
        f"expected a Ray cluster at {address}, got: {reason}; start one with `ray start --head` in this environment "
        "and pass the address it prints, or pass none to start Ray on this machine"
    )


def _train(
    config: Mapping[str, Any],
    work: Work,
    options: CompareOptions,
    runs: Sequence[Run],
    directory: str,
    threads: int,
) -> None:
    """Execute one run in a worker, and report to the listener in JSON."""
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


class _Listener(tune.Callback):
    """Hears in the driver what becomes of the trials."""

    def __init__(
        self,
        options: CompareOptions,
        runs: Sequence[Run],
        on_start: Callable[[Run], None],
        on_progress: Callable[[Run, Progress], None],
        on_finish: Callable[[RunRecord], None],
    ) -> None:
        self.options = options
        self.runs = runs
        self.on_start = on_start
        self.on_progress = on_progress
        self.on_finish = on_finish
        self.started: dict[int, float] = {}
        self.finished: set[int] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Hear that a worker has begun."""
        index = trial.config[RUN]
        self.started[index] = time.monotonic()
        with _stopping():
            self.on_start(self.runs[index])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear what `_train` reports."""
        index = trial.config[RUN]
        with _stopping():
            if RECORD in result:
                self._finish(index, RunRecord(**json.loads(result[RECORD])))
            else:
                self.on_progress(self.runs[index], Progress(**json.loads(result[PROGRESS])))

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
            self.on_finish(record)


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
