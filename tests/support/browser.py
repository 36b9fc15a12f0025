"""Debian's Chromium, driven by Playwright: a page, and all that it complained of and asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Dialog, Error, Page, Request, sync_playwright

from tests.support.waiting import PATIENCE, wait_for

DASH = "\N{EN DASH}"  # where there is no value

# Of each element with a text of its own: that text, and its contrast to the ground (as WCAG 2 reckons it).
CONTRASTS = """() => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b]
        .map((part) => part / 255)
        .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const color = numbers(getComputedStyle(node).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const own = (node) => [...node.childNodes].some((it) => it.nodeType === 3 && it.data.trim());
    const all = [...document.body.querySelectorAll("*")].filter((it) => own(it) && it.checkVisibility());
    return all.map((node) => {
        const [a, b] = [light(numbers(getComputedStyle(node).color)), light(ground(node))];
        return [node.textContent.trim(), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


class Tab:
    """One page, opened at ``url``. ``complaints`` are of its console and its scripts, ``asked`` are the
    addresses of all its requests."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", self._dismiss)
        page.on("request", self._ask)
        page.goto(url)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _dismiss(self, dialog: Dialog) -> None:
        self.complaints.append(dialog.message)
        dialog.dismiss()

    def _ask(self, request: Request) -> None:
        self.asked.append(request.url)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def column(self, title: str) -> list[str]:
        """What the workers have in this column, one after the other."""
        return self.texts(f"#workers [data-title='{title}']")

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """As `tests.support.waiting.wait_for`, with the page as it is in the message."""
        try:
            return wait_for(condition, what, timeout)
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.text('body')}\n{self.complaints}") from None

    def wait_workers(self, count: int) -> None:
        """Wait until the page shows so many ready workers."""
        self.wait_for(lambda: self.column("state").count("● ready") == count, f"{count} ready workers")

    def contrasts(self) -> dict[str, float]:
        return dict(self.page.evaluate(CONTRASTS))

    def assert_clean(self) -> None:
        """Nothing was complained of, and no other host was asked for anything."""
        self.page.evaluate("1")  # what was reported meanwhile is now known
        assert self.complaints == []
        hosts = {urlsplit(address).netloc for address in self.asked}
        assert hosts == {urlsplit(self.url).netloc}


def find() -> str:
    """The browser; skips the test where there is none, but in the gate fails."""
    if path := shutil.which("chromium"):
        return path
    missing = "there is no chromium here (apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


OpenTab: TypeAlias = Callable[..., Tab]


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # root may not have the sandbox
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def tabs(browser: Browser) -> Iterator[OpenTab]:
    """Open pages, each in a browser profile of its own; the options are the profile's."""
    contexts = []

    def make(url: str, **options: Any) -> Tab:
        contexts.append(browser.new_context(**options))
        return Tab(contexts[-1].new_page(), url)

    yield make
    for context in contexts:
        try:
            context.close()
        except Error as exc:  # the browser is gone: the test has failed of that already
            print(exc)
