"""Figures between two readings."""

from __future__ import annotations

import math
import os
import time
from typing import Any

import psutil
import pytest

from multicore_server.cli import figures
from multicore_server.cli.figures import Rates, Reading, answered, quantile, quantiles, rates
from multicore_server.cli.health import Answered
from multicore_server.ipc.report import WorkerStatus
from tests.support import reports


def worker(instance: int, pid: int | None, total: int, started: float = 0.0) -> WorkerStatus:
    durations = {"0.1": total, "1.0": total, "+Inf": total}
    requests = {"in_progress": 0, "total": total, "durations": durations, "codes": {}}
    return reports.worker(instance, pid=pid, requests=requests, started=started)


def seen(at: float, workers: list[WorkerStatus], cpu: dict[int, float]) -> Reading:
    return Reading(at, reports.status(*workers), cpu)


def test_rates_between_two_readings() -> None:
    before = seen(10.0, [worker(0, 100, 50), worker(1, 101, 7)], {100: 1.0, 101: 3.0})
    after = seen(12.0, [worker(0, 100, 80), worker(1, 102, 9), worker(2, 103, 4)], {100: 2.5, 102: 0.5})
    assert rates(before, after) == {
        0: Rates(75.0, 15.0, 0.05, 0.099, Answered(2.0)),
        1: Rates(
            None, 1.0, 0.05, 0.099, Answered(2.0)
        ),  # its worker was replaced: what the new one used is not of the interval alone
        2: Rates(None, None),
    }


def test_the_first_reading_has_nothing_to_compare() -> None:
    assert rates(None, seen(10.0, [worker(0, 100, 50)], {100: 1.0})) == {}


def test_cpu_is_the_process_own_and_of_no_other_with_its_pid() -> None:
    me, started = os.getpid(), psutil.Process().create_time()
    used = figures._cpu(reports.status(worker(0, me, 0, started), worker(1, None, 0)))
    assert used[me] == pytest.approx(time.process_time(), abs=0.5)
    assert figures._cpu(reports.status(worker(0, me, 0, started - 1000))) == {}


# --- errors


def ended(instance: int, **codes: int) -> WorkerStatus:
    counted: Any = {name.removeprefix("_"): count for name, count in codes.items()}
    requests = {"in_progress": 0, "total": sum(codes.values()), "durations": {}, "codes": counted}
    return reports.worker(instance, requests=requests)


def test_errors_between_two_readings() -> None:
    before = seen(10.0, [ended(0, _2xx=90, _5xx=5, _499=5), ended(1, _2xx=1), ended(2, _5xx=9)], {})
    after = seen(12.0, [ended(0, _2xx=100, _5xx=8, _499=6), ended(1, _2xx=7), ended(3, _5xx=4)], {})
    found = rates(before, after)
    assert found[0].answered == Answered(2.0, 14, 3, 1)
    assert found[1].answered == Answered(2.0, 6)
    assert found[3].answered is None
    assert answered(before, after) == Answered(2.0, 20, 3, 1)
    assert answered(None, after) is None


def test_of_another_server_after_usr2_nothing_is_negative() -> None:
    before, after = seen(10.0, [ended(0, _2xx=90, _5xx=5)], {}), seen(11.0, [ended(0, _2xx=2)], {})
    assert answered(before, after) == Answered(1.0)


def test_a_server_of_an_older_version_does_not_say_how_requests_ended() -> None:
    before, after = seen(10.0, [ended(0)], {}), seen(11.0, [ended(0)], {})
    requests: Any = after.status["workers"][0]["requests"]
    del requests["codes"]
    assert answered(before, after) is None


def test_the_share_of_errors() -> None:
    assert Answered(2.0, 20, 3).share == 0.15
    assert Answered(2.0).share is None


# --- time in the queue ---


def queued(instance: int, quick: int, slow: int) -> WorkerStatus:
    queue = {"0.1": quick, "1.0": quick + slow, "+Inf": quick + slow}
    return reports.worker(
        instance, requests={"in_progress": 0, "total": 0, "durations": {}, "codes": {}, "queue": queue}
    )


def test_time_in_the_queue() -> None:
    before = seen(10.0, [queued(0, 10, 0), queued(1, 10, 0), queued(2, 0, 9)], {})
    after = seen(12.0, [queued(0, 30, 0), queued(1, 10, 20), queued(3, 5, 5)], {})
    found = rates(before, after)
    assert [found[it].queue for it in (0, 1)] == pytest.approx([0.095, 0.955])
    assert (found[3].queue, found[0].p50) == (None, None)
    assert quantiles([0.95], before, after, "queue") == pytest.approx([0.91])


def test_a_server_of_an_older_version_does_not_say_how_long_requests_waited() -> None:
    before, after = seen(10.0, [queued(0, 1, 0)], {}), seen(11.0, [queued(0, 2, 0)], {})
    for reading in (before, after):
        requests: Any = reading.status["workers"][0]["requests"]
        del requests["queue"]
    assert rates(before, after)[0].queue is None
    assert quantiles([0.95], before, after, "queue") == [None]


# --- quantiles ---


def test_all_workers_together_but_those_that_only_one_reading_has() -> None:
    before = seen(10.0, [worker(0, 100, 50), worker(1, 101, 7)], {})
    after = seen(12.0, [worker(0, 100, 80), worker(2, 103, 4)], {})
    assert quantiles((0.5, 1.0), before, after) == pytest.approx([0.05, 0.1])
    assert quantiles((0.5, 1.0), None, after) == [None, None]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.5, 0.1),  # 10 of 20, all of the first bucket
        (0.25, 0.05),  # in the middle of the first bucket
        (0.75, 0.55),  # in the middle of the second one
        (0.99, 1.0),  # above the last bound: that
    ],
)
def test_a_quantile_is_reckoned_as_prometheus_does(share: float, expected: float) -> None:
    before = {0.1: 5.0, 1.0: 5.0, math.inf: 5.0}
    after = {0.1: 15.0, 1.0: 25.0, math.inf: 25.0}
    if share == 0.99:
        after = {0.1: 5.0, 1.0: 5.0, math.inf: 25.0}
    assert quantile(share, before, after) == pytest.approx(expected)


def test_without_requests_there_is_no_quantile() -> None:
    same = {0.1: 5.0, math.inf: 5.0}
    assert quantile(0.5, same, same) is None
    assert quantile(0.5, {}, {}) is None
    assert quantile(0.5, same, {0.1: 0.0, math.inf: 0.0}) is None  # another server's, after USR2
