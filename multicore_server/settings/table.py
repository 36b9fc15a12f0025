"""Defines every setting once: the fields of `Settings` are the table that all sources read.

A field's name is the name in the config file and the keyword of ``run()`` (``max_memory_restart``). The names
of the environment variable (``MULTICORE_MAX_MEMORY_RESTART``) and of the flag (``--max-memory-restart``) are
derived from it. A field's row has the default, the parser, the accepted values (for messages and docs) and
the meaning.
"""
# ruff: noqa: RUF009 -- setting() is dataclasses.field() with a row attached, and every default is immutable

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.settings import quantities as read
from multicore_server.settings.quantities import Jitter, Size

T = TypeVar("T")
PREFIX = "MULTICORE_"


class SettingError(Exception):
    """A value cannot be used. The message is one line: setting, value, source and what is accepted."""


def setting(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> T:
    """Return a field of `Settings` with its row of the table. ``default`` is text, as a user writes it."""
    return field(default=parse(default), metadata=_row(default, parse, accepted, meaning))


def _row(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> dict[str, Any]:
    return {"default": default, "parse": parse, "accepted": accepted, "meaning": meaning}


_TIME = "seconds, or 500ms, 2s, 10m, 24h"
_SOME_TIME = f"a duration above 0: {_TIME}"
_SIZE = "bytes, 300M, 1.5G or 80%, or none"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the arbiter and its workers. Durations are in seconds. None means "off".

    These settings and their names are PM2's: autorestart, min_uptime, max_restarts, restart_delay,
    exp_backoff_restart_delay, stop_exit_codes, max_memory_restart, cron_restart, listen_timeout,
    wait_ready and instance_var. In PM2 a bare number is milliseconds; here it is seconds.
    """

    # No default here: "max" becomes a number only when the CPUs are counted.
    workers: int = field(
        metadata=_row(
            "max",
            read.worker_count,
            "N, max or 0 (one per usable CPU), or -1 (one fewer)",
            "number of workers; usable CPUs: those in the affinity mask, up to the cgroup's quota rounded up",
        )
    )
    gc_threshold: int | None = setting(
        "10000",
        read.optional(read.whole(1)),
        "a whole number from 1, or none",
        "number of new objects after which a worker's garbage collector checks them, unless the user's code "
        "sets another (gc.set_threshold); none: Python's own",
    )
    autorestart: Literal["true", "on-failure", "false"] = setting(
        "true",
        read.restart_rule,
        "true, on-failure or false",
        "whether a worker is restarted when it exits; on-failure: not after exit code 0",
    )
    min_uptime: float = setting(
        "1s", read.duration, _TIME, "an exit is unstable if the worker was ready for a shorter time"
    )
    max_restarts: int = setting(
        "16",
        read.whole(0),
        "a whole number from 0",
        "number of unstable exits after which a slot becomes errored and is not restarted; "
        "HUP, reset and restart start it again",
    )
    restart_delay: float = setting("0", read.duration, _TIME, "fixed delay before a restart")
    exp_backoff_restart_delay: float = setting(
        "100ms",
        read.duration,
        _TIME,
        "delay before the restart after the second unplanned exit in a row before backoff_reset; each "
        "further exit makes it 1.5 times longer, with jitter; after the first exit it is 0",
    )
    max_restart_delay: float = setting(
        "15s", read.duration, _TIME, "upper limit of the delay of exp_backoff_restart_delay"
    )
    backoff_reset: float = setting(
        "30s",
        read.duration,
        _TIME,
        "when a worker was ready for this time, its slot's unstable exits and backoff start at 0 again",
    )
    stop_exit_codes: frozenset[int] = setting(
        "none",
        read.exit_codes,
        "exit codes from 0 to 255 such as 0,143, or none",
        "exit codes after which a slot stays stopped; a death by signal never matches",
    )
    max_memory_restart: Size | None = setting(
        "none",
        read.optional(read.size),
        _SIZE,
        "soft limit: above it, the worker is replaced, and its replacement starts first",
    )
    max_memory_kill: Size | None = setting(
        "none",
        read.optional(read.size),
        _SIZE,
        "hard limit: above it, the worker gets SIGKILL at once and is restarted",
    )
    memory_metric: Literal["rss", "uss"] = setting(
        "uss",
        read.one_of("rss", "uss"),
        "rss or uss",
        "the memory that the limits apply to: resident (rss) or unique (uss)",
    )
    memory_check_interval: float = setting("1s", read.above_zero, _SOME_TIME, "how often memory is sampled")
    max_lifetime: float | None = setting(
        "none",
        read.optional(read.above_zero),
        f"{_SOME_TIME}, or none",
        "a worker of this age is replaced",
    )
    max_lifetime_jitter: Jitter = setting(
        "10%",
        read.jitter,
        f"0% to 100%, or a duration: {_TIME}",
        "a random time up to this value is added to max_lifetime",
    )
    cron_restart: str | None = setting(
        "none",
        read.optional(read.cron_expression),
        "five cron fields such as 0 4 * * *, or none",
        "a rolling restart runs at these local times, never of all workers at once",
    )
    listen_timeout: float = field(  # the default's: what "timeout" means is known with gunicorn's setting
        default=60.0,
        metadata=_row(
            "timeout",
            read.boot_time,
            f"{_TIME}; 0: any time; or timeout",
            "a boot fails if the worker is not ready after this time; timeout: 60 s, or gunicorn's timeout "
            "if that is longer, or any time if that is 0",
        ),
    )
    wait_ready: bool = setting(
        "false", read.boolean, "true or false", "a worker is ready only when the app calls cluster.ready()"
    )
    reload_surge: int = setting(
        "1",
        read.whole(1),
        "a whole number from 1",
        "number of replacements that start at the same time in a rolling reload",
    )
    draining_limit: int = setting(
        "3",
        read.whole(1, ROWS_PER_SLOT - 1),
        "a whole number from 1 to 3",
        "number of old workers of one instance that may drain at the same time; if there are more, the "
        "oldest exits after 3 s",
    )
    shutdown_delay: float = setting(
        "0",
        read.duration,
        _TIME,
        "after TERM, the server keeps answering for this time while /readyz says 503, then it drains",
    )
    block_warning: float | None = setting(
        "1s",
        read.optional(read.above_zero),
        f"{_SOME_TIME}, or none",
        "if an event loop is blocked for longer, the log names the line of code and the requests in "
        "progress; for a WSGI app that runs inline: half of gunicorn's timeout",
    )
    slow_request: float | None = setting(
        "none",
        read.optional(read.above_zero),
        f"{_SOME_TIME}, or none",
        "if a request has no response after this time, the log shows where it waits, and again when it is "
        "answered",
    )
    scheduling: Literal["least", "shared"] = setting(
        "least",
        read.one_of("least", "shared"),
        "least or shared",
        "which worker gets a connection; least: the least loaded one; shared: the one that accepts it first",
    )
    metrics_bind: str = setting(
        "127.0.0.1:9464",
        read.address,
        "host:port, [::1]:port or unix:PATH, or none",
        "address that the monitor listens on; none: no address, only the command socket",
    )
    metrics_hosts: frozenset[str] = setting(
        "none",
        read.host_names,
        "host names such as metrics.example.com,*.example.org, * for any, or none",
        "names in the Host header that the monitor answers over TCP, in addition to IP addresses, names "
        "without a dot, this machine's name and names in .localhost, .local, .internal or .svc",
    )
    metrics_path: str | None = setting(
        "none",
        read.optional(read.path),
        "a path such as /metrics, or none",
        "path on the app's own port that also serves the metrics",
    )
    instance_var: str = setting(
        "MULTICORE_INSTANCE",
        read.variable,
        "a name of letters, digits and _",
        "environment variable with the instance number: the lowest free one from 0; a replacement keeps it",
    )
    limit_request_body: int | None = setting(
        "none",
        read.optional(read.byte_count),
        "bytes, 10M or 1.5G, or none",
        "largest request body; a larger one gets 413, by Content-Length or while it arrives",
    )
    header_timeout: float = setting(
        "30s", read.duration, f"{_TIME}; 0: any time", "time for a request's head to be complete; then 408"
    )
    body_timeout: float = setting(
        "60s", read.duration, f"{_TIME}; 0: any time", "time without a byte of a request's body; then 408"
    )
    send_timeout: float = setting(
        "60s",
        read.duration,
        f"{_TIME}; 0: any time",
        "time in which a client takes nothing of a response; then it is cut off",
    )
    request_timeout: float | None = setting(
        "none",
        read.optional(read.above_zero),
        f"{_SOME_TIME}, or none",
        "time from a request's head to the first byte of its response; then 504, and the app's task is "
        "cancelled; not for a WSGI app that runs inline: gunicorn's timeout ends it",
    )
    log_format: Literal["text", "json"] = setting(
        "text",
        read.one_of("text", "json"),
        "text or json",
        "form of the error log and of the access log; json: one object a line",
    )
    access_log_skip: frozenset[str] = setting(
        "none",
        read.paths,
        "paths such as /healthz,/static/*, or none",
        "requests that get no line in the access log, whatever their status; a * at the end: any path that "
        "begins so",
    )
    log_max_size: int | None = setting(
        "none",
        read.optional(read.byte_count),
        "bytes, 10M or 1.5G, or none",
        "size at which errorlog and accesslog are rotated: FILE becomes FILE.1, and no line is lost",
    )
    log_keep: int = setting(
        "5", read.whole(1), "a whole number from 1", "number of rotated files that are kept of each log"
    )
    app_metrics: bool = setting(
        "true",
        read.boolean,
        "true or false",
        "whether the app's own prometheus_client metrics are aggregated and shown",
    )


class Setting(NamedTuple):
    """A row of the table: a setting's name, default, parser, accepted values and meaning."""

    name: str
    default: str
    parse: Callable[[object], Any]
    accepted: str
    meaning: str

    @property
    def environment(self) -> str:
        """The environment variable, such as MULTICORE_MAX_MEMORY_RESTART."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """The flag, such as --max-memory-restart."""
        return "--" + self.name.replace("_", "-")


TABLE: dict[str, Setting] = {row.name: Setting(row.name, **row.metadata) for row in fields(Settings)}


# The topics of the docs, each with the beginnings of its settings' names.
TOPICS = {
    "Workers": ("workers", "instance_var", "gc_"),
    "Restarts": ("autorestart", "min_", "max_restart", "restart_", "exp_", "backoff_", "stop_exit_codes"),
    "Memory": ("max_memory_", "memory_"),
    "Age and schedule": ("max_lifetime", "cron_"),
    "Start, reload and stop": ("listen_timeout", "wait_ready", "reload_", "draining_", "shutdown_"),
    "Connections and clients": ("scheduling", "limit_", "header_", "body_", "send_"),
    "Slow requests": ("block_", "slow_", "request_"),
    "Logs": ("log_", "access_log_"),
    "Metrics": ("metrics_", "app_metrics"),
}


def reference() -> str:
    """Return the tables of settings in Markdown, a topic each, for the docs."""
    return "\n\n".join(_of_topic(topic, names) for topic, names in TOPICS.items() if _rows(names))


def _of_topic(topic: str, names: tuple[str, ...]) -> str:
    rows = [f"| `{row.name}` | `{row.default}` | {row.accepted} | {row.meaning} |" for row in _rows(names)]
    head = [f"### {topic}", "", "| setting | default | accepted | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _rows(names: tuple[str, ...]) -> list[Setting]:
    return [row for row in TABLE.values() if row.name.startswith(names)]
