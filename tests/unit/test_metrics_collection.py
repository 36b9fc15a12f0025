"""What a scrape says, exactly, of rows and reports made by hand."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics_parser

from multicore_server.ipc.names import StateName
from multicore_server.ipc.report import ProcessReport, ProcessState, Report, SlotReport
from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, ROWS_PER_SLOT, Head, Item, Scoreboard
from multicore_server.metrics.collection import families
from multicore_server.metrics.definitions import REASONS, RESULTS, STATES, TABLE
from multicore_server.metrics.exposition import openmetrics, text
from tests.support.reports import process, report, slot
from tests.unit.rows import cell

read_openmetrics: Any = openmetrics_parser.text_string_to_metric_families  # has no types
NOW = 1000.0  # seconds of CLOCK_MONOTONIC


def scrape(board: Scoreboard, published: Report | None, **left_out: int) -> dict[str, float]:
    """Samples as they are written: ``name{labels}`` and their values."""
    return {
        family.name + sample.suffix + sample.labels: sample.value
        for family in families(board, published, NOW, left_out)
        for sample in family.samples
    }


def a_process(row: int, state: ProcessState = "ready", started: float = 0.0) -> ProcessReport:
    return process(row // ROWS_PER_SLOT, state=state, row=row % ROWS_PER_SLOT, started=started)


def a_slot(instance: int, state: StateName, *processes: ProcessReport) -> SlotReport:
    return slot(instance, state, list(processes))


def a_report(*slots: SlotReport, **changes: Any) -> Report:
    return report(slots=list(slots), **{"restarts": {}, "reloads": {}, **changes})


def of(found: dict[str, float], name: str) -> dict[str, float]:
    """The samples of one metric, by their labels."""
    return {key.removeprefix(name): value for key, value in found.items() if key.partition("{")[0] == name}


def fill(board: Scoreboard, row: int, **items: float) -> None:
    for name, value in items.items():
        board.row(row)[Item[name]] = value


# --- exact values


def test_before_the_first_publish_what_is_known_is_zero() -> None:
    found = scrape(Scoreboard(4), None)
    assert set(found.values()) == {0.0}
    assert {key.partition("{")[0] for key in found} == {
        "multicore_workers",
        "multicore_worker_restarts_total",
        "multicore_connections_handed_over_total",
        "multicore_connections_migrated_total",
        "multicore_http_requests_total",
        "multicore_http_request_duration_seconds_bucket",
        "multicore_http_request_duration_seconds_count",
        "multicore_http_request_duration_seconds_sum",
        "multicore_http_request_queue_seconds_bucket",
        "multicore_http_request_queue_seconds_count",
        "multicore_http_request_queue_seconds_sum",
        "multicore_listen_backlog",
        "multicore_message_bytes_total",
        "multicore_primary_changes_total",
        "multicore_reloads_total",
        "multicore_app_metrics_left_out",
    }
    assert len(of(found, "multicore_http_requests_total")) == len(METHODS) * len(CODES)
    assert set(of(found, "multicore_worker_restarts_total")) == {f'{{reason="{it}"}}' for it in REASONS}
    assert set(of(found, "multicore_reloads_total")) == {f'{{result="{it}"}}' for it in RESULTS}
    assert set(of(found, "multicore_workers")) == {f'{{state="{it}"}}' for it in STATES}


def test_every_metric_of_the_table_is_there_in_its_order() -> None:
    found = families(Scoreboard(1), None, NOW)
    assert [family.name for family in found] == [metric.base for metric in TABLE.values()]


def test_workers_by_state() -> None:
    states: list[StateName] = ["ready", "ready", "backoff", "errored"]
    slots = [a_slot(i, state) for i, state in enumerate(states)]
    assert of(scrape(Scoreboard(4), a_report(*slots)), "multicore_workers") == {
        '{state="starting"}': 0.0, '{state="ready"}': 2.0, '{state="draining"}': 0.0,
        '{state="backoff"}': 1.0, '{state="stopped"}': 0.0, '{state="errored"}': 1.0,
    }  # fmt: skip


def test_numbers_of_the_bulletin() -> None:
    state = a_report(
        configured=8, worker_memory_limit=2**30, restarts={"oom": 3, "exit": 1}, reloads={"rolled_back": 2}
    )
    found = scrape(Scoreboard(4), state, file=5)
    assert found["multicore_workers_configured"] == 8
    assert found["multicore_worker_memory_limit_bytes"] == 2**30
    restarts = of(found, "multicore_worker_restarts_total")
    assert (restarts['{reason="oom"}'], restarts['{reason="exit"}'], sum(restarts.values())) == (3, 1, 4)
    assert of(found, "multicore_reloads_total") == {
        '{result="ok"}': 0, '{result="rolled_back"}': 2, '{result="failed"}': 0,
    }  # fmt: skip
    assert of(found, "multicore_app_metrics_left_out") == {'{reason="file"}': 5, '{reason="collision"}': 0}
    assert of(found, "multicore_build_info") == {
        '{gunicorn="27",python="3",uvicorn="0.5",version="0.1.0"}': 1
    }
    assert of(found, "multicore_server_info") == {f'{{host="{socket.gethostname()}",name="app:app"}}': 1}


def test_without_a_memory_limit_there_is_none() -> None:
    assert "multicore_worker_memory_limit_bytes" not in scrape(Scoreboard(4), a_report())


def test_a_worker_is_its_ready_process_and_gauges_are_all_of_its_living_ones() -> None:
    board = Scoreboard(2)
    fill(board, 4, CONNECTIONS=3, WEBSOCKETS=1, IN_HAND=4, UNREAD=2, RESIDENT_MEMORY=1e8, BEAT_DUE=NOW)
    fill(board, 5, CONNECTIONS=4, WEBSOCKETS=0, IN_HAND=1, RESIDENT_MEMORY=2e8, UNIQUE_MEMORY=5e7,
         BEAT_DUE=NOW)  # fmt: skip
    fill(board, 6, CONNECTIONS=7, RESIDENT_MEMORY=3e8)
    processes = [a_process(6, "draining", 1.0), a_process(4, "ready", 2.0), a_process(5, "starting", 3.0)]
    found = scrape(board, a_report(a_slot(1, "ready", *processes)))
    assert of(found, "multicore_connections") == {'{worker="1"}': 14}
    assert of(found, "multicore_websockets") == {'{worker="1"}': 1}
    assert of(found, "multicore_requests_in_progress") == {'{worker="1"}': 3}
    assert of(found, "multicore_worker_start_time_seconds") == {'{worker="1"}': 2}
    assert of(found, "multicore_worker_resident_memory_bytes") == {'{worker="1"}': 1e8}
    assert of(found, "multicore_worker_unique_memory_bytes") == {}
    processes[1]["state"] = "draining"
    processes[2]["state"] = "ready"
    found = scrape(board, a_report(a_slot(1, "ready", *processes)))
    assert of(found, "multicore_worker_start_time_seconds") == {'{worker="1"}': 3}
    assert of(found, "multicore_worker_unique_memory_bytes") == {'{worker="1"}': 5e7}


def test_workers_are_in_order() -> None:
    found = scrape(Scoreboard(3), a_report(*(a_slot(i, "backoff") for i in range(3))))
    assert list(of(found, "multicore_connections")) == [f'{{worker="{i}"}}' for i in range(3)]


def test_without_a_ready_process_the_newest_is_the_worker() -> None:
    processes = [a_process(0, "draining", 1.0), a_process(1, "starting", 2.0)]
    found = scrape(Scoreboard(1), a_report(a_slot(0, "starting", *processes)))
    assert of(found, "multicore_worker_start_time_seconds") == {'{worker="0"}': 2}
    assert of(found, "multicore_event_loop_lag_seconds") == {}


def test_a_slot_without_a_process_has_no_connections_and_no_memory() -> None:
    found = scrape(Scoreboard(1), a_report(a_slot(0, "errored")))
    assert of(found, "multicore_connections") == {'{worker="0"}': 0}
    assert of(found, "multicore_worker_resident_memory_bytes") == {}
    assert of(found, "multicore_worker_start_time_seconds") == {}


@pytest.mark.parametrize(
    ("lag", "heartbeat", "expected"),
    [
        (0.0, NOW, 0.0),
        (0.002, NOW + 0.05, 0.002),
        (0.002, NOW - 5.0, 5.0),  # blocked right now
        (9.0, NOW - 5.0, 9.0),
        (0.0, 0.0, 0.0),  # its heart does not beat yet
    ],
)
def test_the_loop_lag_grows_while_the_loop_is_blocked(lag: float, heartbeat: float, expected: float) -> None:
    board = Scoreboard(1)
    fill(board, 0, LOOP_LAG=lag, BEAT_DUE=heartbeat)
    found = scrape(board, a_report(a_slot(0, "ready", a_process(0))))
    assert found['multicore_event_loop_lag_seconds{worker="0"}'] == pytest.approx(expected)


def test_requests_and_durations_are_summed_over_all_rows() -> None:
    board = Scoreboard(3)
    board.publish(frozenset({0, 9}))
    for row, count in ((0, 1), (1, 2), (9, 4)):
        board.row(row)[cell("POST", "5xx")] = count
        board.row(row)[cell("other", "499")] = 10 * count
        board.row(row)[Item.DURATIONS] = count
        board.row(row)[Item.DURATIONS + len(BUCKETS)] = 100 * count
        board.row(row)[Item.DURATION_SUM] = count / 4
    found = scrape(board, a_report())
    requests = of(found, "multicore_http_requests_total")
    assert requests['{code="5xx",method="POST"}'] == 7
    assert requests['{code="499",method="other"}'] == 70
    assert sum(requests.values()) == 77
    name = "multicore_http_request_duration_seconds"
    bounds = ["0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5",
              "0.75", "1.0", "2.5", "5.0", "7.5", "10.0"]  # fmt: skip
    buckets = {f'{{le="{bound}"}}': 7.0 for bound in bounds} | {'{le="+Inf"}': 707.0}
    assert of(found, f"{name}_bucket") == buckets
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (707, 1.75)


def test_time_in_the_queue_is_summed_over_all_rows() -> None:
    board = Scoreboard(2)
    board.publish(frozenset({0, 5}))
    for row, count in ((0, 1), (5, 4)):
        board.row(row)[Item.QUEUE + 1] = count
        board.row(row)[Item.QUEUE + len(BUCKETS)] = 10 * count
        board.row(row)[Item.QUEUE_SUM] = count / 4
    found = scrape(board, a_report())
    name = "multicore_http_request_queue_seconds"
    buckets = [found[f'{name}_bucket{{le="{bound}"}}'] for bound in ("0.005", "0.01", "10.0", "+Inf")]
    assert buckets == [0, 5, 5, 55]
    assert (found[f"{name}_count"], found[f"{name}_sum"]) == (55, 1.25)
    assert found["multicore_http_request_duration_seconds_count"] == 0


def test_every_cell_of_a_request_has_its_own_labels() -> None:
    board = Scoreboard(1)
    board.publish(frozenset({0}))
    for number, (method, code) in enumerate((method, code) for method in METHODS for code in CODES):
        board.row(0)[cell(method, code)] = number + 1
    assert of(scrape(board, a_report()), "multicore_http_requests_total") == {
        f'{{code="{code}",method="{method}"}}': METHODS.index(method) * len(CODES) + CODES.index(code) + 1
        for method in METHODS
        for code in CODES
    }


def test_counters_by_worker_are_those_of_every_slot_ever_used() -> None:
    board = Scoreboard(4)
    board.publish(frozenset({0, 4, 8}))
    for row, count in ((0, 1), (3, 2), (4, 4), (8, 8)):
        fill(board, row, CPU_SECONDS=count / 2, ACCEPTED=count, HANDED_OVER=10 * count, MIGRATED=20 * count)
    found = scrape(board, a_report(a_slot(0, "ready", a_process(0))))  # the other two were scaled away
    assert of(found, "multicore_worker_cpu_seconds_total") == {
        '{worker="0"}': 1.5, '{worker="1"}': 2.0, '{worker="2"}': 4.0,
    }  # fmt: skip
    assert sum(of(found, "multicore_connections_accepted_total").values()) == 15
    assert found["multicore_connections_handed_over_total"] == 150
    assert found["multicore_connections_migrated_total"] == 300
    assert of(found, "multicore_connections") == {'{worker="0"}': 0}


def test_a_worker_that_boots_for_the_first_time_has_its_counters_at_zero() -> None:
    found = scrape(Scoreboard(4), a_report(a_slot(0, "starting", a_process(0, "starting"))))
    assert of(found, "multicore_connections_accepted_total") == {'{worker="0"}': 0}


def test_the_arbiter_s_own_process() -> None:
    board = Scoreboard(1)
    board.head[Head.LISTEN_BACKLOG] = 17
    items = (
        Head.CPU_SECONDS,
        Head.RESIDENT_MEMORY,
        Head.VIRTUAL_MEMORY,
        Head.START_TIME,
        Head.OPEN_FDS,
        Head.MAX_FDS,
    )
    for number, item in enumerate(items):
        board.head[item] = number + 0.5
    found = scrape(board, None)
    assert found["multicore_listen_backlog"] == 17
    assert {key: value for key, value in found.items() if key.startswith("process_")} == {
        "process_cpu_seconds_total": 0.5,
        "process_resident_memory_bytes": 1.5,
        "process_virtual_memory_bytes": 2.5,
        "process_start_time_seconds": 3.5,
        "process_open_fds": 4.5,
        "process_max_fds": 5.5,
    }


# --- written out


@pytest.fixture
def busy() -> tuple[Scoreboard, Report]:
    board = Scoreboard(8)
    board.publish(frozenset(range(0, 8 * ROWS_PER_SLOT, ROWS_PER_SLOT)))
    for row in range(8 * ROWS_PER_SLOT):
        for item in range(Item.DURATION_SUM + 1):
            board.row(row)[item] = row + item
    for item in Head:
        if item is not Head.USED_SLOTS:
            board.head[item] = item + 1
    return board, a_report(
        *(a_slot(i, "ready", a_process(4 * i)) for i in range(8)), worker_memory_limit=2**30
    )


def test_openmetrics_of_it_all_is_legal(busy: tuple[Scoreboard, Report]) -> None:
    written = openmetrics(families(*busy, NOW)).decode()
    read = {family.name: family for family in read_openmetrics(written)}
    assert {name: family.type for name, family in read.items()} == {it.base: it.kind for it in TABLE.values()}
    assert all(family.samples for family in read.values())
    assert {name: family.unit for name, family in read.items()} == {it.base: it.unit for it in TABLE.values()}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's prometheus) is missing")
def test_promtool_has_nothing_to_say(busy: tuple[Scoreboard, Report]) -> None:
    for found in (families(*busy, NOW), families(Scoreboard(1), None, NOW)):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text(found), capture_output=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
