"""Explains an APP that is not ``module:attribute``, before anything starts.

It imports nothing. It reads the module's source, as far as it can find it.
"""

from __future__ import annotations

import ast
import contextlib
import re
from importlib.util import find_spec
from pathlib import Path

USUAL = ("app", "application", "api", "asgi", "wsgi", "create_app", "make_app", "factory")

_APP = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def mistake_in(app: str) -> str:
    """Return what is wrong with APP and what it should be; empty if it may be right."""
    path, _, attribute = app.partition(":")
    if len(path.split()) > 1:  # PM2 starts whole commands
        return f"{app!r} is a command; give its app, and options behind that: {_app_in(app.split()[1:])}"
    if path.endswith(".py") or "/" in path:
        meant = _app_of(path, attribute)
        return f"{app!r} is a file; give the module and the app in it: {meant}"
    if ":" in app:
        return ""
    names = _names(_source_of(path))
    if not names or "application" in names or "__getattr__" in names:
        return ""
    meant = f"{path}:{_usual(names) or 'NAME'}"
    return f"{app!r} means {path}:application, which {path} does not have; give {meant}"


def _app_in(words: list[str]) -> str:
    """The app that a command line of uvicorn, gunicorn or Python names."""
    apps = (it if _APP.fullmatch(it) else _app_of(it) if it.endswith(".py") else "" for it in words)
    return next(filter(None, apps), "module:app")


def _app_of(path: str, attribute: str = "") -> str:
    module = path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
    return f"{module}:{attribute or _usual(_names(Path(path))) or 'app'}"


def _usual(names: set[str]) -> str:
    return next((name for name in USUAL if name in names), "")


def _source_of(module: str) -> Path:
    with contextlib.suppress(ImportError, AttributeError, ValueError):  # of a package, or of no module
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    return Path()


def _names(path: Path) -> set[str]:
    """Return the names that a module binds; none if its source cannot be read or has ``import *``."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return set() if "*" in found else found
