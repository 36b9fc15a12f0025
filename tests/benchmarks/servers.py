"""The servers that are compared, ours and the peers, and the apps that they serve: `tests/apps/costs.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.benchmarks.common import LOCAL, OURS, UVICORN_WORKER, gunicorn

Command = Callable[[int], list[str]]


def of_uvicorn(app: str, workers: int) -> Command:
    many = ["--workers", str(workers)] if workers > 1 else []
    command = [sys.executable, "-m", "uvicorn", app, "--no-access-log", "--log-level", "warning", *many]
    return lambda port: [*command, "--host", LOCAL, "--port", str(port)]


def of_granian(app: str, workers: int) -> Command:
    interface = "wsgi" if app.endswith("wsgi") else "asgi"
    command = [sys.executable, "-m", "granian", "--interface", interface, "--workers", str(workers), app]
    return lambda port: [*command, "--host", LOCAL, "--port", str(port), "--log-level", "warning"]


SERVERS: dict[str, Callable[[str, int], Command]] = {
    "ours": lambda app, workers: gunicorn(OURS, workers, app),
    "uvicorn-worker": lambda app, workers: gunicorn(UVICORN_WORKER, workers, app),
    "uvicorn": of_uvicorn,
    "asgi": lambda app, workers: gunicorn("asgi", workers, app),
    "gthread": lambda app, workers: gunicorn("gthread", workers, app),
    "granian": of_granian,
}
ASGI = ("ours", "uvicorn-worker", "uvicorn", "asgi", "granian")
WSGI = ("ours", "gthread", "granian")
# By name: where the app is, and who can serve it; the first peer is what the others are compared with.
APPS = {
    "hello": ("costs:asgi", ASGI),
    "large": ("costs:large", ASGI),
    "fastapi": ("costs:fastapi", ASGI),
    "sse": ("costs:events", ASGI),
    "rows": ("costs:rows", ASGI),
    "wsgi": ("costs:wsgi", WSGI),
    "flask": ("costs:flask_wsgi", WSGI),
    "django": ("costs:django_wsgi", WSGI),
}
