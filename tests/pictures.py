"""The pictures of the docs: the live page and `monit`, of a real server after ten minutes.

    python -m tests.pictures [DIRECTORY] [--minutes 10]

Needs chromium. There is a light load, a reload, a worker that crashes, and some errors.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console

from multicore_server.cli.figures import take_reading
from multicore_server.cli.monit_view import Scene, draw
from multicore_server.cli.servers import RunningServer
from tests.support.addresses import LOCAL
from tests.support.apps import source
from tests.support.browser import launched, tabs
from tests.support.monitored_server import MonitoredServer
from tests.support.server import Server

PICTURES = Path(__file__).parents[1] / "docs/pictures"
CLIENTS = 4
PAUSE = 0.05  # seconds between two requests of a client, on average
WIDTH, HEIGHT = 1280, 832
# Columns and lines of the terminal.
TERMINAL = os.terminal_size((132, 20))


@contextlib.contextmanager
def load(url: str) -> Iterator[None]:
    """Clients that ask more, then less, then more."""
    ended = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=10) as client:
            while not ended.wait(random.expovariate(1 / PAUSE) / (1.3 + math.sin(time.monotonic() / 40))):
                with contextlib.suppress(httpx.HTTPError):
                    client.get("/sold-out" if math.sin(time.monotonic() / 25) > 0.98 else "/items/7")

    clients = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        ended.set()
        for client in clients:
            client.join()


def live(monitored: MonitoredServer, minutes: float) -> None:
    """What happens to the server meanwhile."""
    for share, happens in ((0.35, reload), (0.4, crash), (0.25, lambda _: None)):
        time.sleep(minutes * 60 * share)
        happens(monitored)


def reload(monitored: MonitoredServer) -> None:
    monitored.command("reload")


def crash(monitored: MonitoredServer) -> None:
    os.kill(monitored.server.worker_of(2), signal.SIGSEGV)


def take_page(monitored: MonitoredServer, directory: Path) -> None:
    with launched() as browser, tabs(browser) as open_tab:
        tab = open_tab(f"http://{LOCAL}:{monitored.port}/", viewport={"width": WIDTH, "height": HEIGHT})
        tab.wait_workers(4)
        tab.page.wait_for_timeout(6000)  # the figures of the table are of the last 5 s
        tab.page.screenshot(path=directory / "page.png")


def take_monit(monitored: MonitoredServer, directory: Path) -> None:
    server = RunningServer(monitored.socket)
    scene = Scene(take_reading(server))
    for _ in range(3):
        time.sleep(1)
        scene.update(take_reading(server))
    console = Console(
        file=io.StringIO(), record=True, width=TERMINAL.columns, force_terminal=True,
        color_system="truecolor", markup=False, highlight=False, emoji=False,
    )  # fmt: skip
    console.print(draw(scene, TERMINAL), end="")
    drawn = console.export_svg(title="multicore-server monit", unique_id="monit")
    # Without the fonts that it would load from elsewhere: the widths of its texts are fixed.
    (directory / "monit.svg").write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=PICTURES)
    parser.add_argument("--minutes", type=float, default=10)
    chosen = parser.parse_args()
    chosen.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as own:
        monitored = MonitoredServer(Server(Path(own), source("shop"), "shop"))
        try:
            monitored.start("-w", "4", app="shop:app", ready=4)
            with load(monitored.server.url):
                live(monitored, chosen.minutes)
                take_page(monitored, chosen.directory)
                take_monit(monitored, chosen.directory)
        finally:
            monitored.server.end()
            monitored.close()


if __name__ == "__main__":
    main()
