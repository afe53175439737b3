"""A headless Chromium that is driven as a person drives it: with keys. Speaks WebDriver, which is HTTP and JSON."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import requests

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
)  # fmt: skip
TAB, ENTER, CONTROL, SPACE = "\ue004", "\ue007", "\ue009", " "


class Browser:
    """A browser with one page open.

    Args:
        profile: An empty folder.
        dark: Whether the person prefers dark pages.
    """

    def __init__(self, profile: Path, dark: bool = False) -> None:
        flags = [*FLAGS, f"--user-data-dir={profile}", *(["--force-dark-mode"] if dark else [])]
        self._driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self._driver.stdout is not None
        port = next(found[1] for line in self._driver.stdout if (found := re.search(r"on port (\d+)\.", line)))
        self._url = f"http://127.0.0.1:{port}/session"
        options = {"binary": BROWSER, "args": flags}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._url += "/" + self._call("", {"capabilities": wanted})["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        requests.delete(self._url, timeout=30)
        self._driver.terminate()
        self._driver.wait(30)

    def open(self, url: str) -> None:
        self._call("/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a script in the page and return what it returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def type(self, keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def press(self, *chord: str) -> None:
        """Press keys together."""
        strokes = [{"type": "keyDown", "value": key} for key in chord]
        strokes += [{"type": "keyUp", "value": key} for key in reversed(chord)]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}\n{self.run('return document.body.innerText')}"
            time.sleep(0.05)

    def console(self) -> list[str]:
        """What stands in the console since the last look."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def picture(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Save what is seen."""
        self._call("/window/rect", {"width": width, "height": height})
        path.write_bytes(base64.b64decode(self._call("/screenshot")))

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        method = "GET" if body is None else "POST"
        answer = requests.request(method, self._url + path, json=body, timeout=60).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer
