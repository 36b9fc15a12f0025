"""Every setting, defined once: the fields of `Settings` are the table that all the sources read.

A field's name gives the config file's name and the keyword of ``run()`` (``max_memory_restart``), the
environment variable (``MULTICORE_MAX_MEMORY_RESTART``) and the flag (``--max-memory-restart``); its row
gives the default, the parser, what is accepted (for messages and docs) and the meaning.
"""
# ruff: noqa: RUF009 -- setting() is dataclasses.field() with a row attached, and every default is immutable

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar

from multicore_server.settings import quantities as read
from multicore_server.settings.quantities import Jitter, Size

T = TypeVar("T")
PREFIX = "MULTICORE_"


class SettingError(Exception):
    """A value that cannot be used: one line with the setting, its source, the value and what is accepted."""


def setting(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> T:
    """A field of `Settings` with its row of the table; the default is written as a user would."""
    return field(default=parse(default), metadata=_row(default, parse, accepted, meaning))


def _row(default: str, parse: Callable[[object], T], accepted: str, meaning: str) -> dict[str, Any]:
    return {"default": default, "parse": parse, "accepted": accepted, "meaning": meaning}


_TIME = "seconds, or 500ms, 2s, 10m, 24h"
_SOME_TIME = f"a duration above 0: {_TIME}"
_SIZE = "bytes, 300M, 1.5G or 80%, or none"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the arbiter and its workers run with. Durations are seconds; None is "off".

    From PM2, with the names it gives them: autorestart, min_uptime, max_restarts, restart_delay,
    exp_backoff_restart_delay, stop_exit_codes, max_memory_restart, cron_restart, listen_timeout,
    wait_ready and instance_var. PM2's bare numbers are milliseconds, ours are seconds.
    """

    # No default here: "max" is a number only once the CPUs are counted.
    workers: int = field(
        metadata=_row(
            "max",
            read.worker_count,
            "N, max or 0 (one per usable CPU), or -1 (one fewer)",
            "how many; usable CPUs: those of the affinity mask, within the cgroup's quota rounded up",
        )
    )
    autorestart: Literal["true", "on-failure", "false"] = setting(
        "true", read.restart_rule, "true, on-failure or false", "on-failure: no restart after exit 0"
    )
    min_uptime: float = setting(
        "1s", read.duration, _TIME, "an exit before being ready for this long is unstable"
    )
    max_restarts: int = setting(
        "16",
        read.whole(0),
        "a whole number from 0",
        "unstable exits after which a slot is errored and left; HUP, reset and restart revive it",
    )
    restart_delay: float = setting("0", read.duration, _TIME, "fixed wait before a restart")
    exp_backoff_restart_delay: float = setting(
        "100ms",
        read.duration,
        _TIME,
        "first wait after an unplanned exit that came before backoff_reset, then times 1.5 with jitter; "
        "the very first such exit restarts at once",
    )
    max_restart_delay: float = setting(
        "15s", read.duration, _TIME, "cap of exp_backoff_restart_delay's growth"
    )
    backoff_reset: float = setting(
        "30s", read.duration, _TIME, "ready for this long: unstable exits and backoff start from 0 again"
    )
    stop_exit_codes: frozenset[int] = setting(
        "none",
        read.exit_codes,
        "exit codes from 0 to 255 such as 0,143, or none",
        "exit codes after which a slot stays stopped; a death by signal is never one of them",
    )
    max_memory_restart: Size | None = setting(
        "none", read.optional(read.size), _SIZE, "soft limit: the worker is replaced, replacement first"
    )
    max_memory_kill: Size | None = setting(
        "none", read.optional(read.size), _SIZE, "hard limit: SIGKILL at once, then restart"
    )
    memory_metric: Literal["rss", "uss"] = setting(
        "uss", read.one_of("rss", "uss"), "rss or uss", "what the limits look at: resident or unique memory"
    )
    memory_check_interval: float = setting("1s", read.above_zero, _SOME_TIME, "how often memory is sampled")
    max_lifetime: float | None = setting(
        "none", read.optional(read.above_zero), f"{_SOME_TIME}, or none", "age at which a worker is replaced"
    )
    max_lifetime_jitter: Jitter = setting(
        "10%",
        read.jitter,
        f"0% to 100%, or a duration: {_TIME}",
        "up to this much is added to max_lifetime, at random",
    )
    cron_restart: str | None = setting(
        "none",
        read.optional(read.cron_expression),
        "five cron fields such as 0 4 * * *, or none",
        "a rolling restart at these local times, never all workers at once",
    )
    listen_timeout: float = setting(
        "60s", read.above_zero, _SOME_TIME, "from fork to ready; past it the boot has failed"
    )
    wait_ready: bool = setting(
        "false", read.boolean, "true or false", "a worker is ready only when the app calls cluster.ready()"
    )
    reload_surge: int = setting(
        "1", read.whole(1), "a whole number from 1", "replacements started at once in a rolling reload"
    )
    shutdown_delay: float = setting(
        "0", read.duration, _TIME, "on TERM: answer on for this long while /readyz says 503, then drain"
    )
    scheduling: Literal["least", "shared"] = setting(
        "least",
        read.one_of("least", "shared"),
        "least or shared",
        "least: the least loaded worker gets the connection; shared: whoever accepts first",
    )
    metrics_bind: str = setting(
        "127.0.0.1:9464",
        read.address,
        "host:port, [::1]:port or unix:PATH, or none",
        "where the monitor listens; none: no address, the command socket stays",
    )
    metrics_path: str | None = setting(
        "none",
        read.optional(read.path),
        "a path such as /metrics, or none",
        "also serve the metrics on the app's own port here",
    )
    instance_var: str = setting(
        "MULTICORE_INSTANCE",
        read.variable,
        "a name of letters, digits and _",
        "environment variable with the instance number: from 0, the lowest free, kept by a replacement",
    )
    limit_request_body: int | None = setting(
        "none",
        read.optional(read.byte_count),
        "bytes, 10M or 1.5G, or none",
        "largest request body; beyond it 413, by Content-Length and while it arrives",
    )
    header_timeout: float = setting(
        "30s", read.duration, f"{_TIME}; 0: any time", "until a request's head is complete; then 408"
    )
    body_timeout: float = setting(
        "60s", read.duration, f"{_TIME}; 0: any time", "without a byte of a request's body; then 408"
    )
    send_timeout: float = setting(
        "60s",
        read.duration,
        f"{_TIME}; 0: any time",
        "without the client taking any of a response; then cut off",
    )
    app_metrics: bool = setting(
        "true", read.boolean, "true or false", "aggregate the app's own prometheus_client metrics"
    )


class Setting(NamedTuple):
    """One row of the table: a setting by name, and how to read and explain it."""

    name: str
    default: str
    parse: Callable[[object], Any]
    accepted: str
    meaning: str

    @property
    def environment(self) -> str:
        """MULTICORE_MAX_MEMORY_RESTART."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """--max-memory-restart."""
        return "--" + self.name.replace("_", "-")


TABLE: dict[str, Setting] = {row.name: Setting(row.name, **row.metadata) for row in fields(Settings)}


def reference() -> str:
    """The table of settings in Markdown, for the docs."""
    rows = [f"| `{row.name}` | `{row.default}` | {row.accepted} | {row.meaning} |" for row in TABLE.values()]
    return "\n".join(["| setting | default | accepted | meaning |", "| --- | --- | --- | --- |", *rows])


# -- sources
