"""What a request costs, on several frameworks; each answers every path."""

from __future__ import annotations

from typing import Any

LENGTH = (b"content-length", b"11")
LARGE = b"x" * 65536


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain"), LENGTH]}
    )
    await send({"type": "http.response.body", "body": b"hello world"})


async def large(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"65536")]})
    await send({"type": "http.response.body", "body": LARGE})


async def events(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    for number in range(100):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
    await send({"type": "http.response.body"})


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "11")])
    return [b"hello world"]


def _fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def _flask() -> Any:
    from flask import Flask

    app = Flask(__name__)

    @app.get("/")
    def hello() -> str:
        return "hello world"

    return app.wsgi_app


def _django() -> Any:
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    def hello(request: Any) -> HttpResponse:
        return HttpResponse("hello world")

    settings.configure(
        ROOT_URLCONF=type("Urls", (), {"urlpatterns": [path("", hello)]}),
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],  # as in every new project
        SECRET_KEY="benchmark",
    )
    return get_wsgi_application()


def _rows() -> Any:
    """What the garbage collector has most to do with: many objects that stay, and many for each request."""
    staying = [[number, {}] for number in range(200_000)]

    async def rows(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        found = [{"id": number, "tags": [number]} for number in range(20_000)]
        body = b"%d of %d" % (len(found), len(staying))
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return rows


_MAKERS = {"rows": _rows, "fastapi": _fastapi, "flask_wsgi": _flask, "django_wsgi": _django}


def __getattr__(name: str) -> Any:
    """Each framework is imported by its own server alone."""
    if name not in _MAKERS:
        raise AttributeError(name)
    globals()[name] = _MAKERS[name]()
    return globals()[name]
