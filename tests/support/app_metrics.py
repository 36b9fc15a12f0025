"""An app with a metric of every kind, and what they are to show."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.support.apps import source
from tests.support.processes import wait_gone
from tests.support.scraping import Scraped, each_worker
from tests.support.server import Server

MakeServer: TypeAlias = Callable[..., Server]

APP = source("counted")
TELL = source("tell_directory")  # a configuration

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
DIRECTORY = "os.environ['PROMETHEUS_MULTIPROC_DIR']"


def start(
    make_server: MakeServer, *options: str, workers: int = 2, more: str = "", also: str | None = None,
    config: str = "", **others: Any,
) -> Scraped:  # fmt: skip
    """Start the app, with more code and another file of ``tests/apps`` behind it; what a scraper sees."""
    app = APP if also is None else source("counted", also)
    scraped = Scraped(make_server(app + more))
    scraped.server.write("gunicorn.conf.py", config)
    scraped.start("-w", str(workers), *options, ready=workers, **others)
    return scraped


def note(server: Server, *values: float) -> None:
    """Let the worker of each instance note its value, in this order."""
    with each_worker(server, len(values)) as ask:
        for instance, value in enumerate(values):
            ask[instance](f"note({value})")


def kill(server: Server, instance: int) -> None:
    pid = server.worker_of(instance)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


def gauges(live: str = "", by_worker: dict[int, float] | None = None, **modes: float) -> dict[str, float]:
    """The gauges of the app as a scrape has them, of the modes that are named."""
    of_workers = {f'{live}all_level{{worker="{worker}"}}': it for worker, it in (by_worker or {}).items()}
    return of_workers | {f"{live}{mode}_level": value for mode, value in modes.items()}


def counts(values: Sequence[float]) -> dict[str, float]:
    """What counters, histograms and summaries show when these values were noted."""
    total, count = sum(values), len(values)
    buckets = {bound: sum(value <= float(bound) for value in values) for bound in ("1.0", "10.0", "+Inf")}
    return {
        'hits_total{path="/"}': total,
        **{f'seconds_bucket{{le="{bound}"}}': number for bound, number in buckets.items()},
        **{f"{name}_sum": total for name in ("seconds", "size")},
        **{f"{name}_count": count for name in ("seconds", "size")},
    }


def levels(app: dict[str, float], live: str) -> dict[str, float]:
    """The app's gauges that are ``live``, or those that are not."""
    found = {name: value for name, value in app.items() if "_level" in name}
    return {name: value for name, value in found.items() if name.startswith("live") == bool(live)}


def told(server: Server) -> Path:
    """The directory of a server that has `TELL` for its configuration."""
    return Path((server.directory / "directory").read_text())
