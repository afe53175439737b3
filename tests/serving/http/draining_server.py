"""A server of a fake engine, as a process: `python draining_server.py SECONDS_PER_TEXT DRAIN_DELAY`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from peft_aot.serving.http.running import serve
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import FakeEngine


class Telling(FakeEngine):
    """Says at its end how many texts it has answered."""

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        super().close(drain, timeout)
        print(f"closed after {self.answered} answers", flush=True)


if __name__ == "__main__":
    engine = Telling(seconds=float(sys.argv[1]))
    serve(engine, Settings(drain_delay=float(sys.argv[2])), "127.0.0.1", 0, lambda url: print(url, flush=True))
