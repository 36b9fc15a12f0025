"""A reload never ends the server: every setting of gunicorn's and ours with values that it cannot have, and
config files that do what no config file should, on a real arbiter in this process."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gunicorn.arbiter
import pytest
from gunicorn.config import make_settings

from multicore_server.application import Application
from multicore_server.arbiter import arbiter as module
from multicore_server.arbiter import deployment
from multicore_server.arbiter.arbiter import Arbiter
from multicore_server.arbiter.deployment import DeploymentError
from multicore_server.fleet import events as ev
from multicore_server.settings.table import TABLE
from tests.unit.arbiter_itself.started import end
from tests.unit.shell import Log

# gunicorn drops a socket that cannot be bound, unclosed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

# Each is wrong for most settings, and some are right for a few: then the reload is committed.
VALUES = ("object()", "-1", "'\\0'", "'nonsense!'", "[object()]", "{'a': 1}", "float('nan')", "b'\\xff'",
          "''", "'/no/such/directory/x'", "lambda *_: 1 / 0", "2 ** 70")  # fmt: skip
NAMES = sorted({*make_settings(), *TABLE} - {"config"})

HOSTILE: dict[str, str | bytes] = {
    "a typo": "workers = ",
    "a NUL": "workers = 1\0",
    "not UTF-8": b"x = '\xff\xfe'",
    "a deep expression": "x = " + "(" * 500 + ")" * 500,
    "endless recursion": "def f(): f()\nf()",
    "an interrupt": "raise KeyboardInterrupt",
    "an exit": "raise SystemExit",
    "an exit with a text": "import sys; sys.exit('no')",
    "an exit with an object": "raise SystemExit(object())",
    "a generator's exit": "raise GeneratorExit",
    "no memory": "raise MemoryError",
    "an exception without a text": "raise RuntimeError",
    "an exception of many lines": "raise RuntimeError('a\\nb\\nc')",
    "an exception with 9,000 emoji": "raise RuntimeError('\\U0001f600' * 9000)",
    "a lone surrogate": "raise RuntimeError('\\udcff')",
    "an exception that cannot be shown": "class E(Exception):\n def __str__(self): raise OSError\nraise E",
    "a base exception of its own": "class E(BaseException): pass\nraise E('mine')",
    "a module that is missing": "import nowhere_to_be_found",
    "no address": "bind = []",
    "an empty address": "bind = ''",
    "an address with an empty label": "bind = '0..0.0:8000'",
    "a host of 300 letters": "bind = 'a' * 300 + ':8000'",
    "a port that is none": "bind = '127.0.0.1:http!'",
    "a port beyond all": "bind = '127.0.0.1:99999'",
    "a negative port": "bind = '127.0.0.1:-1'",
    "a descriptor that is closed": "bind = 'fd://987'",
    "a path that is too long": "bind = 'unix:/' + 'a' * 200",
    "a path that is a directory": "bind = 'unix:/tmp'",
    "an address that is nobody's": "bind = '192.0.2.1:8000'",
    "a good address and a bad one": "bind = ['127.0.0.1:0', '0..0.0:8000']",
    "a worker class that is missing": "worker_class = 'nowhere.Worker'",
    "another worker class": "worker_class = 'sync'",
    "a worker class that is no class": "worker_class = 7",
    "a user who is missing": "user = 'nobody-knows'",
    "a certificate that is missing": "certfile = '/no/such/file'",
    "a certificate that is none": "certfile = keyfile = __file__",
    "a key without its certificate": "keyfile = __file__",
    "a directory that is missing": "chdir = '/no/such/directory'",
    "it removes its own directory from the path": "import sys; sys.path.clear(); import nowhere_else",
    "hooks with wrong arguments": "def on_reload(): pass",
}
ACCEPTED = {
    "nothing": "",
    "metrics_bind with an empty label": "metrics_bind = '0..0.0:9464'",
    "a log directory that is missing": "errorlog = accesslog = '/no/such/directory/log'",
    "a log configuration that is missing": "logconfig = '/no/such/file'",
    "a log configuration that is none": "logconfig_dict = {'version': 7}",
    "a pidfile that cannot be made": "pidfile = '/no/such/directory/pid'",
    "an on_reload hook that fails": "def on_reload(server): 1 / 0",
    "an on_reload hook that ends": "def on_reload(server): raise SystemExit(4)",
    "an on_reload hook that interrupts": "def on_reload(server): raise KeyboardInterrupt",
    "an nworkers_changed hook that fails": "workers = 3\ndef nworkers_changed(*_): 1 / 0",
    "an environment that cannot be": "raw_env = ['A=\\0']",
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arbiter]:
    """An arbiter that serves; no worker is forked."""
    directory = tmp_path_factory.mktemp("server")
    (directory / "conf.py").write_text("")
    handlers = {name: signal.getsignal(name) for name in (*gunicorn.arbiter.Arbiter.SIGNALS, signal.SIGCHLD)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(directory))
        patch.setattr(module, "raise_descriptor_limit", lambda: None)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)  # files of one size and second have the same .pyc
        patch.chdir(directory)
        found = gunicorn.arbiter.Arbiter(
            Application(
                "app:app",
                {"config": str(directory / "conf.py"), "metrics_bind": "none"},
                defaults={"bind": ["127.0.0.1:0"], "logger_class": Log, "workers": 2},
            )
        )
        found.WORKERS = {}
        found.start()
        try:
            yield found
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
            end(found)


@pytest.fixture
def serving(
    shared: Arbiter, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Arbiter]:
    """It serves before and afterwards, with what was in force and with what it had opened."""
    monkeypatch.setattr(shared, "observe", lambda observation: None)
    before, directory, path = shared.in_force(), Path.cwd(), list(sys.path)
    yield shared
    now = shared.in_force()
    if now.cfg is not before.cfg:
        old = replace(before, surroundings=deployment.Surroundings.now(before.cfg))
        os.chdir(directory)
        sys.path[:] = path
        shared._install(old, now)
        for listener in now.listeners:
            if listener not in before.listeners:
                listener.close()
    assert Path.cwd() == directory
    assert accepts(shared)
    if "[bind]" in request.node.name or "config_file" in request.node.name:
        gc.collect()  # what gunicorn drops unclosed must not be found by another test


def accepts(arbiter: Arbiter) -> bool:
    sockets = [listener.sock for listener in arbiter.LISTENERS]
    return bool(sockets) and all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for sock in sockets)


def reload(arbiter: Arbiter, text: str | bytes) -> str:
    """Load this config file and put it in force; why not, empty if it is in force."""
    found: list[Any] = []
    arbiter.reloader._context = replace(arbiter.context, observe=found.append)
    Path(arbiter.app.options["config"]).write_bytes(
        text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    )
    current = arbiter.in_force()
    try:
        deployment.check(current)
    except DeploymentError as exc:
        return str(exc)
    arbiter.reloader._checked(True, "")
    (prepared,) = found
    if isinstance(prepared, ev.ReloadFailed):
        return prepared.error
    arbiter.reloader.commit()
    assert accepts(arbiter)
    return "" if isinstance(found[-1], ev.Committed) else found[-1].error


def is_one_line(text: str) -> bool:
    return 0 < len(text.splitlines()) <= 1 and "Traceback" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_with_a_value_that_it_cannot_have(serving: Arbiter, name: str) -> None:
    before = serving.in_force()
    for value in VALUES:
        why = reload(serving, f"{name} = {value}")
        assert not why or is_one_line(why), (value, why)
        if why:
            assert serving.cfg is before.cfg or serving.in_force().listeners == before.listeners
        before = serving.in_force()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_config_file_that_is_refused_with_a_line(serving: Arbiter, case: str) -> None:
    before = serving.in_force()
    why = reload(serving, HOSTILE[case])
    assert is_one_line(why), why
    assert serving.in_force().cfg is before.cfg
    assert before.listeners == serving.LISTENERS


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_config_file_that_may_fail_when_it_is_put_in_force(serving: Arbiter, case: str) -> None:
    why = reload(serving, ACCEPTED[case])
    assert not why or is_one_line(why), why
