"""What does the serving engine carry? Requests per second, latency, overload, peers, and whose answers it gives.

Sections, each in a file of `benchmarks/load`: `capacity` (the engine with 1, 8, 64 and 256 tasks beside the bare
backbone), `latency` (Poisson arrivals over HTTP, by tsung), `overload` (twice what can be answered), `peers` (LoRA
switched, mixed and merged), `isolation` (threads that ask while tasks come and go), `malformed` (wrong calls that
schemathesis makes up). Texts are real, tasks have random values, and outputs are compared before anything is timed.

    python benchmarks/serving_load.py [--only capacity ...] [--model FOLDER ...] [--data-dir FOLDER] [--quick]

Every point is a line of results/serving_load.jsonl, with all samples. A run that was stopped goes on where it was when
it is started again under the name it had, see --run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _backbone import named_backbone
from _record import RESULTS
from load import capacity, isolation, latency, malformed, overload, peers
from load.demand import read_texts
from load.server import NoServer
from load.setting import Book, Setting, console, quiet

SECTIONS = ("capacity", "latency", "overload", "peers", "isolation", "malformed")
DATA = "PEFT_AOT_DATA"
QUICK = {
    "counts": [1, 8],
    "mixes": ["zipf"],
    "requests": 64,
    "rounds": 2,
    "warmup": 1,
    "peer_requests": 16,
    "peer_rounds": 2,
    "seconds": 4.0,
    "latency_rounds": 1,
    "warmup_seconds": 4.0,
    "overload_seconds": 5.0,
    "isolation_requests": 1000,
    "malformed_requests": 200,
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), help="sections to measure")
    parser.add_argument("--model", type=Path, nargs="+", help="folders of backbones; default: the demo's MiniLM")
    data = os.environ.get(DATA)
    parser.add_argument(
        "--data-dir", type=Path, default=data and Path(data), help=f"data sets as on the hub; default: ${DATA}"
    )
    parser.add_argument("--quick", action="store_true", help="small numbers that say nothing, to see whether it works")
    parser.add_argument("--run", default=time.strftime("%Y-%m-%d"), help="name of the run; default: today")
    parser.add_argument("--output", type=Path, help="folder of the results; with --quick a temporary one")
    parser.add_argument("--server", default=f"{Path(sys.executable).with_name('peft-aot')} serve", help="its command")
    parser.add_argument("--budget", type=int, default=1024, help="MiB for rows of an engine in this process")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 64, 256], help="numbers of tasks")
    parser.add_argument("--mixes", nargs="+", default=["uniform", "zipf"], help="how tasks are drawn")
    parser.add_argument("--requests", type=int, default=1024, help="capacity: requests of a round")
    parser.add_argument("--rounds", type=int, default=15, help="capacity: rounds that count")
    parser.add_argument("--warmup", type=int, default=20, help="capacity: rounds before")
    parser.add_argument("--peer-requests", type=int, default=256, help="peers: requests of a round")
    parser.add_argument("--peer-rounds", type=int, default=7, help="peers: rounds that count")
    parser.add_argument("--seconds", type=float, default=60.0, help="latency: of arrivals per point")
    parser.add_argument("--latency-rounds", type=int, default=3, help="latency: rounds that these are split into")
    parser.add_argument("--warmup-seconds", type=float, default=90.0, help="latency, overload: of closed load before")
    parser.add_argument("--overload-seconds", type=float, default=600.0, help="overload: how long")
    parser.add_argument("--isolation-requests", type=int, default=100_000, help="isolation: answers to get")
    parser.add_argument("--threads", type=int, default=32, help="isolation: that ask")
    parser.add_argument("--malformed-requests", type=int, default=10_000, help="malformed: calls to be refused")
    arguments = parser.parse_args()
    if arguments.quick:
        for name, value in QUICK.items():
            setattr(arguments, name, value)
    arguments.counts = sorted(set(arguments.counts))
    return arguments


def main() -> None:
    """Measure, show and record."""
    given = parse()
    quiet()
    models = [path.resolve() for path in given.model or []]
    output = given.output and given.output.resolve()
    data_dir = given.data_dir and given.data_dir.resolve()
    texts, source = read_texts(data_dir)
    with named_backbone() as default, tempfile.TemporaryDirectory() as scratch:
        results = output or (Path(scratch) if given.quick else RESULTS)
        results.mkdir(parents=True, exist_ok=True)
        for model in models or [Path(default).resolve()]:
            book = Book(results, given.run)
            budget = given.budget << 20
            setting = Setting(model, texts, source, given.counts, given.mixes, budget, Path(scratch), book)
            console.rule(f"{setting.name}, {setting.dtype}, {source}")
            for section in given.only:
                began = time.monotonic()
                try:
                    sections(setting, given)[section]()
                except NoServer as error:
                    console.print(f"{section} is skipped: {error}", markup=False)
                console.print(f"{section}: {time.monotonic() - began:.0f} s")


def sections(setting: Setting, given: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return what measures each section."""
    command = shlex.split(given.server)
    return {
        "capacity": lambda: capacity.measure(setting, given.requests, given.rounds, given.warmup),
        "latency": lambda: latency.measure(setting, command, given.seconds, given.latency_rounds, given.warmup_seconds),
        "overload": lambda: overload.measure(setting, command, given.overload_seconds, given.warmup_seconds),
        "peers": lambda: peers.measure(setting, given.peer_requests, given.peer_rounds, given.warmup),
        "isolation": lambda: isolation.measure(setting, given.isolation_requests, given.threads),
        "malformed": lambda: malformed.measure(setting, command, given.malformed_requests),
    }


if __name__ == "__main__":
    main()
