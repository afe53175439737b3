"""Runs on Ray: the same records as in this process, whatever dies; only the runs in progress are lost."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from peft_aot.cli.app import main
from peft_aot.compare import CompareOptions, compare
from peft_aot.compare.execute import execute
from peft_aot.compare.records import RecordFile, Run, RunRecord
from peft_aot.progress import Progress, ProgressCallback
from peft_aot.task import LocalFiles
from tiny_text import colour_rows, write_backbone, write_csv

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "peft_aot[ray]"')

from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RayTaskError  # noqa: E402

from peft_aot.compare import on_ray, ray_cluster  # noqa: E402
from peft_aot.compare.on_ray import RayExecutor  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one Ray at a time: each takes all cores


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareOptions:
    """A comparison whose paths are all relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    write_backbone(Path("backbone"))
    rows = colour_rows(64)
    files = LocalFiles(write_csv(Path("colours.csv"), rows), write_csv(Path("validation.csv"), rows[:32]))
    return CompareOptions(
        model="backbone",
        output=Path("out"),
        tasks=(files,),
        methods=("aot", "lora"),
        trials=2,
        seeds=1,
        epochs=2,
        precision="fp32",
        spaces={name: {"learning_rate": (1e-2, 1e-3), "rank": (2,)} for name in ("aot", "lora")},
        timing_rounds=0,
    )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for a socket's, which pytest's own do not."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of one machine with two cores."""
    with (
        tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # else "auto" would mean this cluster to the whole machine
        patch.setenv("RAY_worker_niceness", "0")
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield running.address
        running.shutdown()


def runs_of(*methods: str) -> list[Run]:
    return [Run("colours", method, 0, {"learning_rate": 1e-2, "rank": 2}, 0) for method in methods]


class Told:
    """What an executor calls, remembered."""

    def __init__(self) -> None:
        self.order: list[tuple[str, str]] = []
        self.begun: list[Run] = []
        self.phases: list[str] = []
        self.records: list[RunRecord] = []

    def started(self, run: Run) -> None:
        self.order.append(("started", run.method))
        self.begun.append(run)

    def progress(self, run: Run, progress: Progress) -> None:
        assert run in self.begun
        self.phases.append(progress.phase)

    def finished(self, record: RunRecord) -> None:
        assert record.run in self.begun
        self.order.append(("finished", record.method))
        self.records.append(record)


def comparable(record: RunRecord) -> dict[str, Any]:
    """A record without what differs between two executions of one run: times, and the memory of the process."""
    values = dataclasses.asdict(record)
    for name in ("finished", "train_seconds", "peak_memory_bytes"):
        assert values.pop(name) is not None
    for entry in values["history"]:
        assert entry.pop("seconds")
    return values


def test_a_comparison_begun_here_goes_on_on_ray_with_the_same_records(
    options: CompareOptions, capfd: pytest.CaptureFixture[str], short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    results = Path.home() / "ray_results"
    before = results.exists()
    here = dataclasses.replace(options, output=Path("here"))
    compare(here)
    begun = (here.output / "runs.jsonl").read_bytes().splitlines(keepends=True)[0]
    options.output.mkdir()
    (options.output / "runs.jsonl").write_bytes(begun)
    capfd.readouterr()
    compare(options, executor=RayExecutor())
    printed = capfd.readouterr()
    assert printed.out == "", "Ray and Tune keep silent"
    assert not re.search(r"\b(ray|raylet|tune|tuner|trial)\b", printed.err, re.IGNORECASE), printed.err
    assert (options.output / "runs.jsonl").read_bytes().startswith(begun)
    by_key = [
        {record.run.key: comparable(record) for record in RecordFile(folder / "runs.jsonl", RunRecord).records}
        for folder in (here.output, options.output)
    ]
    assert len(by_key[0]) == 4 and by_key[0] == by_key[1]
    assert by_key[1][next(iter(by_key[1]))]["protocol"]["model"] == "backbone"
    assert not ray.is_initialized() and results.exists() == before
    assert not list(short_folder.glob("peft-aot-*")), "nothing is left behind"
    assert Path.cwd() == options.output.absolute().parent and "RAY_CHDIR_TO_TRIAL_DIR" not in os.environ


def test_the_command_with_what_a_terminal_shows(options: CompareOptions, capsys: pytest.CaptureFixture[str]) -> None:
    given = "compare --model backbone --output out --train-file colours.csv --validation-file validation.csv"
    more = "--methods aot --trials 1 --seeds 1 --epochs 1 --timing-rounds 0 --precision fp32 --ray"
    with pytest.raises(SystemExit) as ended:
        main([*given.split(), *more.split()])
    assert not ended.value.code, capsys.readouterr()
    assert [record.status for record in RecordFile(Path("out/runs.jsonl"), RunRecord).records] == ["done"]
    assert "AoT-FC" in capsys.readouterr().out


def test_a_worker_that_dies_costs_its_own_run_only(
    options: CompareOptions, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MARK", "carried")  # set after the cluster was started
    monkeypatch.setenv("HF_TOKEN", "secret")

    def die(options: CompareOptions, run: Run, tell: ProgressCallback) -> RunRecord:
        if os.environ.get("HF_MARK") != "carried" or os.environ.get("HF_TOKEN") == "secret":
            raise OSError(f"not the environment that was expected: {sorted(os.environ)}")
        if os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            raise OSError("a run that was given no accelerator would see those of its machine")
        if run.method == "bitfit":
            os.kill(os.getpid(), signal.SIGKILL)
        return execute(options, run, tell)

    monkeypatch.setattr(on_ray, "execute", die)
    told = Told()
    runs = runs_of("bitfit", "aot", "lora")
    RayExecutor(cluster)(options, runs, told)
    assert sorted(told.begun, key=lambda run: run.key) == sorted(runs, key=lambda run: run.key)
    assert {"evaluate", "train"} == set(told.phases)
    kinds = [kind for kind, _ in told.order]
    assert "finished" in kinds[:3], "a record is handed over when its run ends"
    status = {record.method: record.status for record in told.records}
    assert status == {"bitfit": "failed", "aot": "done", "lora": "done"}
    [lost] = [record for record in told.records if record.status == "failed"]
    assert lost.run == runs[0] and lost.score is None and lost.protocol == options.protocol_of("colours")
    assert lost.reason.startswith("the worker died, perhaps for lack of memory: The actor died unexpectedly")
    assert "\n" not in lost.reason and "actor_id" not in lost.reason
    json.dumps(dataclasses.asdict(lost), allow_nan=False)


def test_a_stop_ends_workers_at_once(
    options: CompareOptions, cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "worker"

    def hang(options: CompareOptions, run: Run, tell: ProgressCallback) -> RunRecord:
        worker.write_text(str(os.getpid()))
        tell(Progress(1, 2, 0.5, None, None, 1.0, None, "evaluate"))
        time.sleep(600)
        raise OSError("it was to be stopped")

    class Stopping(Told):
        def progress(self, run: Run, progress: Progress) -> None:
            raise KeyboardInterrupt  # as Ctrl-C does, wherever Python is

    monkeypatch.setattr(on_ray, "execute", hang)
    told = Stopping()
    with pytest.raises(KeyboardInterrupt):
        RayExecutor(cluster)(options, runs_of("aot"), told)
    assert not ray.is_initialized() and told.records == []
    deadline = time.monotonic() + 20
    while psutil.pid_exists(int(worker.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(int(worker.read_text()))


@pytest.mark.slow
def test_sigterm_ends_workers_at_once(options: CompareOptions, short_folder: Path) -> None:
    command = [sys.executable, "-c", "from peft_aot.cli.app import main; main()", "compare", "--model", "backbone"]
    more = "--output out --train-file colours.csv --methods head --trials 4 --seeds 1 --epochs 3000 --ray"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(short_folder)}
    with Path("said").open("w+", encoding="utf-8") as output:
        process = subprocess.Popen([*command, *more.split()], env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 120
        while not list(short_folder.glob("peft-aot-ray-*/peft-aot-run-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
        output.seek(0)
        said = output.read()
    assert "stopped; what is finished is in out" in said and "SIGTERM" not in said
    assert not list(short_folder.glob("peft-aot-*")), "nothing is left behind"


def trial(folder: Path, error: Exception | None, text: str = "Failure # 1 (occurred at noon)\nwent wrong") -> Any:
    """What the listener reads of a trial that ended with an error."""
    pickled = folder / "error.pkl"
    if error is not None:
        pickled.write_bytes(pickle.dumps(error))
    written = folder / "error.txt"
    written.write_text(text, encoding="utf-8")
    return SimpleNamespace(config={"run": 0}, pickled_error_file=str(pickled), error_file=str(written))


def listener(options: CompareOptions, told: Told) -> Any:
    return on_ray._Trials(options, runs_of("aot"), told)


def test_what_a_run_raises_reaches_the_driver(options: CompareOptions, tmp_path: Path) -> None:
    heard = listener(options, Told())
    failed = trial(tmp_path, RayTaskError("train", "traceback", OSError("no space left")))
    heard.on_trial_start(0, [], failed)
    with pytest.raises(on_ray._Stopped) as stopped:
        heard.on_trial_error(0, [], failed)
    assert isinstance(stopped.value.reason, OSError) and str(stopped.value.reason) == "no space left"


def test_workers_that_cannot_start_stop_everything(options: CompareOptions, tmp_path: Path) -> None:
    told = Told()
    text = "Failure # 1 (at noon)\nThe actor died\n\tpid: 7\n  File x.py\nModuleNotFoundError: No module named 'peft'"
    with pytest.raises(on_ray._Stopped) as stopped:
        listener(options, told).on_trial_error(0, [], trial(tmp_path, None, text))
    assert isinstance(stopped.value.reason, ConnectionError)
    assert "got: The actor died ModuleNotFoundError: No module named 'peft'; see that" in str(stopped.value.reason)
    assert told.records == []


def test_what_the_caller_raises_is_raised(options: CompareOptions) -> None:
    class Full(Told):
        def started(self, run: Run) -> None:
            raise OSError("disk full")

    heard = listener(options, Full())
    with pytest.raises(on_ray._Stopped) as stopped:
        heard.on_trial_start(0, [], SimpleNamespace(config={"run": 0}))
    assert str(stopped.value.reason) == "disk full"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cpus_per_run": 0}, "expected cpus_per_run of at least 1, got 0; pass 1"),
        ({"gpus_per_run": -1}, "expected gpus_per_run of at least 0, got -1; 0 trains on the CPU"),
        ({"gpus_per_run": float("nan")}, "expected gpus_per_run of at least 0, got nan; 0 trains on the CPU"),
        ({"address": "ray://head:10001"}, "expected the address .* as host:6379, got 'ray://head:10001'; start the"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RayExecutor(**arguments)


def test_no_cluster_at_the_address(options: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "PATIENCE", 2.0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        message = f"expected a Ray cluster at {address}, got: no answer within 2 seconds; start one with `ray start"
        with pytest.raises(ConnectionError, match=message):
            RayExecutor(address)(options, runs_of("aot"), Told())
    assert not ray.is_initialized()


def test_an_address_that_is_none(options: CompareOptions) -> None:
    with pytest.raises(ConnectionError, match="got: ValueError: Invalid address format: nonsense; start one"):
        RayExecutor("nonsense")(options, runs_of("aot"), Told())


def test_a_cluster_that_does_not_go_with_this_process(options: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise RuntimeError("Version mismatch:\n    Python: 3.12")

    monkeypatch.setattr(ray_cluster, "_check", lambda address: None)
    monkeypatch.setattr(ray, "init", refuse)
    message = "expected a Ray cluster at head:6379, got: Version mismatch: Python: 3.12; start one"
    with pytest.raises(ConnectionError, match=message):
        RayExecutor("head:6379")(options, runs_of("aot"), Told())


def test_a_run_larger_than_any_machine(options: CompareOptions, cluster: str) -> None:
    with pytest.raises(ValueError, match="expected a machine with 3 cores and 0 accelerators .* got .* 2 and 0; pass"):
        RayExecutor(cluster, cpus_per_run=3)(options, runs_of("aot"), Told())
    assert not ray.is_initialized()


@pytest.mark.parametrize(("wanted", "expected"), [(None, 1.0), (0, 0.0), (0.5, 0.5)])
def test_accelerators_of_a_run(monkeypatch: pytest.MonkeyPatch, wanted: float | None, expected: float) -> None:
    machines = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: machines)
    assert RayExecutor(gpus_per_run=wanted)._resources() == {"cpu": 1.0, "gpu": expected}
    monkeypatch.setattr(ray, "nodes", lambda: machines[:1])
    if wanted:
        with pytest.raises(ValueError, match="expected a machine with 1 cores and 0.5 accelerators .* got .* 4 and 0;"):
            RayExecutor(gpus_per_run=wanted)._resources()
    else:
        assert RayExecutor(gpus_per_run=wanted)._resources() == {"cpu": 1.0, "gpu": 0.0}


def test_a_process_that_is_connected_already(options: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="expected a process that is not connected to Ray, got one that is; call ray"):
        RayExecutor()(options, runs_of("aot"), Told())


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "peft_aot.compare.on_ray")
    with pytest.raises(ImportError, match=r'expected the extra "ray" .* got no Ray .*; do: pip install "peft_aot\[ray'):
        importlib.import_module("peft_aot.compare.on_ray")
