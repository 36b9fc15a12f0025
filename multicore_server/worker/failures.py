"""Explains why a worker could not boot, in words for the person who runs the server.

A mistake in the command line gets one line. An exception in the app gets one line and a traceback. The
traceback begins at the app's first frame, below those of the server and of the import system.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from pathlib import Path
from types import TracebackType

import gunicorn
import uvicorn
from gunicorn.errors import AppImportError

USUAL = ("app", "application", "api", "asgi", "wsgi")  # names of apps
# The frames between the worker and the app's own code.
OURS = (
    *(str(Path(str(module.__file__)).parent) for module in (gunicorn, uvicorn, importlib)),
    str(Path(__file__).parents[1]),  # this package
    "<frozen importlib",
)


def explain(exc: BaseException, app_uri: str) -> str:
    """One line that says what is wrong with the app ``app_uri`` (``module:name``) and what to do."""
    if isinstance(exc, SystemExit):
        return f"{app_uri} ended the process (sys.exit({exc.code!r})) while it was loaded"
    if isinstance(exc, AppImportError):
        return f"{app_uri}: {_first_line(exc).removesuffix('.')}; {_what_to_check(app_uri)}"
    if is_missing_app(exc, app_uri):
        return f"no module named {_name(exc)!r}; check {app_uri!r}, --chdir and --pythonpath"
    return f"{app_uri} could not be loaded: {_described(exc)}"


def _what_to_check(app_uri: str) -> str:
    """gunicorn takes a module without a name for ``module:application``."""
    module, _, name = app_uri.partition(":")
    found = [usual for usual in USUAL if callable(getattr(sys.modules.get(module), usual, None))]
    if not name and found:
        return f"did you mean {module}:{found[0]}?"
    return "check the name after the colon"


def about_addresses(exc: BaseException, metrics_bind: str) -> str:
    """What to add where the app could not listen at an address of its own: it does not say at which."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno == errno.EADDRINUSE:
            other = "(set metrics_bind to another address, or to none)"
            own = f"the server itself uses {metrics_bind} {other}, and " if metrics_bind else ""
            return f"; {own}every worker runs this code: only one of them can listen on an address"
        seen = seen.__cause__ or seen.__context__
    return ""


def one_line(exc: BaseException) -> str:
    """One line that says what is wrong, for a failure outside of the app's code."""
    if isinstance(exc, SystemExit):
        return f"something ended the process (sys.exit({exc.code!r}))"
    return _first_line(exc) if isinstance(exc, ValueError) else _described(exc)


def is_missing_app(exc: BaseException, app_uri: str) -> bool:
    """Whether the app's own module (or a package of it) does not exist."""
    module = app_uri.partition(":")[0]
    name = _name(exc)
    return isinstance(exc, ModuleNotFoundError) and bool(name) and f"{module}.".startswith(f"{name}.")


def app_traceback(exc: BaseException, app_uri: str) -> str:
    """The traceback from the app's first frame on; empty where `explain` says all."""
    if isinstance(exc, (SystemExit, AppImportError)) or is_missing_app(exc, app_uri):
        return ""
    start = _first_app_frame(exc.__traceback__)
    if start is None and not isinstance(exc, SyntaxError):
        if isinstance(exc, (ValueError, OSError, ImportError)):
            return ""
        start = exc.__traceback__  # a mistake of ours: all of it is wanted
    return "".join(traceback.format_exception(type(exc), exc, start)).rstrip()


def _first_app_frame(tb: TracebackType | None) -> TracebackType | None:
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(OURS):
        tb = tb.tb_next
    return tb


def _name(exc: BaseException) -> str:
    return getattr(exc, "name", None) or ""


def _described(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {_first_line(exc)}".removesuffix(": ")


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [""])[0]
