"""The first page says what a start prints."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.addresses import free_port
from tests.support.pages import snippets
from tests.support.server import Server

pytestmark = pytest.mark.integration

RUN = [sys.executable, "-m", "multicore_server", "run"]
PAGE = [it for it in snippets() if it.page.name == "quickstart.md"]
LOG = next(it.text for it in PAGE if "Listening at" in it.text)
APP = next(it.text for it in PAGE if it.language == "python")


def lines(log: str) -> list[str]:
    """Without what differs from one start to the next; two workers are ready in any order."""
    return sorted(re.sub(r"\d[\d.]*", "N", line) for line in log.splitlines())


def test_the_log_of_the_page_is_that_of_a_start(server: Server) -> None:
    server.write("main.py", APP)
    options = ("--workers", "2", "--port", str(server.port))
    env = {"MULTICORE_METRICS_BIND": f"127.0.0.1:{free_port()}"}
    server.start(*options, command=RUN, bind="", app="main:app", env=env, ready=2)
    server.wait_logged("metrics: http")
    assert lines(server.log) == lines(LOG)
