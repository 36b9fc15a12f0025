"""Apps of every shape: ASGI 3, ASGI 2 and WSGI, as functions, classes, instances and factories."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send


async def asgi3_function(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    body = ("ASGI " + scope["asgi"]["version"]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class ASGI3Class:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.connection = scope, receive, send

    def __await__(self) -> Generator[Any, None, None]:
        return asgi3_function(*self.connection).__await__()


class Callable3:
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asgi3_function(scope, receive, send)


class ASGI2Class:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, receive: Receive, send: Send) -> None:
        await asgi3_function(self.scope, receive, send)


def asgi2_function(scope: Scope) -> ASGI2Class:
    return ASGI2Class(scope)


def wsgi_function(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "8")])
    return [b"WSGI 1.0"]


class WSGIClass:
    def __init__(self, environ: WSGIEnvironment, start_response: StartResponse) -> None:
        self.body = wsgi_function(environ, start_response)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.body)


class WSGICallable:
    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        return wsgi_function(environ, start_response)


asgi3_instance, wsgi_instance = Callable3(), WSGICallable()


def create() -> Callable3:
    return asgi3_instance


def create_wsgi(name: str = "x") -> WSGICallable:
    return wsgi_instance
