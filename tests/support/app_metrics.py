"""An app with a metric of every kind, and what they are to show."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tests.support.processes import wait_gone
from tests.support.scraping import Scraped, each_worker
from tests.support.server import Server

MakeServer: TypeAlias = Callable[..., Server]

# Answers with the value of the expression in the query, as ASGI and as WSGI.
APP = """
import json, os
from pathlib import Path
from urllib.parse import unquote
from prometheus_client import REGISTRY, Counter, Enum, Gauge, Histogram, Info, Summary, generate_latest

MODES = [live + mode for live in ("", "live") for mode in ("all", "min", "max", "sum", "mostrecent")]
hits = Counter("hits", "Hits.", ["path"])
seconds = Histogram("seconds", "Seconds.", buckets=(1, 10))
size = Summary("size", "Size.")
levels = {mode: Gauge(f"{mode}_level", "Level.", multiprocess_mode=mode) for mode in MODES}

def note(value):
    hits.labels("/").inc(value)
    seconds.observe(value)
    size.observe(value)
    for level in levels.values():
        level.set(value)

def hit():
    hits.labels("/").inc()
    return 1

def answer(query):
    return json.dumps(eval(unquote(query))).encode()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    body = answer(scope["query_string"].decode())
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

def wsgi(environ, start_response):
    body = answer(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
DIRECTORY = "os.environ['PROMETHEUS_MULTIPROC_DIR']"

# Of gunicorn's hooks this one is called first. It tells where the server keeps the metrics.
TELL = """
import os
def nworkers_changed(server, new, old):
    path = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    assert os.path.isdir(path)
    open("directory", "w").write(path)
"""


def start(
    make_server: MakeServer, *options: str, workers: int = 2, more: str = "", config: str = "", **others: Any
) -> Scraped:
    """Start the app, with more code behind it; what a scraper sees of it."""
    scraped = Scraped(make_server(APP + more))
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
