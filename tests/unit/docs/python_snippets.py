"""What Python in the docs says is there: imports, names of `cluster`, settings, hooks. An app answers."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

import httpx
import pytest
from gunicorn.app.wsgiapp import WSGIApplication

from multicore_server import cluster
from multicore_server.settings.hooks import EVENTS, adopt
from multicore_server.settings.sources import resolve
from multicore_server.settings.table import TABLE, SettingError
from multicore_server.worker.interface import detect

CONFIG = "# gunicorn.conf.py\n"


def check_python(text: str) -> None:
    """Raises AssertionError, ImportError, SyntaxError, or what the code raises."""
    tree = ast.parse(text)
    # A coroutine's part stands alone in a page.
    code = compile(tree, "snippet", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        _check_import(node)
        _check_cluster(node)
    if _is_config(text, tree):
        _check_config(tree, text)
    elif not _unknown(tree) and _installed(tree):
        _run(code)


def _check_import(node: ast.AST) -> None:
    """What is imported from this package is there; of others, what is installed."""
    if (
        isinstance(node, ast.ImportFrom)
        and node.module
        and importlib.util.find_spec(node.module.split(".")[0])
    ):
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                importlib.import_module(f"{node.module}.{alias.name}")


def _check_cluster(node: ast.AST) -> None:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cluster":
        assert hasattr(cluster, node.attr), f"there is no cluster.{node.attr}"


# --- configuration files


def _is_config(text: str, tree: ast.Module) -> bool:
    names = [getattr(target, "id", "") for it in tree.body for target in getattr(it, "targets", [])]
    return text.startswith(CONFIG) or (len(names) == len(tree.body) > 0 and all(it in TABLE for it in names))


def _check_config(tree: ast.Module, text: str) -> None:
    """gunicorn and the table of settings read it; its names are settings, hooks, or used by it."""
    if not _installed(tree):
        pytest.skip("it imports what is not installed here")
    with _loaded(text) as cfg:
        known = {*cfg.settings, *TABLE, *EVENTS}
        used = {it.id for it in ast.walk(tree) if isinstance(it, ast.Name) and isinstance(it.ctx, ast.Load)}
        for statement in tree.body:
            imports = isinstance(statement, (ast.Import, ast.ImportFrom))
            for name in () if imports else _given(statement):
                assert name in known | used, f"{name} is no setting"
        try:
            resolve(cfg, cpus=lambda: 4, environ={}, argv=[])
        except SettingError as exc:
            raise AssertionError(str(exc)) from None


@contextlib.contextmanager
def _loaded(text: str) -> Iterator[Any]:
    """The configuration of a real ``gunicorn app:app``, with a file of this text beside it."""
    module = ModuleType("__config__")
    module.__file__ = __file__
    exec(compile(text, "gunicorn.conf.py", "exec"), vars(module))
    with pytest.MonkeyPatch.context() as patch:  # what is imported meanwhile stays
        patch.setattr(sys, "argv", ["gunicorn", "app:app"])
        cfg = WSGIApplication("%(prog)s", prog="gunicorn").cfg
        patch.setitem(sys.modules, "__config__", module)
        for name, value in vars(module).items():
            if name in cfg.settings:
                cfg.set(name, value)
        adopt(cfg)
        yield cfg


def _given(statement: ast.stmt) -> set[str]:
    """The names that a statement gives something at the top of its file."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    return {it.id for it in getattr(statement, "targets", []) if isinstance(it, ast.Name)}


# --- what can be run


def _bound(tree: ast.AST) -> set[str]:
    """The names that a snippet gives something, at any place of it."""
    names = {it.id for it in ast.walk(tree) if isinstance(it, ast.Name) and not isinstance(it.ctx, ast.Load)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
    return names


def _unknown(tree: ast.Module) -> set[str]:
    """The names that are the reader's: such a snippet is a part of a program."""
    read = {it.id for it in ast.walk(tree) if isinstance(it, ast.Name)}
    return read - _bound(tree) - set(dir(builtins)) - {"__name__"}


def _installed(tree: ast.Module) -> bool:
    modules = [it.module or "" for it in ast.walk(tree) if isinstance(it, ast.ImportFrom)]
    modules += [alias.name for it in ast.walk(tree) if isinstance(it, ast.Import) for alias in it.names]
    return all(map(_is_installed, modules))


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is not None


def _run(code: CodeType) -> None:
    found: dict[str, Any] = {"__name__": "snippet"}
    assert eval(code, found) is None, "it awaits something at its top"
    if "app" in found:
        assert _status(found["app"]) == 200


def _status(app: Any) -> int:
    """Of the answer to ``GET /``."""
    if detect(app) == "wsgi":
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://app") as client:
            return client.get("/").status_code

    async def ask() -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return (await client.get("/")).status_code

    return asyncio.run(ask())
