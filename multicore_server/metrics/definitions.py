"""Defines each metric of the server once: name, kind, labels with the values known in advance, HELP text.

Pure: the standard library alone. The names follow https://prometheus.io/docs/practices/naming/: base units
as the last part, ``_total`` for counters. Collection, docs and the check for collisions read this table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, get_args

from multicore_server.fleet.slots import State
from multicore_server.ipc.names import Reason
from multicore_server.ipc.scoreboard import CODES, METHODS
from multicore_server.metrics.family import Family, Kind, Sample

UNITS = ("seconds", "bytes")
SUFFIXES: Mapping[Kind, tuple[str, ...]] = {
    "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum"),
}  # fmt: skip

STATES = tuple(str(state) for state in State)
REASONS: tuple[str, ...] = get_args(Reason)
RESULTS = ("ok", "rolled_back", "failed")
LEFT_OUT = ("file", "collision")
ANY: tuple[str, ...] = ()  # the values are not known in advance

_BY_WORKER = {"worker": ANY}


class Metric(NamedTuple):
    """``name`` is as Prometheus shows it; ``labels`` has the known values of each label, or `ANY`."""

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = {}

    @property
    def base(self) -> str:
        """The name of the family, without ``_total``."""
        return self.name.removesuffix("_total")

    @property
    def unit(self) -> str:
        """A base unit, or none."""
        last = self.base.rpartition("_")[2]
        return last if last in UNITS else ""

    def family(self, samples: Iterable[Sample]) -> Family:
        return Family(self.base, self.kind, self.help, list(samples), self.unit)


def _metric(name: str, kind: Kind, text: str, labels: Mapping[str, tuple[str, ...]] | None = None) -> Metric:
    return Metric(f"multicore_{name}", kind, text, labels or {})


_METRICS = (
    _metric("workers", "gauge", "Workers by state.", {"state": STATES}),
    _metric(
        "workers_configured", "gauge", "Configured number of workers: the setting, or the result of scale."
    ),
    _metric("worker_restarts_total", "counter", "Ended or replaced workers by reason.", {"reason": REASONS}),
    _metric(
        "worker_start_time_seconds",
        "gauge",
        "Start time of the worker's process, in seconds since 1970.",
        _BY_WORKER,
    ),
    _metric(
        "worker_resident_memory_bytes",
        "gauge",
        "Resident memory of the worker's process, including memory that it shares with others.",
        _BY_WORKER,
    ),
    _metric(
        "worker_unique_memory_bytes",
        "gauge",
        "Memory that only the worker's process uses, once it has been measured.",
        _BY_WORKER,
    ),
    _metric(
        "worker_memory_limit_bytes",
        "gauge",
        "Memory above which a worker is replaced, or killed if that is the only limit; absent without one.",
    ),
    _metric(
        "worker_cpu_seconds_total",
        "counter",
        "User and system CPU time of the worker's processes, one after the other.",
        _BY_WORKER,
    ),
    _metric("connections", "gauge", "Open connections.", _BY_WORKER),
    _metric(
        "connections_accepted_total",
        "counter",
        "Connections that the worker accepted.",
        _BY_WORKER,
    ),
    _metric(
        "connections_handed_over_total",
        "counter",
        "Connections that a less loaded worker got on their arrival.",
    ),
    _metric(
        "connections_migrated_total",
        "counter",
        "Connections that moved to another worker later, because theirs was replaced.",
    ),
    _metric(
        "requests_in_progress",
        "gauge",
        "Requests that have begun to arrive and are not completely answered.",
        _BY_WORKER,
    ),
    _metric(
        "http_requests_total",
        "counter",
        "Requests by method and class of status code; 499: the client left without its response.",
        {"method": METHODS, "code": CODES},
    ),
    _metric(
        "http_request_duration_seconds",
        "histogram",
        "Time from a request's head to the last byte of its response.",
    ),
    _metric(
        "http_request_queue_seconds",
        "histogram",
        "Time that requests waited for the app: since their proxy got them, or since their last bytes came.",
    ),
    _metric("websockets", "gauge", "Open WebSockets.", _BY_WORKER),
    _metric(
        "event_loop_lag_seconds",
        "gauge",
        "How late the worker's heartbeat was, or is now: its event loop was blocked for this time.",
        _BY_WORKER,
    ),
    _metric(
        "event_loop_blocked_total",
        "counter",
        "How often the worker's event loop was blocked for longer than block_warning.",
        _BY_WORKER,
    ),
    _metric(
        "event_loop_blocked_seconds_total",
        "counter",
        "Total time of the blocks that were longer than block_warning.",
        _BY_WORKER,
    ),
    _metric(
        "request_timeouts_total",
        "counter",
        "Requests that were ended because no response began within request_timeout.",
        _BY_WORKER,
    ),
    _metric("listen_backlog", "gauge", "Connections that no worker has accepted yet."),
    _metric("messages_sent_total", "counter", "Messages that the app sent to its workers.", _BY_WORKER),
    _metric("messages_received_total", "counter", "Messages that the app received.", _BY_WORKER),
    _metric(
        "messages_not_delivered_total",
        "counter",
        "Messages that the worker lost: the receiver did not run or was full.",
        _BY_WORKER,
    ),
    _metric("message_bytes_total", "counter", "Size of the sent messages, as JSON."),
    _metric(
        "message_handler_seconds_total",
        "counter",
        "Time that message handlers and actions took, including what they waited for.",
        _BY_WORKER,
    ),
    _metric("primary_changes_total", "counter", "How often a worker became the primary worker."),
    _metric("reloads_total", "counter", "Reloads by result.", {"result": RESULTS}),
    _metric(
        "app_metrics_left_out",
        "gauge",
        "The app's own metrics that this scrape lacks: unreadable files, names that are taken.",
        {"reason": LEFT_OUT},
    ),
    _metric(
        "build_info",
        "gauge",
        "Always 1; the labels are the versions.",
        dict.fromkeys(("version", "python", "gunicorn", "uvicorn"), ANY),
    ),
    _metric(
        "server_info",
        "gauge",
        "Always 1; the labels are the server's name and the machine's.",
        {"name": ANY, "host": ANY},
    ),
    # The arbiter's own process, by the names that all of Prometheus' client libraries give them.
    Metric("process_cpu_seconds_total", "counter", "User and system CPU time of the arbiter's process."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory of the arbiter's process."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory of the arbiter's process."),
    Metric("process_start_time_seconds", "gauge", "Start time of the arbiter, in seconds since 1970."),
    Metric("process_open_fds", "gauge", "Open file descriptors of the arbiter's process."),
    Metric("process_max_fds", "gauge", "How many file descriptors the arbiter's process may open."),
)

TABLE: Mapping[str, Metric] = {metric.name: metric for metric in _METRICS}


def sample_names(base: str, kind: Kind) -> set[str]:
    """The names that a family takes in one format or the other: nobody else may have them."""
    return {base, *(base + suffix for suffix in SUFFIXES.get(kind, ()))}


TAKEN = frozenset[str]().union(*(sample_names(metric.base, metric.kind) for metric in _METRICS))


def reference() -> str:
    """The table of metrics in Markdown, for the docs."""
    rows = [f"| `{it.name}` | {it.kind} | {_labels(it)} | {it.help} |" for it in _METRICS]
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *rows])


def _labels(metric: Metric) -> str:
    return "; ".join(
        f"`{name}`: {', '.join(f'`{value}`' for value in values)}" if values else f"`{name}`"
        for name, values in metric.labels.items()
    )
