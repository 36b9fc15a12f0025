"""Detection of the interface: by coroutine functions, then by count, never by a guess."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from typing import Any

import pytest

from multicore_server.worker.interface import detect, resolve


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


async def asgi3(scope: Any, receive: Any, send: Any) -> None:
    pass


def plain_asgi3(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
    return asgi3(scope, receive, send)


def asgi2(scope: Any) -> Any:
    return functools.partial(asgi3, scope)


def create_app(config: Any = None, **options: Any) -> Any:
    return wsgi


class WSGIClass:
    """PEP 3333's AppClass."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        self.environ = environ

    def __iter__(self) -> Iterator[bytes]:
        return iter([b""])


class ASGI2Class:
    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        pass


class ASGI3Class:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope

    def __await__(self) -> Generator[Any, None, None]:
        yield


class NoArguments:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass


class WSGIInstance:
    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []

    def method(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


class StarArguments:
    def __call__(self, *args: Any) -> Any:
        return None


class AsyncStarArguments:
    async def __call__(self, *args: Any, **kwargs: Any) -> None:
        pass


def decorated(app: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(app)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return wrapper


def injected(app: Callable[..., Any]) -> Callable[..., Any]:
    """Call a function of three with two: __wrapped__ says asgi3, the wrapper itself is right."""

    @functools.wraps(app)
    def wrapper(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response, "database")

    return wrapper


def wsgi_with_database(environ: Any, start_response: Any, database: Any) -> Iterable[bytes]:
    return []


APPS: dict[str, list[Any]] = {
    "asgi3": [
        asgi3,
        plain_asgi3,
        ASGI3Class,
        NoArguments(),
        AsyncStarArguments(),
        decorated(asgi3),
        functools.partial(asgi3),
        functools.partial(lambda extra, scope, receive, send: None, "extra"),
    ],
    "wsgi": [
        wsgi,
        WSGIClass,
        WSGIInstance(),
        WSGIInstance().method,
        decorated(wsgi),
        decorated(decorated(wsgi)),
        injected(wsgi_with_database),
        functools.partial(wsgi_with_database, database=None),
        lambda environ, start_response, debug=False: [],
    ],
    "asgi2": [asgi2, ASGI2Class, decorated(asgi2)],
    "factory": [create_app, NoArguments, lambda: wsgi, functools.partial(asgi2, None)],
}


@pytest.mark.parametrize("kind", APPS)
def test_detect(kind: str) -> None:
    for app in APPS[kind]:
        assert detect(app) == kind, app


class Keywords:
    def __call__(self, environ: Any, start_response: Any, *, needed: Any) -> Any:
        return None


class Pair:
    """Two arguments, but nothing to iterate over."""

    def __init__(self, left: Any, right: Any) -> None:
        self.pair = left, right


class One:
    def __init__(self, only: Any) -> None:
        self.only = only


class Three:
    def __init__(self, one: Any, two: Any, three: Any) -> None:
        self.three = one, two, three


async def async_factory() -> Any:
    return asgi3


@pytest.mark.parametrize(
    ("app", "why"),
    [
        (StarArguments(), r"\*args"),
        (lambda config=None, *rest: None, r"\*args"),
        (Keywords(), "keyword"),
        (Pair, "not iterable"),
        (One, "receive, send"),
        (Three, "awaited"),
        (async_factory, "coroutine function"),
        (lambda a, b, c, d: None, "requires 4"),
        (dict, "signature"),
    ],
)
def test_nothing_is_guessed(app: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        detect(app)
    assert "UVICORN_INTERFACE=asgi3|asgi2|wsgi" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_app() -> None:
    with pytest.raises(ValueError, match="an instance of int is not callable"):
        detect(3)
    with pytest.raises(ValueError, match="not callable"):
        resolve("app", "wsgi")
    with pytest.raises(ValueError, match="'wsgi3' is not known"):
        resolve(wsgi, "wsgi3")


def test_resolve_calls_a_factory_once() -> None:
    calls = []

    def factory() -> Any:
        calls.append(1)
        return wsgi

    assert resolve(factory) == (wsgi, "wsgi")
    assert resolve(factory, factory=True) == (wsgi, "wsgi")
    assert resolve(factory, "wsgi", factory=True) == (wsgi, "wsgi")
    assert len(calls) == 3


def test_an_explicit_interface_wins() -> None:
    ambiguous = StarArguments()
    assert resolve(ambiguous, "wsgi") == (ambiguous, "wsgi")
    assert resolve(lambda: ambiguous, "asgi3", factory=True) == (ambiguous, "asgi3")

    def all_optional(environ: Any = None, start_response: Any = None) -> Iterable[bytes]:
        return []

    assert resolve(all_optional, "wsgi") == (all_optional, "wsgi")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        (lambda: None, "returned None"),
        (lambda: 3, "an instance of int, which is not callable"),
        (lambda: create_app, "returned another factory"),
        (3, "not an app factory"),
        (async_factory, "is async"),
    ],
)
def test_a_factory_that_gives_no_app(factory: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        resolve(factory, factory=True)
    assert "\n" not in str(caught.value)
