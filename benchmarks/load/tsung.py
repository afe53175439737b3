"""Load by tsung (Debian: `apt install tsung`), a load generator with Poisson arrivals: its scenario, its run, its log.

Open: users arrive at random times, whatever the server does, and each asks one question on a connection of its own.
Closed: a fixed number of users each ask the next question when the last one is answered. Knows nothing of engines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peft_aot.serving import Request

COMMAND = "tsung"
ADDRESSES = 16
"""Of the generator: each has 28,000 ports, and a port rests for a minute after its connection."""
SCENARIO = """<?xml version="1.0"?>
<!DOCTYPE tsung SYSTEM "/usr/share/tsung/tsung-1.0.dtd">
<tsung loglevel="warning" dumptraffic="protocol">
  <clients><client host="localhost" use_controller_vm="true" maxusers="60000">{addresses}</client></clients>
  <servers><server host="127.0.0.1" port="{port}" type="tcp"/></servers>
  <load{duration}>
    <arrivalphase phase="1" duration="{seconds}" unit="second"><users {users} unit="second"/></arrivalphase>
  </load>
  <options><option name="file_server" id="bodies" value="{bodies}"/></options>
  <sessions><session name="ask" probability="100" type="ts_http">{begin}
    <setdynvars sourcetype="file" fileid="bodies" delimiter="&#9;" order="iter"><var name="body"/></setdynvars>
    <request subst="true"><http url="/v1/classify" method="POST" version="1.1" content_type="application/json"
      contents="%%_body%%"/></request>
  {end}</session></sessions>
</tsung>
"""


@dataclass(frozen=True)
class Load:
    """What a generator saw.

    Attributes:
        milliseconds: How long each answer with status 200 took.
        ended: When each of them ended, in seconds of the clock.
        statuses: Answers by status.
        errors: What else happened, by tsung's names.
        started: Users that arrived.
    """

    milliseconds: Sequence[float]
    ended: Sequence[float]
    statuses: Counter[str]
    errors: Counter[str]
    started: int

    @property
    def unanswered(self) -> int:
        """Users that got no answer of any status; of open load only."""
        return self.started - sum(self.statuses.values())

    def rate(self) -> float:
        """Return answers per second of status 200, without the first and the last tenth of the time."""
        if len(self.ended) < 2:
            return 0.0
        first, last = min(self.ended), max(self.ended)
        low, high = first + 0.1 * (last - first), last - 0.1 * (last - first)
        return sum(low <= end <= high for end in self.ended) / (high - low)

    def percentiles(self) -> dict[str, float]:
        """Return p50, p95 and p99 of answers with status 200, in ms."""
        return {f"p{share}": round(percentile(self.milliseconds, share), 3) for share in (50, 95, 99)}


def percentile(samples: Sequence[float], share: int) -> float:
    """Return a percentile; NaN of nothing."""
    if len(samples) < 2:
        return samples[0] if samples else float("nan")
    return statistics.quantiles(samples, n=100, method="inclusive")[share - 1]


def missing() -> str | None:
    """Return why there is no generator, or None if there is one."""
    return None if shutil.which(COMMAND) else f"no {COMMAND} on PATH; on Debian: apt install tsung"


def open_load(port: int, requests: Iterable[Request], rate: float, seconds: float, folder: Path) -> Load:
    """Let users arrive as a Poisson process.

    Args:
        port: The server's.
        requests: What they ask, in turn; from the beginning again when there are no more.
        rate: Users per second.
        seconds: How long they arrive; the run ends when all are answered.
        folder: A new folder for files; tsung takes no spaces in its path.
    """
    return _run(port, requests, f'arrivalrate="{rate:.4f}"', seconds, folder, closed=False)


def closed_load(port: int, requests: Iterable[Request], clients: int, seconds: float, folder: Path) -> Load:
    """Let a number of clients ask one question after the other; see `open_load`."""
    return _run(port, requests, f'maxnumber="{clients}" arrivalrate="{clients}"', seconds, folder, closed=True)


def _run(port: int, requests: Iterable[Request], users: str, seconds: float, folder: Path, closed: bool) -> Load:
    folder.mkdir(parents=True)
    bodies = folder / "bodies.txt"
    lines = (json.dumps({"task": request.task, "text": request.text}) + "\n" for request in requests)
    bodies.write_text("".join(lines), encoding="utf-8")
    whole = max(1, round(seconds))
    scenario = SCENARIO.format(
        addresses="".join(f'<ip value="127.0.0.{number}"/>' for number in range(1, ADDRESSES + 1)),
        port=port,
        duration=f' duration="{whole}" unit="second"' if closed else "",
        seconds=whole,
        users=users,
        bodies=bodies,
        begin='<for from="1" to="100000000" var="turn">' if closed else "",
        end="</for>" if closed else "",
    )
    (folder / "scenario.xml").write_text(scenario, encoding="utf-8")
    command = [COMMAND, "-n", "-f", str(folder / "scenario.xml"), "-l", str(folder / "log"), "start"]
    done = subprocess.run(command, env={**os.environ, "HOME": str(folder)}, capture_output=True, text=True, check=False)
    logs = list((folder / "log").glob("*/tsung.dump"))
    if done.returncode or len(logs) != 1:
        raise RuntimeError(
            f"expected {COMMAND} to run and to leave one log, got {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    statistics_file = logs[0].with_name("tsung.log")
    return read_load(logs[0].read_text(encoding="utf-8"), statistics_file.read_text(encoding="utf-8"))


def read_load(dump: str, log: str) -> Load:
    """Read what tsung leaves.

    Args:
        dump: tsung.dump, of dumptraffic="protocol": date;pid;id;method;host;URL;status;size;duration;...
        log: tsung.log, whose last "stats: NAME NOW TOTAL" has the total of a counter.

    Raises:
        ValueError: A dump with other columns.
    """
    head, *rows = dump.splitlines() or [""]
    columns = head.lstrip("#").split(";")
    if "HTTP status" not in columns or "duration" not in columns:
        raise ValueError(f"expected a dump with the columns HTTP status and duration, got {head!r}; use tsung 1.7")
    places = [columns.index(name) for name in ("date", "HTTP status", "duration")]
    milliseconds, ended = [], []
    statuses: Counter[str] = Counter()
    for row in rows:
        fields = row.split(";")
        date, status, duration = (fields[place] for place in places)
        statuses[status] += 1
        if status == "200":
            milliseconds.append(float(duration))
            ended.append(float(date))
    totals = {name: int(total) for name, total in re.findall(r"^stats: (\S+) \d+ (\d+)$", log, re.MULTILINE)}
    errors = Counter({name: total for name, total in totals.items() if name.startswith("error")})
    return Load(milliseconds, ended, statuses, errors, totals.get("users_count", 0))
