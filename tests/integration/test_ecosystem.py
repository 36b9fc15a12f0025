"""An ecosystem file with real servers: `start`, what is said of each, their logs, their end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.addresses import free_port
from tests.support.command_line import Operator
from tests.support.processes import gone
from tests.support.waiting import PATIENCE, wait_for

APP = """
import os

number = 0

async def app(scope, receive, send):
    global number
    if scope["type"] == "http":
        number += 1
        print(f"{os.environ['GREETING']} {number}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(os.getppid()).encode()})
"""
FILE = """
[shop]
app = "shop:app"
cwd = "code"
port = {port}
workers = 1
access_log = false
metrics_bind = "none"
env = {{ GREETING = "good morning" }}
log = {{ file = "../shop.log", size = 500, keep = 99 }}

[broken]
app = "broken:app"
cwd = "code"
metrics-bind = "none"
"""


class Shop:
    def __init__(self, directory: Path, operator: Operator, ending: list[int]) -> None:
        self.directory = directory
        self.port = free_port()
        self.operator = operator
        self._ending = ending
        (directory / "code").mkdir()
        (directory / "code/shop.py").write_text(APP)
        (directory / "code/broken.py").write_text("import databse\n")
        self.file = directory / "multicore.toml"
        self.file.write_text(FILE.format(port=self.port))
        operator.env["XDG_STATE_HOME"] = str(directory / "state")

    def start(self, *names: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = self.operator.run("start", str(self.file), *names, status=status)
        self._ending += map(int, re.findall(r"pid (\d+)", done.stdout))
        return done

    def get(self) -> int:
        """The pid of the arbiter."""
        return int(httpx.get(f"http://127.0.0.1:{self.port}/", timeout=PATIENCE).text)


@pytest.fixture
def shop(tmp_path: Path, operator: Operator, ending: list[int]) -> Shop:
    return Shop(tmp_path, operator, ending)


def test_start_says_of_each_app_whether_it_is_ready(shop: Shop, operator: Operator) -> None:
    done = shop.start(status=1)
    pid = shop.get()
    log = shop.directory / "code/../shop.log"
    expected = f"shop: ready, pid {pid}, http://127.0.0.1:{shop.port}, 1 worker, log {log}\n"
    assert done.stdout == expected
    assert re.fullmatch(
        "broken: not started: no worker could boot: .*No module named 'databse'; `logs broken` shows more\n",
        done.stderr,
    )
    assert "Traceback (most recent call last):\n" in operator.run("logs", "broken").stdout

    assert shop.start("shop").stdout == f"shop: runs already (pid {pid}); `reload shop` loads new code\n"
    script = Path(sys.executable).with_name("mcs")
    listed = subprocess.run(
        [script, "ls"], env={**os.environ, **operator.env}, capture_output=True, check=True
    )
    assert listed.stdout.startswith(b"shop  pid ")
    assert operator.json("show", "shop")["logs"] == [str(log)]
    assert f"run shop:app --name shop --port {shop.port}" in operator.run("startup").stdout, "of what runs"

    assert "reload done" in operator.run("reload", "shop").stdout
    assert "stopped\n" in operator.run("stop", "all").stdout
    assert gone(pid)
    assert "Shutting down" in operator.run("logs", "-s", "shop", "-n", "99").stdout, (
        "of a server that has ended"
    )
    assert "no server of this user is running" in operator.refused("logs", "nobody")


def test_logs_are_followed_over_rotations(shop: Shop, operator: Operator) -> None:
    shop.start("shop")
    following = operator.begin("logs", "shop", "-f", "--lines", "9999")
    assert following.stdout is not None
    for _ in range(120):
        shop.get()
    wait_for(lambda: len(list(shop.directory.glob("shop.log.*"))) > 1, "rotations")
    for _ in range(40):
        shop.get()
    said: list[str] = []
    while len(said) < 160:
        said += [line for line in [following.stdout.readline()] if line.startswith("good morning")]
    assert said == [f"good morning {number}\n" for number in range(1, 161)]
    assert operator.run("logs", "shop", "--lines", "160").stdout == "".join(said)
