"""The contract with gunicorn and uvicorn: it is complete, and each missing member gets the right answer."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from click.testing import CliRunner
from uvicorn.config import HTTP_PROTOCOLS

import multicore_server
from multicore_server import hosts
from multicore_server.application import Application
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.cli.main import main
from multicore_server.connections import http2, lean, protocol, zttp
from multicore_server.connections.factory import movable
from multicore_server.connections.state import ConnectionsState
from multicore_server.hosts import CONTRACT, ZTTP, Feature, Row
from multicore_server.monitor.guard import GuardedConnection, GuardedState
from multicore_server.monitor.process import MonitorServer
from multicore_server.worker import meter
from multicore_server.worker.server import WorkerServer
from multicore_server.worker.worker import Worker
from tests.support.parsers import HAS_ZTTP

PACKAGE = Path(multicore_server.__file__).parent
ALL = (*CONTRACT, *(ZTTP if HAS_ZTTP else ()))
NAMED = {name for row in ALL for name in row.names}
EACH = [
    pytest.param(row, name, id=f"{row.owner}.{name} {row.set_by} {row.feature}")
    for row in CONTRACT
    for name in row.names
]


@pytest.fixture(autouse=True)
def _looked_up_anew() -> Iterator[None]:
    hosts._lost.cache_clear()
    movable.cache_clear()
    yield
    hosts._lost.cache_clear()
    movable.cache_clear()


def owner(row: Row) -> Any:
    module, _, name = row.owner.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def remove(row: Row, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a member away: an attribute of instances by renaming it in the method that sets it."""
    if row.set_by:
        method = inspect.unwrap(getattr(owner(row), row.set_by))
        names = tuple(f"former_{each}" if each == name else each for each in method.__code__.co_names)
        monkeypatch.setattr(
            owner(row), row.set_by, _with_code(method, method.__code__.replace(co_names=names))
        )
        return
    for holder in [owner(row), *getattr(owner(row), "__mro__", ())]:
        if name in vars(holder) and holder is not object:
            monkeypatch.delattr(holder, name)


def _with_code(function: FunctionType, code: Any) -> FunctionType:
    closure = function.__closure__
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)


# --- the installed hosts


def test_the_installed_hosts_have_every_member() -> None:
    assert [str(each) for each in hosts.missing()] == []


def test_nothing_is_refused_or_lost_with_the_installed_hosts() -> None:
    hosts.check()
    assert list(hosts.losses()) == []
    assert not any(hosts.lacks(feature) for feature in Feature)


@pytest.mark.parametrize(("row", "name"), EACH)
def test_a_missing_member_is_refused_or_done_without(
    row: Row, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove(row, name, monkeypatch)
    lost = {each.row.feature for each in hosts.missing()}
    assert row.feature in lost
    if None in lost:
        with pytest.raises(hosts.HostError, match=rf"needs {row.host}'s .*{name}, which {row.host} .* lacks"):
            hosts.check()
    else:
        hosts.check()
    lines = list(hosts.losses())
    assert len(lines) == len(lost - {None})
    assert all("tested with gunicorn 25.0 to" in line and "\n" not in line for line in lines)
    assert hosts.lacks(row.feature) if row.feature else True


def test_the_ranges_begin_where_the_package_requires_them_to() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for host, extra in (("gunicorn", ""), ("uvicorn", "[standard]")):
        assert f'"{host}{extra}>={hosts.TESTED[host][0]}"' in text


def test_a_module_that_is_gone_is_missing_with_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn.middleware.asgi2", None)
    assert [str(each) for each in hosts.missing()] == ["uvicorn's uvicorn.middleware.asgi2.ASGI2Middleware"]


# --- the table is complete


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def test_every_name_that_is_imported_from_a_host_is_named() -> None:
    unnamed = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in hosts.TESTED:
                unnamed += [
                    f"{path}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not _is_named(str(node.module), alias.name)
                ]
    assert unnamed == []


def _is_named(module: str, name: str) -> bool:
    owners = {row.owner for row in CONTRACT}
    as_class, as_module = f"{module}:{name}", f"{module}.{name}"
    return (
        any(row.owner == module and name in row.names for row in CONTRACT)
        or as_class in owners
        or any(each.partition(":")[0] == as_module for each in owners)
    )


def test_every_private_attribute_that_is_no_ones_here_is_named() -> None:
    # looked for before they are used
    loops = {"_get_backend_id", "_add_reader", "_read_ready", "_selector", "_callback", "_cancelled"}
    standard_library = {
        "_getframe",
        "_current_frames",
        "_enter_task",
        "_leave_task",
        "_replace",
        "_asdict",
        "_exit",
        "_value",
    }
    own: set[str] = set()
    found: dict[str, str] = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            own |= _defined(node)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr[:2] != "__":
                found[node.attr] = path
    unnamed = {
        name: path for name, path in found.items() if name not in own | NAMED | standard_library | loops
    }
    assert unnamed == {}


def _defined(node: ast.AST) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return {node.name}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        mine = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return {node.attr} if mine else set()
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {str(node.value)} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


SUBCLASSES = [Arbiter, Worker, WorkerServer, MonitorServer, ConnectionsState, GuardedConnection, GuardedState,
              Application]  # fmt: skip


@pytest.mark.parametrize("cls", SUBCLASSES)
def test_every_member_of_a_host_that_a_subclass_overrides_or_uses_is_named(cls: type) -> None:
    theirs = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in hosts.TESTED]
    known = set().union(*(set(vars(base)) | _set_on_instances(base) for base in theirs))
    ours = [base for base in cls.__mro__ if base.__module__.startswith("multicore_server.")]
    used = set().union(*(set(vars(base)) | _used(base, "self") for base in ours))
    public_and_inert = {"__doc__", "__module__", "__init__", "__dict__", "__weakref__"} | SINCE_3_13
    assert sorted((used & known) - NAMED - public_and_inert) == []


@pytest.mark.parametrize(
    "mixin",
    [
        protocol.MovableProtocol, protocol.MovableHttpTools, lean.LeanHttpTools, protocol.MovableH11,
        *((zttp.MovableZttp, zttp.StrictZttp, http2.Http2, http2.Sniffing) if HAS_ZTTP else ()),
    ],
)  # fmt: skip
def test_every_member_of_a_protocol_that_a_movable_one_uses_is_named(mixin: type) -> None:
    protocols: list[Any] = [owner(row) for row in ALL if row.owner.endswith("Protocol")]
    cycles: list[Any] = [owner(row) for row in ALL if row.owner.endswith("Cycle")]
    known = set().union(*(set(vars(base)) | _set_on_instances(base) for base in protocols))
    of_cycle = set().union(*(set(vars(base)) | _set_on_instances(base) for base in cycles))
    inert = {"__doc__", "__module__", "__annotations__", "__dict__", "__weakref__"} | SINCE_3_13
    assert sorted((_used(mixin, "self") | set(vars(mixin))) & known - NAMED - inert) == []
    assert sorted(_used(mixin, "cycle") & of_cycle - NAMED) == []


def _set_on_instances(cls: type) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is(node.value, "self")
    }


def _used(cls: type, variable: str) -> set[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    return {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is(node.value, variable)
    }


def _is(node: ast.expr, variable: str) -> bool:
    return isinstance(node, (ast.Name, ast.Attribute)) and variable in (
        getattr(node, "id", None),
        getattr(node, "attr", None),
    )


# --- what the server does without them


@pytest.mark.parametrize("name", ["httptools", "h11"])
def test_a_protocol_that_lacks_a_member_stays_uvicorns_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = Feature[f"{name.upper()}_MOVES"]
    row = next(row for row in CONTRACT if row.feature is feature and row.set_by)
    remove(row, row.names[-1], monkeypatch)
    module, _, attribute = HTTP_PROTOCOLS[name].partition(":")
    theirs = getattr(import_module(module), attribute)
    assert movable(theirs) is theirs


@pytest.mark.parametrize("name", ["run_asgi", "send", "disconnected", "scope"])
def test_a_cycle_that_lacks_a_member_is_not_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in CONTRACT if row.feature is Feature.H11_COUNTS and name in row.names)
    remove(row, name, monkeypatch)
    counted = meter.modules_of(import_module("uvicorn.protocols.http.h11_impl").H11Protocol)
    names = {module.__name__.rpartition(".")[2] for module in counted}
    assert "httptools_impl" in names
    assert "h11_impl" not in names


def test_without_setproctitle_titles_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("gunicorn.util._setproctitle")
    hosts.set_title("worker [app]")


def test_a_title_is_gunicorns_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("gunicorn.util._setproctitle", said.append)
    hosts.set_title("worker [app]")
    assert said == ["worker [app]"]


def test_a_logger_of_another_name_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    assert hosts.uvicorn_loggers() == {"uvicorn.error"}
    monkeypatch.setattr("uvicorn.server.logger", logging.getLogger("uvicorn.server"))
    assert hosts.uvicorn_loggers() == {"uvicorn.error", "uvicorn.server"}
    monkeypatch.delattr("uvicorn.server.logger")
    assert hosts.uvicorn_loggers() == {"uvicorn.error"}


def test_proxy_headers_are_off_by_the_option_that_uvicorn_has() -> None:
    def now(app: Any, proxy_headers: bool = True) -> None: ...
    def later(app: Any, proxy_headers: str = "x", no_proxy_headers: bool = False) -> None: ...

    assert hosts.proxy_headers_off(now) == {"proxy_headers": False}
    assert hosts.proxy_headers_off(later) == {"no_proxy_headers": True}


# --- how a user is told


def test_the_run_command_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("uvicorn.config.LOOP_FACTORIES")
    done = CliRunner().invoke(main, ["run", "app:app"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: multicore_server needs uvicorn's uvicorn.config.LOOP_FACTORIES")
    assert done.output.count("\n") == 1


REMOVE = """
import importlib, sys
import {module} as _
delattr(sys.modules["{module}"], "{name}")
"""
START = """
from gunicorn.app.wsgiapp import run
sys.argv = ["gunicorn", "-k", "multicore_server.Worker", "app:app"]
run()
"""
SINCE_3_13 = {"__firstlineno__", "__static_attributes__"}  # of every class
PREFORK = """
import os
os.execv = lambda *_: sys.exit("took over")
from uvicorn.main import main
main(["app:app", "--loop", "multicore_server:prefork"])
"""


def python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory, timeout=30)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("uvicorn.config", "LOOP_FACTORIES"),
        ("gunicorn.sock", "_sock_type"),
        ("uvicorn.middleware.asgi2", "ASGI2Middleware"),
    ],
)
def test_gunicorn_says_in_one_line_what_is_missing_at_import(module: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("app = None\n")
    done = python(REMOVE.format(module=module, name=name) + START, tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"needs {module.partition('.')[0]}'s {module}.{name}, which" in done.stderr


def test_prefork_needs_nothing_private_of_uvicorn(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("async def app(scope, receive, send): ...\n")
    code = REMOVE.format(module="uvicorn.middleware.asgi2", name="ASGI2Middleware")
    assert "took over\n" in python(code + PREFORK, tmp_path).stderr


# --- protocols that are newer than this package

NEWER = """
class RequestResponseCycle:
    def __init__(self):
        self.scope, self.disconnected = {}, False

    async def run_asgi(self, app): ...
    async def send(self, message): ...

class NewProtocol: ...
"""


def new_protocol(text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    package = tmp_path / "newer"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "impl.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in ("newer", "newer.impl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return import_module("newer.impl").NewProtocol


def test_an_unknown_protocol_is_counted_where_it_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = new_protocol(NEWER, monkeypatch, tmp_path)
    assert [module.__name__ for module in meter.modules_of(found)] == ["newer.impl"]
    assert movable(found) is found


def test_an_unknown_protocol_without_cycles_is_served_uncounted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert meter.modules_of(new_protocol("class NewProtocol: ...\n", monkeypatch, tmp_path)) == ()
