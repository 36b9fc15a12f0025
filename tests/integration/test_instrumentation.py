"""Popular instrumentation packages: exact over all workers on /metrics, and their own route works."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support.app_metrics import kill
from tests.support.scraping import Scrape, Scraped, connected
from tests.support.server import MakeServer, Server

FASTAPI = '''
import os
from fastapi import FastAPI
from prometheus_fastapi_instrumentator import Instrumentator

app = FastAPI()
Instrumentator(should_instrument_requests_inprogress=True).instrument(app).expose(app)

@app.get("/")
def who():
    return int(os.environ["MULTICORE_INSTANCE"])

@app.get("/items/{number}")
async def item(number: int):
    return number
'''  # fmt: skip

STARLETTE = '''
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette_exporter import PrometheusMiddleware, handle_metrics

def who(request):
    return JSONResponse(int(os.environ["MULTICORE_INSTANCE"]))

async def item(request):
    return JSONResponse(int(request.path_params["number"]))

app = Starlette(routes=[Route("/", who), Route("/items/{number}", item), Route("/metrics", handle_metrics)])
app.add_middleware(PrometheusMiddleware, group_paths=True)
'''  # fmt: skip

DJANGO = '''
import os
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import include, path

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_prometheus"],
    MIDDLEWARE=[
        "django_prometheus.middleware.PrometheusBeforeMiddleware",
        "django_prometheus.middleware.PrometheusAfterMiddleware",
    ],
)

def who(request):
    return JsonResponse(int(os.environ["MULTICORE_INSTANCE"]), safe=False)

def item(request, number):
    return JsonResponse(number, safe=False)

urlpatterns = [
    path("", who), path("items/<int:number>", item, name="item"), path("", include("django_prometheus.urls")),
]
app, wsgi = get_asgi_application(), get_wsgi_application()
'''  # fmt: skip

FLASK = '''
import os
from flask import Flask, jsonify
from prometheus_flask_exporter import PrometheusMetrics

app = Flask(__name__)
metrics = PrometheusMetrics(app)

@app.get("/")
def who():
    return jsonify(int(os.environ["MULTICORE_INSTANCE"]))

@app.get("/items/<int:number>")
@metrics.counter("items", "Items.")
@metrics.histogram("item_seconds", "Items.")
def item(number):
    return jsonify(number)
'''  # fmt: skip


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
    DJANGO,
    "django_http_requests_total_by_view_transport_method_total",
    "django_http_requests_latency_seconds_by_view_method",
    {"view": "item", "method": "GET"},
)
PACKAGES = {
    "fastapi": Package(
        "prometheus_fastapi_instrumentator",
        FASTAPI,
        "http_requests_total",
        "http_request_duration_seconds",
        {"handler": "/items/{number}", "method": "GET"},
        in_progress="http_requests_inprogress",
    ),
    "starlette": Package(
        "starlette_exporter",
        STARLETTE,
        "starlette_requests_total",
        "starlette_request_duration_seconds",
        {"path": "/items/{number}", "method": "GET", "status_code": "200"},
        in_progress="starlette_requests_in_progress",
    ),
    "django": IN_DJANGO,
    "django_wsgi": IN_DJANGO._replace(name="app:wsgi"),
    "flask": Package(
        "prometheus_flask_exporter",
        FLASK,
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
    scraped = Scraped(make_server(package.app))
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
