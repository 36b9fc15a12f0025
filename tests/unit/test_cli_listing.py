"""What `ps`, `show` and `events` print."""

from __future__ import annotations

from typing import Any

import pytest

from multicore_server.cli import listing
from multicore_server.cli.figures import Reading, rates
from multicore_server.cli.health import Health, Level
from multicore_server.cli.servers import NoAnswerError
from tests.support.reports import event, status, worker
from tests.unit.scripted_server import ScriptedServer


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BETWEEN", 0.0)


ERRORED = "instance 1 errored: exited too often, no longer restarted"


def requests(total: int, **codes: int) -> dict[str, Any]:
    counted = {name.removeprefix("_"): count for name, count in codes.items()}
    return {"in_progress": 0, "total": total, "durations": {}, "codes": counted}


def test_ps_prints_each_server_and_says_who_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    silent = NoAnswerError("it does not answer")
    servers = [
        ScriptedServer(status(worker(0, pid=None), worker(1, state="errored"), reloading=True)),
        ScriptedServer(silent),
        ScriptedServer(status(worker(0), name="web\x1b[J", stopping=True)),
    ]
    assert listing.print_workers(list(servers)) == [silent]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "app:app  pid 4000  http://127.0.0.1:8000  1 of 2 ready  up 2h  reloading  " + ERRORED
    assert lines[1].split() == [
        "id", "name", "pid", "uptime", "restarts", "status", "cpu", "mem", "req/s", "5xx/s", "499/s", "in",
        "progress", "conns",
    ]  # fmt: skip
    assert lines[2].split() == [
        "0",
        "app:app",
        "-",
        "2m",
        "3",
        "ready",
        "-",
        "90.0mb",
        "0",
        "0",
        "0",
        "3",
        "12",
    ]
    assert lines[3].split()[2:6] == ["4712", "2m", "3", "errored"]
    assert lines[4] == "web\\x1b[J  pid 4000  http://127.0.0.1:8000  1 of 1 ready  up 2h  stopping"


def test_a_server_that_falls_silent_between_two_readings(capsys: pytest.CaptureFixture[str]) -> None:
    gone = NoAnswerError("it does not answer")
    assert listing.print_workers([ScriptedServer(status(worker(0)), gone)]) == [gone]
    assert capsys.readouterr().out == ""


def test_colours_are_for_terminals() -> None:
    before, now = Reading(0.0, status(worker(0)), {}), Reading(1.0, status(worker(0, state="errored")), {})
    assert listing._rows(now, before)[0][5].color == "red"
    sections = dict(
        listing._sections(Reading(0.0, status(worker(0)), {}), {}, Health(Level.OK, []), color=True)
    )
    assert "instance 0: \x1b[32mready\x1b[0m" in sections
    text = listing.event_line(event("no", level="error"), color=True)
    assert text.endswith("\x1b[31merror    instance=0 gen=1 pid=4001 no\x1b[0m")


def test_errors_are_shown_a_second_and_as_a_share(capsys: pytest.CaptureFixture[str]) -> None:
    before = Reading(0.0, status(worker(0, requests=requests(100, _2xx=100))), {})
    now = Reading(2.0, status(worker(0, requests=requests(130, _2xx=116, _5xx=9, _499=5))), {})
    assert [cell.text for cell in listing._rows(now, before)[0][9:11]] == ["4.5 30.0%", "2.5"]
    heading = listing._heading(now, before, color=False)
    assert heading.endswith("up 2h  30.0% of the responses are 5xx")
    assert listing._heading(now, before, color=True).startswith("\x1b[31m")
    its = rates(before, now)[0]
    assert listing._about_worker(now.status["workers"][0], its)["errors"] == (
        "5xx/s 4.5 30.0%, 499/s 2.5; 9 and 5 in all"
    )


def test_a_blocked_worker_looks_blocked(capsys: pytest.CaptureFixture[str]) -> None:
    stuck = status(worker(0, blocked=7.0), worker(1))
    listing.print_server(ScriptedServer(stuck, stuck))
    out = capsys.readouterr().out
    assert "  health     amber: instance 0 blocked for 7.0 s\n" in out
    assert "instance 0: blocked 7s\n" in out
    assert "instance 1: ready\n" in out
    listing.print_workers([ScriptedServer(stuck, stuck)])
    heading, _, first, second = capsys.readouterr().out.splitlines()
    assert heading.endswith("instance 0 blocked for 7.0 s")
    assert ("  blocked 7s  " in first, "  ready  " in second) == (True, True)
    now = Reading(0.0, stuck, {})
    assert [row[5].color for row in listing._rows(now, now)] == ["yellow", "green"]


def test_show_prints_all_about_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    replaced = worker(1, wanted="memory", next_restart=2000.0, unstable=2, restarts={}, started=None)
    first = status(worker(0, requests=requests(100)), replaced)
    second = status(worker(0, requests=requests(150)), replaced, events=[event("x")] * 12)
    second["settings"] = {"workers": "2", "max_memory_restart": str(300 * 1024**2), "log_max_size": "none"}
    listing.print_server(ScriptedServer(first, second))
    out = capsys.readouterr().out
    for text in (
        "  pid        4000, monitor 5",
        "  workers    2 of 2 ready, room for 64",
        "  state      serving",
        "  health     ok",
        "  errors       5xx/s 0, 499/s 0; 0 and 0 in all",
        "  queue        p95 -",
        "  restarts   2 exit",
        "  reloads    none",
        "  versions   multicore_server 0.1.0, gunicorn 27, uvicorn 0.5, Python 3",
        "instance 0: ready",
        "  restarts     2 exit, 1 reload; 0 unstable",
        "  memory       90.0mb, 60.0mb of its own, limit 100.0mb",
        "3 in progress, 150 in all",
        "  connections  12, 0 WebSockets, 30 accepted in all",
        "  wanted       about to be replaced (memory)",
        "  restarts     none; 2 unstable",
        "  next start   1970-01-01",
        "  workers             2",
        "  max_memory_restart  300.0mb",
        "  log_max_size        none",
    ):
        assert text in out
    assert out.count("instance=0 gen=1 pid=4001 x") == listing.EVENTS


@pytest.mark.parametrize(
    ("changes", "state"),
    [({"stopping": True, "reloading": True}, "stopping"), ({"reloading": True}, "reloading")],
)
def test_the_state_of_a_server(changes: dict[str, bool], state: str) -> None:
    assert listing._about(status(worker(0), **changes))["state"] == state
