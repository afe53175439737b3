"""The page: what it loads, and, where there is a browser, what a person with a keyboard can do with it."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from peft_aot.serving.http.app import make_app
from peft_aot.serving.http.auth import Keys
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import EVERY_KIND, FakeEngine, task
from serving.http.browser import BROWSER, CONTROL, DRIVER, ENTER, SPACE, TAB, Browser

NASTY = "<img src=x onerror=alert(1)>"
needs_browser = pytest.mark.skipif(
    BROWSER is None or DRIVER is None, reason="no browser (chromium) with its driver (chromedriver) is installed"
)


@pytest.mark.parametrize(("path", "media_type"), [("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")])
def test_parts_of_the_page_need_no_key_and_allow_nothing_else(make_client: Any, path: str, media_type: str) -> None:
    response = make_client(keys=Keys(b"key")).get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == f"text/{media_type}; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_it_asks_for_nothing_outside(client: TestClient) -> None:
    page, style, script = (client.get(path).text for path in ("/", "/page.css", "/page.js"))
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"data:,", "page.css", "page.js", "docs"}
    assert not re.search(r"@import|url\(", style)
    assert not re.search(r"https?:|import\(|innerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    assert not re.search(r"<script>|<style>|\son\w+=|\sstyle=", page)


def test_every_field_has_a_label(client: TestClient) -> None:
    page = client.get("/").text
    labelled = set(re.findall(r'for="([^"]+)"', page))
    for field in re.findall(r"<(?:input|textarea)[^>]*>", page):
        name = re.search(r'id="([^"]+)"', field)
        assert name is not None
        assert name[1] in labelled or "aria-label=" in field
    assert '<html lang="en">' in page
    assert 'role="alert"' in page
    assert 'role="status"' in page


@contextmanager
def served(engine: FakeEngine, **settings: Any) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server = uvicorn.Server(uvicorn.Config(make_app(engine, Settings(**settings)), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield url
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def text(browser: Browser, selector: str) -> str:
    return str(browser.run(f"return document.querySelector('{selector}').innerText"))


def cards(browser: Browser) -> dict[str, str]:
    """What each answer shows, by task."""
    found = browser.run("return [...document.querySelectorAll('article')].map(one => one.innerText)")
    return {name: " ".join(rest.split()) for name, _, rest in (each.partition("\n") for each in found)}


def tab_to(browser: Browser, element: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(40):
        if browser.run(f"return document.activeElement?.id === '{element}'"):
            return
        browser.press(TAB)
    raise AssertionError(f"{element} is not reached with Tab")


@needs_browser
def test_with_keys_alone(browser: Browser) -> None:
    tasks = (*EVERY_KIND, task(NASTY, labels=(NASTY, "positive")))
    with served(FakeEngine(tasks)) as url:
        browser.open(url)
        browser.wait("document.querySelectorAll('#tasks input').length === 6")
        assert text(browser, "#backbone") == "fake-backbone · 6 tasks"
        tab_to(browser, "text")
        browser.press(CONTROL, "a")
        browser.type("A good day for Ada")
        browser.press(CONTROL, ENTER)
        assert text(browser, "#error") == "Choose at least one task."
        tab_to(browser, "filter")
        browser.type("sent")
        assert text(browser, "#chosen") == "0 chosen, 1 shown"
        browser.press(ENTER)  # asks nothing
        for _ in range(3):
            browser.press(TAB)
        browser.press(SPACE)
        assert text(browser, "#chosen") == "1 chosen, 1 shown"
        tab_to(browser, "send")
        browser.press(ENTER)
        browser.wait("document.querySelectorAll('article').length === 1")
        assert cards(browser) == {"sentiment": "2 labels positive 90.0 % negative 10.0 %"}
        assert re.fullmatch(r"1 answer in \d+ ms\.", text(browser, "#status"))
        assert text(browser, "#error") == ""
        browser.run("document.getElementById('filter').focus(); document.getElementById('filter').select()")
        browser.type("\ue003")
        tab_to(browser, "all")
        browser.press(ENTER)
        tab_to(browser, "text")
        browser.press(CONTROL, ENTER)
        browser.wait("document.querySelectorAll('article').length === 6")
        shown = cards(browser)
        assert shown["moods"] == "any labels glad 90.0 % calm 30.0 % sad 10.0 %"
        assert shown["length"] == "number 18.00"
        assert shown["names"].split() == "words A NAME 75 % good day for Ada NAME 75 %".split()
        assert shown["vectors"] == "vector [0.500, 0.500, 0.500, 0.500] of 4"
        assert NASTY in shown
        assert browser.run("return document.querySelectorAll('#tasks img, article img').length") == 0
        assert browser.run("return getComputedStyle(document.querySelector('.bar')).width") != "0px"
        assert browser.run("return document.querySelectorAll('mark').length") == 2
        browser.wait("document.getElementById('load-rate').textContent > 0")
        assert text(browser, "#load-p50").endswith(" ms")
        assert browser.console() == []


@needs_browser
def test_a_second_text_and_what_some_tasks_say_of_it(browser: Browser) -> None:
    with served(FakeEngine()) as url:
        browser.open(url)
        browser.wait("document.querySelectorAll('#tasks input').length === 5")
        tab_to(browser, "text")
        browser.press(CONTROL, "a")
        browser.type("ab")
        browser.press(TAB)
        browser.type("cd")
        browser.run("document.getElementById('all').click()")
        browser.press(CONTROL, ENTER)
        browser.wait("document.querySelectorAll('article').length === 5")
        shown = cards(browser)
        assert shown["length"] == "number 5.000"
        assert shown["names"] == "words expected one text, got a pair; send one text"
        assert text(browser, "#status").endswith("1 failed.")


@needs_browser
def test_a_key_and_what_is_shown_without(browser: Browser) -> None:
    with served(FakeEngine(), keys=Keys(b"the-key")) as url:
        browser.open(url)
        browser.wait("document.getElementById('error').textContent")
        assert text(browser, "#error").startswith("expected a key, got none")
        assert text(browser, "#load-rate") == "–"
        assert browser.run("return document.getElementById('key-box').open")
        tab_to(browser, "key")
        browser.type("the-key")
        browser.press(TAB)
        browser.wait("document.querySelectorAll('#tasks input').length === 5")
        assert text(browser, "#error") == ""
        browser.run("document.querySelector('#tasks input').click()")
        browser.press(CONTROL, ENTER)
        browser.wait("document.querySelectorAll('article').length === 1")


@needs_browser
def test_tasks_come_and_go_and_so_does_the_server(browser: Browser) -> None:
    engine = FakeEngine((task("first"),))
    with served(engine) as url:
        browser.open(url)
        browser.wait("document.querySelectorAll('#tasks input').length === 1")
        engine.add_task("second", "org/second")
        browser.wait("document.querySelectorAll('#tasks input').length === 2")
        browser.run("document.getElementById('all').click()")
        browser.run("document.querySelector('[data-task=first]').focus()")
        engine.remove_task("second")
        engine.add_task("third", "org/third")  # as many as before
        browser.wait("document.querySelector('[data-task=third]')")
        assert browser.run("return document.activeElement.dataset.task") == "first", "the focus stays"
        engine.remove_task("third")
        browser.wait("document.querySelectorAll('#tasks input').length === 1")
        assert text(browser, "#chosen") == "1 chosen, 1 shown"
    browser.press(CONTROL, ENTER)
    browser.wait("document.getElementById('error').textContent")
    assert text(browser, "#error") == "The server cannot be reached."
    browser.wait("document.getElementById('load-rate').textContent === '–'")
