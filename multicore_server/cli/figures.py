"""Calculates figures from two readings: CPU, requests and errors a second, quantiles of the durations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

import psutil

from multicore_server.cli.health import Answered
from multicore_server.cli.servers import RunningServer
from multicore_server.ipc.report import Status, WorkerStatus
from multicore_server.metrics.quantile import quantile as histogram_quantile

Buckets = dict[float, float]  # upper bounds in seconds, to how many took at most that long
Histogram = Literal["durations", "queue"]


QUEUED = 0.95  # the share of the requests whose wait is shown


@dataclass(frozen=True)
class Reading:
    """A server's /status at a time of the monotonic clock, and its workers' CPU seconds by pid."""

    at: float
    status: Status
    cpu: Mapping[int, float]


@dataclass(frozen=True)
class Rates:
    """The rates of one worker between two readings.

    CPU is in percent of one CPU, requests are per second. The p50 and p99 durations and the p95 wait for the
    app are in seconds. A value is None if there is nothing to compare.
    """

    cpu: float | None = None
    requests: float | None = None
    p50: float | None = None
    p99: float | None = None
    answered: Answered | None = None
    queue: float | None = None


def take_reading(server: RunningServer) -> Reading:
    """Take a reading of a server. Raises Trouble."""
    status = server.status()
    return Reading(time.monotonic(), status, _cpu(status))


def _cpu(status: Status) -> dict[int, float]:
    found = {}
    for worker in status["workers"]:
        pid, started = worker["pid"], worker["started"]
        if pid is not None and started is not None and (used := _used(pid, started)) is not None:
            found[pid] = used
    return found


def _used(pid: int, started: float) -> float | None:
    """Ask the kernel: the server's own figure may be a second old, which is too old between two readings."""
    try:
        process = psutil.Process(pid)
        # In another container the pid is somebody else's.
        if abs(process.create_time() - started) > 5:
            return None
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return None


def rates(before: Reading | None, after: Reading) -> dict[int, Rates]:
    """Return the rates between two readings, by instance."""
    if before is None:
        return {}
    seconds = max(1e-3, after.at - before.at)
    old = {worker["instance"]: worker for worker in before.status["workers"]}
    found = {}
    for worker in after.status["workers"]:
        was, is_now = _buckets(old.get(worker["instance"])), _buckets(worker)
        waited = _buckets(old.get(worker["instance"]), "queue")
        found[worker["instance"]] = Rates(
            _cpu_between(worker["pid"], before, after, seconds),
            _requests(old, worker, seconds),
            quantile(0.5, was, is_now) if was else None,
            quantile(0.99, was, is_now) if was else None,
            _answered(old.get(worker["instance"]), worker, seconds),
            quantile(QUEUED, waited, _buckets(worker, "queue")) if waited else None,
        )
    return found


def _cpu_between(pid: int | None, before: Reading, after: Reading, seconds: float) -> float | None:
    if pid is None or pid not in before.cpu or pid not in after.cpu:
        return None
    return max(0.0, after.cpu[pid] - before.cpu[pid]) / seconds * 100


def _requests(old: Mapping[int, WorkerStatus], worker: WorkerStatus, seconds: float) -> float | None:
    was = old.get(worker["instance"])
    if was is None:
        return None
    return float(max(0, worker["requests"]["total"] - was["requests"]["total"])) / seconds


# --- errors ---


def _answered(old: WorkerStatus | None, worker: WorkerStatus, seconds: float) -> Answered | None:
    if old is None or "codes" not in worker["requests"]:  # servers of older versions do not say it
        return None
    was, is_now = Counter(old["requests"]["codes"]), Counter(worker["requests"]["codes"])
    grown = is_now - was
    return Answered(seconds, grown.total(), grown["5xx"], grown["499"])


def answered(before: Reading | None, after: Reading) -> Answered | None:
    """Count the answers of all workers that both readings have."""
    known = [it.answered for it in rates(before, after).values() if it.answered is not None]
    if not known:
        return None
    return Answered(
        known[0].seconds,
        sum(it.requests for it in known),
        sum(it.errors for it in known),
        sum(it.left for it in known),
    )


# --- durations ---


def _buckets(worker: WorkerStatus | None, of: Histogram = "durations") -> Buckets:
    """Return the cumulative buckets of a worker's histogram; none if the server's version does not have
    it."""
    found: Mapping[str, int] = worker["requests"].get(of, {}) if worker else {}
    return {float(bound): float(count) for bound, count in found.items()}


def quantiles(
    shares: Iterable[float], before: Reading | None, after: Reading, of: Histogram = "durations"
) -> list[float | None]:
    """Return quantiles over all workers that both readings have."""
    if before is None:
        return [None for _ in shares]
    there = _instances(before) & _instances(after)
    was, is_now = _all_buckets(before, there, of), _all_buckets(after, there, of)
    return [quantile(share, was, is_now) for share in shares]


def _instances(reading: Reading) -> set[int]:
    return {worker["instance"] for worker in reading.status["workers"]}


def _all_buckets(reading: Reading, instances: AbstractSet[int], of: Histogram) -> Buckets:
    total: Counter[float] = Counter()
    for worker in reading.status["workers"]:
        if worker["instance"] in instances:
            total.update(_buckets(worker, of))
    return dict(total)


def quantile(share: float, before: Buckets, after: Buckets) -> float | None:
    """Return the duration in seconds that this share of the requests between two readings did not exceed.

    None if there were no requests.
    """
    grown = [(bound, after[bound] - before.get(bound, 0.0)) for bound in sorted(after)]
    return histogram_quantile(share, grown)
