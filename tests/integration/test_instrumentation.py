"""Popular instrumentation packages: exact over all workers on /metrics, and their own route works."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support.app_metrics import kill
from tests.support.apps import source
from tests.support.scraping import Scrape, Scraped, connected
from tests.support.server import MakeServer, Server


class Package(NamedTuple):
    """What the items that an app has served are counted in: a counter, a histogram, and their labels."""

    module: str
    app: str
    counter: str
    histogram: str
    labels: dict[str, str]
    name: str = "app:app"
    in_progress: str = ""  # a gauge that is 0 when there are no requests


IN_DJANGO = Package(
    "django_prometheus",
    "instrumented_django",
    "django_http_requests_total_by_view_transport_method_total",
    "django_http_requests_latency_seconds_by_view_method",
    {"view": "item", "method": "GET"},
)
PACKAGES = {
    "fastapi": Package(
        "prometheus_fastapi_instrumentator",
        "instrumented_fastapi",
        "http_requests_total",
        "http_request_duration_seconds",
        {"handler": "/items/{number}", "method": "GET"},
        in_progress="http_requests_inprogress",
    ),
    "starlette": Package(
        "starlette_exporter",
        "instrumented_starlette",
        "starlette_requests_total",
        "starlette_request_duration_seconds",
        {"path": "/items/{number}", "method": "GET", "status_code": "200"},
        in_progress="starlette_requests_in_progress",
    ),
    "django": IN_DJANGO,
    "django_wsgi": IN_DJANGO._replace(name="app:wsgi"),
    "flask": Package(
        "prometheus_flask_exporter",
        "instrumented_flask",
        "items_total",
        "item_seconds",
        {},
    ),
}


def ask_for_items(server: Server, count: int) -> int:
    """Let each worker serve items, not equally many; how many requests all of them were."""
    with connected(server, count, "/") as workers:
        for instance, get in workers.items():
            assert [get(f"/items/{number}") for number in range(instance + 2)] == [*range(instance + 2)]
    return sum(instance + 2 for instance in range(count))


def counted(scrape: Scrape, package: Package) -> tuple[float, float]:
    counter = scrape.sum(package.counter, **package.labels)
    return counter, scrape.sum(f"{package.histogram}_count", **package.labels)


@pytest.mark.parametrize("name", PACKAGES)
def test_instrumentation(make_server: MakeServer, name: str) -> None:
    package = PACKAGES[name]
    pytest.importorskip(package.module)
    scraped = Scraped(make_server(source(package.app)))
    server = scraped.server
    scraped.start("-w", "2", app=package.name, ready=2)
    total = ask_for_items(server, 2)
    assert counted(scraped.scrape(), package) == (total, total)
    kill(server, 0)
    server.wait_ready(3)
    total += ask_for_items(server, 2)
    scrape = scraped.scrape()
    assert counted(scrape, package) == (total, total)
    assert scrape.value("multicore_app_metrics_left_out", reason="collision") == 0
    if package.in_progress:
        assert scrape.sum(package.in_progress) == 0

    own = server.get("/metrics")
    assert own.status_code == 200
    assert counted(Scrape(own.text), package) == (total, total)
    assert "killed by SIGKILL" in "".join(server.logged("WARNING|ERROR"))
    assert len(server.logged("WARNING|ERROR|Traceback")) == 1
