"""Instructions a request: what callgrind has counted, and how it compares with the baseline."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import baseline, instructions, lockstep, slowed
from tests.benchmarks.baseline import Baseline
from tests.benchmarks.callgrind import Counts, parse

PROFILE = """# callgrind format
version: 1
creator: callgrind-3.19.0
pid: 19933
part: 2

desc: Trigger: dump

positions: line
events: Ir sysCount sysTime
{summary}
fn=(1) main
16 400 7 1

{totals}
"""
WAS = Counts(100_000, 9.0)
VERSIONS = {"uvicorn": "0.54.0", "python": "3.11.7"}


# --- what callgrind writes ---


def test_the_totals_of_a_profile() -> None:
    profile = PROFILE.format(summary="summary: 8 9 10", totals="totals: 111766076 9202 130")
    assert parse(profile) == Counts(111_766_076, 9202)


def test_events_that_did_not_happen_are_left_out() -> None:
    assert parse(PROFILE.format(summary="", totals="totals: 800")) == Counts(800, 0)


def test_a_profile_that_ends_early_is_refused() -> None:
    with pytest.raises(ValueError, match="not a profile"):
        parse(PROFILE.format(summary="", totals=""))


def test_a_profile_without_system_calls_is_refused() -> None:
    with pytest.raises(ValueError, match="without sysCount"):
        parse("events: Ir\ntotals: 800\n")


# --- the comparison ---


@pytest.mark.parametrize(
    ("now", "worse"),
    [
        (Counts(102_000, 9.0), False),
        (Counts(102_001, 9.0), True),
        (Counts(50_000, 9.75), False),
        (Counts(50_000, 9.8), True),
        (Counts(50_000, 2.0), False),
    ],
)
def test_two_percent_more_or_a_call_is_worse(now: Counts, worse: bool) -> None:
    assert baseline.is_worse(WAS, now) is worse


def test_what_has_no_baseline_is_not_worse() -> None:
    assert not baseline.is_worse(None, Counts(10**9, 99))
    assert baseline.row("hello", "ours", None, WAS) == "| hello | ours | | 100,000 | new | | 9.0 |"


def test_what_is_worse_stands_out_in_the_table() -> None:
    better, worse, often = Counts(98_700, 9.04), Counts(103_000, 9.04), Counts(100_000, 10.0)
    assert baseline.row("hello", "ours", WAS, better) == (
        "| hello | ours | 100,000 | 98,700 | -1.3 % | 9.0 | 9.0 |"
    )
    assert baseline.row("hello", "ours", WAS, worse).endswith("| **+3.0 %** | 9.0 | 9.0 |")
    assert baseline.row("hello", "ours", WAS, often).endswith("| +0.0 % | 9.0 | **10.0** |")


def test_where_calls_are_many_two_percent_count() -> None:
    assert not baseline.is_worse(Counts(1, 100.0), Counts(1, 102.0))
    assert baseline.is_worse(Counts(1, 100.0), Counts(1, 102.1))


def test_other_versions_are_named() -> None:
    now = {"uvicorn": "0.55.0", "python": "3.11.7", "uvloop": "0.23.0"}
    assert list(baseline.differences(VERSIONS, now)) == [
        "uvicorn 0.54.0, now 0.55.0",
        "uvloop none, now 0.23.0",
    ]


# --- the file ---


def measured(**cells: float) -> Baseline:
    found: Baseline = {"versions": VERSIONS, "cells": {}}
    for cell, count in cells.items():
        baseline.note(found["cells"], cell, "ours", Counts(count, 9.004))
    return found


def test_cells_that_are_not_measured_again_stay() -> None:
    both = baseline.merged(measured(hello=1, wsgi=2), measured(wsgi=3))
    assert both == measured(hello=1, wsgi=3)


def test_cells_of_other_versions_do_not_stay() -> None:
    before = measured(hello=1, wsgi=2)
    before["versions"] = {**VERSIONS, "uvicorn": "0.53.0"}
    assert baseline.merged(before, measured(wsgi=3)) == measured(wsgi=3)


def test_what_is_written_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(baseline.dumps({"3.11": measured(hello=100_000.4)}))
    found = baseline.read(path)["3.11"]
    assert baseline.find(found, "hello", "ours") == Counts(100_000, 9.0)
    assert baseline.find(found, "hello", "gthread") is None
    assert baseline.find(found, "wsgi", "ours") is None
    assert baseline.read(tmp_path / "none.json") == {}


# --- the run ---


class Run:
    """`instructions.run`, where ``counts`` are what the servers cost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts = {"ours": WAS, "uvicorn-worker": WAS}

    def __call__(self, *, update: bool = False) -> int:
        return instructions.run(["hello"], ["ours"], self.path, update=update)

    def measure(self, *_: Any) -> Iterator[tuple[str, str, Counts]]:
        for server, counts in self.counts.items():
            yield "hello, close, c=1", server, counts


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(tmp_path / "baseline.json")
    monkeypatch.setattr(instructions, "measure", made.measure)
    monkeypatch.setattr(instructions, "versions", lambda: VERSIONS)
    return made


def test_a_regression_of_ours_is_the_exit_status(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(update=True) == 0
    assert run() == 0
    run.counts["ours"] = Counts(103_000, 9.0)
    assert run() == 1
    assert "| hello, close, c=1 | ours | 100,000 | 103,000 | **+3.0 %** |" in capsys.readouterr().out


def test_a_regression_of_a_peer_is_not(run: Run) -> None:
    run(update=True)
    run.counts["uvicorn-worker"] = Counts(103_000, 9.0)
    assert run() == 0


def test_an_update_makes_it_the_new_baseline(run: Run) -> None:
    run(update=True)
    run.counts["ours"] = Counts(103_000, 9.0)
    assert run(update=True) == 0
    assert run() == 0


def test_an_update_leaves_other_versions_of_python(run: Run) -> None:
    run.path.write_text(json.dumps({"2.7": measured(hello=1)}))
    run(update=True)
    assert baseline.read(run.path).keys() == {"2.7", instructions.PYTHON}


def test_without_a_baseline_there_is_nothing_to_compare(run: Run) -> None:
    with pytest.raises(SystemExit, match=r"has nothing for Python .* \(--update writes it\)"):
        run()
    assert not run.path.exists()


def test_the_baseline_of_the_repository_can_be_read() -> None:
    for python, found in baseline.read(instructions.BASELINE).items():
        assert python.startswith("3.")
        assert found["versions"].keys() >= {"python", "uvicorn", "uvloop", "httptools"}
        assert all(baseline.find(found, cell, "ours") for cell in found["cells"])


# --- the worker's pace ---


def test_times_are_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"{module}.{name}" for module, times in slowed.TIMES.items() for name in times]
    before = {path: pkgutil.resolve_name(path) for path in paths}
    for path, seconds in before.items():
        monkeypatch.setattr(path, seconds)  # and back at the end
    slowed.slow_down()
    after = {path.rpartition(".")[2]: pkgutil.resolve_name(path) for path in paths}
    assert after["QUICK"] == tuple(100 * seconds for seconds in before["multicore_server.worker.cycle.QUICK"])
    assert after["BRISK"] == 100 * before["multicore_server.worker.heart.BRISK"]
    assert after["BEAT"] == 9 * before["multicore_server.worker.heart.BEAT"]


# --- the client ---


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    status = 200

    def do_GET(self) -> None:
        self.server.asked.append(self.headers.get("connection"))  # type: ignore[attr-defined]
        self.send_response(self.status)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def idle() -> Iterator[int]:
    """A process that waits for something, in the place of a worker."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


@pytest.mark.parametrize("close", [False, True])
def test_a_fixed_number_of_requests(server: ThreadingHTTPServer, idle: int, close: bool) -> None:
    lockstep.requests(server.server_port, idle, 8, 4, close=close)
    assert server.asked == ["close" if close else None] * 8  # type: ignore[attr-defined]


def test_a_failed_request_ends_the_benchmark(
    server: ThreadingHTTPServer, idle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "status", 500)
    with pytest.raises(SystemExit, match="status 500"):
        lockstep.requests(server.server_port, idle, 1, 1, close=True)


def test_a_worker_stands_still_while_requests_are_sent(idle: int) -> None:
    def state() -> str:
        return Path(f"/proc/{idle}/stat").read_text().rpartition(")")[2].split()[0]

    with lockstep.stopped(idle):
        assert state() == "T"
    assert os.waitid(os.P_PID, idle, os.WCONTINUED | os.WNOWAIT) is not None
