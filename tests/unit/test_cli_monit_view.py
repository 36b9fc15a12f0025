"""What monit draws: all of it fits the screen, and nothing that an app says means anything to a terminal."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from multicore_server.cli.figures import Reading
from multicore_server.cli.monit_view import Scene, draw
from tests.support.reports import event, status, worker


def seen(workers: int = 2, at: int = 10, **changes: Any) -> Reading:
    requests = {
        "in_progress": 0, "total": 100, "durations": {"0.1": at, "1.0": at, "+Inf": at},
        "queue": {"0.1": at, "+Inf": at}, "codes": {"2xx": 90 * at, "5xx": 3 * at, "499": at},
    }  # fmt: skip
    known = {"settings": {"memory_metric": "uss"}, "events": [event("ready", pid=4711)]}
    made = status(*(worker(it, requests=requests) for it in range(workers)), **{**known, **changes})
    return Reading(float(at), made, {4711: at / 10})


def drawn(scene: Scene, columns: int = 100, lines: int = 24, *, raw: bool = False) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=columns, height=lines, force_terminal=raw, markup=False, highlight=False, emoji=False
    )
    console.print(draw(scene, os.terminal_size((columns, lines))), end="")
    return out.getvalue()


def test_a_server() -> None:
    scene = Scene(seen(at=10))
    scene.update(seen(at=20, workers=2))
    shown = drawn(scene, 140)
    assert "app:app  pid 4000  http://127.0.0.1:8000" in shown
    assert "2/2 ready  up 2h  cpu 10%  0 req/s  5xx 6.0 3.2%  p50 50.0ms  p99 99.0ms  queue 95.0ms" in shown
    assert "95.0ms  6 in progress  24 conns  499 2.0" in shown
    assert "3.2% of the responses are 5xx" in shown
    row = " 0  4711  ready   2m         3  10%  60.0mb/100.0mb 60%      0  3.0 3.2%    1.0  50.0ms  99.0ms"
    assert row in shown
    assert "  95.0ms  2.1ms" in shown
    assert "instance=0 gen=1 pid=4711 ready" in shown
    assert "q quit" in shown


def test_the_state_is_seen_in_its_colour() -> None:
    title = " app:app  pid 4000"
    for its, style, reason in (
        (status(worker(0)), "1;32", ""),
        (status(worker(0, blocked=2.5)), "1;33", "instance 0 blocked for 2.5 s"),
        (status(worker(0, blocked=25.0)), "1;31", "instance 0 blocked for 25.0 s"),
        (status(worker(0), worker(1, state="errored")), "1;31", "instance 1 errored"),
    ):
        shown = drawn(Scene(Reading(1.0, its, {})), raw=True)
        assert f"\x1b[{style}m{title[1:]}" in shown
        assert reason in shown
    assert "blocked 25s" in drawn(Scene(Reading(1.0, status(worker(0, blocked=25.0)), {})))


def test_the_share_of_errors_is_of_the_last_ten_seconds() -> None:
    def at(second: int, errors: int) -> Reading:
        codes = {"2xx": second * 10 - errors, "5xx": errors}
        requests = {"in_progress": 0, "total": second * 10, "durations": {}, "codes": codes}
        return Reading(float(second), status(worker(0, requests=requests)), {})

    scene = Scene(at(1, 0))
    scene.update(at(2, 5))
    assert "5xx are" not in drawn(scene)  # of ten requests
    scene.update(at(3, 5))
    assert "25.0% of the responses are 5xx" in drawn(scene)
    for second in range(4, 12):
        scene.update(at(second, 5))
    assert "5.0% of the responses are 5xx" in drawn(scene)
    scene.update(at(12, 5))
    assert "responses" not in drawn(scene)
    assert len(scene.past) == 10


@pytest.mark.parametrize(("columns", "lines"), [(200, 60), (100, 24), (80, 24), (40, 12), (20, 8), (9, 3)])
@pytest.mark.parametrize("workers", [0, 1, 8, 64])
def test_it_fits_the_screen(workers: int, columns: int, lines: int) -> None:
    events = [event("a long story " * 20)] * 300
    shown = drawn(Scene(seen(workers, events=events), note="x" * 300), columns, lines).splitlines()
    assert len(shown) <= max(lines, 9)
    assert max(map(len, shown)) <= columns


def test_the_selected_worker_is_among_those_that_are_shown() -> None:
    scene = Scene(seen(64))
    for _ in range(40):
        scene.select(+1)
    assert scene.selected == 40
    assert f" {4711 + 40} " in drawn(scene, 100, 20)
    assert " 4711 " not in drawn(scene, 100, 20)


def test_the_selection_stays_within_the_workers() -> None:
    scene = Scene(seen(3))
    scene.select(-1)
    assert scene.selected == 0
    for _ in range(9):
        scene.select(+1)
    assert scene.selected == 2
    scene.update(seen(2))
    assert scene.selected == 1
    scene.update(seen(0))
    assert scene.selected is None
    scene.select(+1)
    scene.update(seen(2))
    assert scene.selected == 0


def test_what_an_app_says_means_nothing_to_the_terminal() -> None:
    hostile = "\x1b[2J\x07[bold red]x[/] :bomb:\n\u202e"
    scene = Scene(seen(name=hostile, events=[event(hostile)]), note=hostile, trouble="")
    shown = drawn(scene, 160, raw=True)
    assert shown.count("\\x1b[2J\\x07[bold red]x[/] :bomb:\\n\\u202e") == 3
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown


def test_requests_in_progress_take_the_place_of_events() -> None:
    def asked(path: str, seconds: float) -> dict[str, Any]:
        return {"method": "GET", "path": path, "client": "10.0.0.1", "seconds": seconds}

    workers = worker(0, running=[asked("/young", 0.02)]), worker(1, running=[asked("/old\x1b[2J", 3.25)])
    scene = Scene(Reading(1.0, status(*workers, events=[event("it happened")]), {}))
    assert "/old" not in drawn(scene)
    scene.shows_requests = True
    shown = drawn(scene)
    assert "  3.25s    1  GET /old\\x1b[2J  10.0.0.1" in shown
    assert shown.index("/old") < shown.index(" 20.0ms    0  GET /young")
    assert "it happened" not in shown
    for lines in (8, 10, 24):
        assert len(drawn(scene, lines=lines).rstrip("\n").split("\n")) <= lines
    scene.update(Reading(2.0, status(worker(0)), {}))
    assert "no request is in progress" in drawn(scene)


def test_trouble_hides_what_came_of_a_key() -> None:
    scene = replace(Scene(seen()), note="reloading", trouble="it does not answer")
    assert "it does not answer" in drawn(scene)
    scene.update(seen())
    assert "reloading" in drawn(scene)
