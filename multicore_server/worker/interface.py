"""Detects the interface of an app: ASGI 3, ASGI 2 or WSGI; or whether it is a factory of an app.

An app does not name its interface, so its signature decides. If the signature fits two interfaces, the user
has to name one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from multicore_server.ipc.names import Interface

Detected: TypeAlias = Literal["asgi3", "asgi2", "wsgi", "factory"]

INTERFACES: tuple[Interface, ...] = ("asgi3", "asgi2", "wsgi")
_BY_HAND = "set it by hand: UVICORN_INTERFACE=asgi3|asgi2|wsgi"

# asgi3: app(scope, receive, send); wsgi: app(environ, start_response); asgi2: app(scope) -> instance.
_BY_COUNT: dict[int, Detected] = {3: "asgi3", 2: "wsgi", 1: "asgi2", 0: "factory"}


class _Positional(NamedTuple):
    """The positional parameters of a callable."""

    required: int
    most: int
    open_ended: bool  # it takes *args
    needs_keywords: bool  # nobody passes an app keyword arguments


def detect(app: Any) -> Detected:
    """Return how `app` is called: ``asgi3``, ``asgi2``, ``wsgi``, or ``factory`` (no arguments).

    Raises ValueError, with a line that says how to set it by hand, when that would be a guess.
    """
    if not callable(app):
        raise ValueError(f"{_name(app)} is not callable, so it is not an app")
    if inspect.isclass(app):
        return _of_class(app)
    if _is_coroutine_function(app):
        return _of_coroutine_function(app)
    return _by_count(app, _parameters(app))


def resolve(app: Any, interface: str = "auto", factory: bool = False) -> tuple[Any, Interface]:
    """Return the app that is to be served and its interface, calling a factory once.

    An `interface` other than ``auto`` is taken as it is; then only `factory` makes the app a factory.
    """
    if interface != "auto" and interface not in INTERFACES:
        raise ValueError(f"interface {interface!r} is not known: use auto, {', '.join(INTERFACES)}")
    if factory or (interface == "auto" and detect(app) == "factory"):
        app = _produce(app)
        if interface == "auto" and detect(app) == "factory":
            raise ValueError(f"the app factory returned another factory, {_name(app)}; {_BY_HAND}")
    if not callable(app):
        raise ValueError(f"{_name(app)} is not callable, so it is not an app")
    for known in INTERFACES:
        if interface == known:
            return app, known
    found = detect(app)
    assert found != "factory"
    return app, found


def _produce(factory: Any) -> Any:
    """Call a factory and return the app. Raises ValueError where it returns none."""
    if not callable(factory):
        raise ValueError(f"{_name(factory)} is not callable, so it is not an app factory")
    app = factory()
    if callable(app):
        return app
    if inspect.iscoroutine(app):
        app.close()  # or Python warns that it was never awaited
        raise ValueError(f"the app factory {_name(factory)} is async: it has to be a plain function")
    returned = "None" if app is None else f"{_name(app)}, which is not callable"
    raise ValueError(f"the app factory {_name(factory)} returned {returned} where an app was expected")


def _of_class(cls: type) -> Detected:
    """Judge a class by the arguments of its constructor and by the methods of its instances."""
    found = _by_count(cls, _parameters(cls))
    if found == "asgi3" and not hasattr(cls, "__await__"):
        raise _unclear(cls, "a class of three arguments whose instances cannot be awaited")
    # PEP 3333, "The Application/Framework Side": class AppClass with __iter__.
    if found == "wsgi" and not (hasattr(cls, "__iter__") or hasattr(cls, "__getitem__")):
        raise _unclear(cls, "a class of two arguments whose instances are not iterable")
    if found == "asgi2" and not _takes_receive_and_send(cls):
        raise _unclear(cls, "a class of one argument whose instances do not take (receive, send)")
    return found


def _takes_receive_and_send(cls: type) -> bool:
    # Not getattr(): a class always has the __call__ of its metaclass, by which it is constructed.
    for base in cls.__mro__:
        if "__call__" in vars(base):
            wanted = _parameters(vars(base)["__call__"])
            return wanted.required == 3 or (wanted.open_ended and wanted.required < 3)  # with self
    return False


def _of_coroutine_function(app: Any) -> Detected:
    wanted = _parameters(app)
    if wanted.needs_keywords or wanted.required > 3 or not (wanted.open_ended or wanted.most >= 3):
        raise _unclear(app, "a coroutine function that does not take (scope, receive, send)")
    return "asgi3"


def _by_count(app: Any, wanted: _Positional) -> Detected:
    if wanted.needs_keywords:
        raise _unclear(app, "it requires keyword arguments")
    if wanted.open_ended and wanted.required < 3:
        raise _unclear(app, "it takes *args")
    if wanted.required not in _BY_COUNT:
        raise _unclear(app, f"it requires {wanted.required} arguments")
    return _BY_COUNT[wanted.required]


def _parameters(app: Callable[..., Any]) -> _Positional:
    """Read the positional parameters of `app`.

    A decorator may add or remove arguments, so a wrapper's own signature counts. Where that is ``*args``, the
    signature of what it wraps counts.
    """
    try:
        own = _count(inspect.signature(app, follow_wrapped=False))
        return _count(inspect.signature(app)) if own.open_ended else own
    except (TypeError, ValueError):  # builtins and extension types may have no signature
        raise _unclear(app, "it has no signature") from None


def _count(signature: inspect.Signature) -> _Positional:
    parameters = signature.parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return _Positional(
        required=sum(p.default is p.empty for p in positional),
        most=len(positional),
        open_ended=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        needs_keywords=any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters),
    )


def _is_coroutine_function(app: Any) -> bool:
    call = getattr(app, "__call__", None)  # noqa: B004 - the method itself is asked, not whether it is there
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(call)


def _unclear(app: Any, why: str) -> ValueError:
    return ValueError(f"cannot tell which interface {_name(app)} speaks: {why}; {_BY_HAND}")


def _name(app: Any) -> str:
    if isinstance(app, partial):
        return f"partial({_name(app.func)})"
    module = getattr(app, "__module__", None)
    qualname = getattr(app, "__qualname__", None)
    if qualname is not None:
        return f"{module}.{qualname}" if module else str(qualname)
    kind = type(app)
    return f"an instance of {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
