"""The ways into a start: listeners that are inherited, waits for an address, apps that are preloaded."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gunicorn.arbiter
import pytest

from multicore_server.arbiter import listeners, systemd, takeover
from multicore_server.arbiter.arbiter import Arbiter
from tests.unit.arbiter_itself.started import Application
from tests.unit.shell import Log


@pytest.fixture
def new(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Arbiter]:
    """An arbiter that is ours and has not started."""
    for name in ("LISTEN_PID", "LISTEN_FDS", "GUNICORN_PID", "GUNICORN_FD"):
        monkeypatch.delenv(name, raising=False)

    def new(**settings: Any) -> Arbiter:
        made = gunicorn.arbiter.Arbiter(Application(**settings))
        made.__class__ = Arbiter
        made.LISTENERS = []
        found: Arbiter = made
        return found

    return new


# gunicorn looks at a descriptor by way of a socket that it drops unclosed.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_listeners_of_the_arbiter_before_usr2_are_taken_over(
    new: Callable[..., Arbiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With reuse_port gunicorn makes new ones, and what waits at the old ones is lost."""
    made = new(bind="127.0.0.1:1", reuse_port=True)
    made.master_pid = os.getppid()
    with socket.create_server(("127.0.0.1", 0)) as before:
        monkeypatch.setenv("GUNICORN_FD", str(os.dup(before.fileno())))
        made._listen()
        (listener,) = made.LISTENERS
        assert listener.getsockname() == before.getsockname()
        made._listen()
        assert [listener] == made.LISTENERS
        listener.close()
    gc.collect()
    assert "GUNICORN_FD" not in os.environ


def test_a_descriptor_that_is_no_socket_is_refused(
    new: Callable[..., Arbiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new(bind="127.0.0.1:1", reuse_port=True)
    made.master_pid = os.getppid()
    monkeypatch.setenv("GUNICORN_FD", "987")
    with pytest.raises(listeners.BindError, match="cannot listen on fd://987"):
        made._listen()


def test_without_reuse_port_inherited_listeners_are_gunicorns_to_take(
    new: Callable[..., Arbiter], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new(bind="127.0.0.1:1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    made._listen()
    assert made.LISTENERS == []


@pytest.mark.parametrize("bind", [[], ""])
def test_a_start_without_an_address_is_refused(new: Callable[..., Arbiter], bind: Any) -> None:
    """It started, and nobody listened."""
    with pytest.raises(listeners.BindError, match="there is no address to listen on; give host:port"):
        new(bind=bind)._listen()


@pytest.mark.parametrize(("number", "ends"), [("SIGTERM", True), ("SIGINT", True), ("SIGHUP", False)])
def test_a_signal_to_end_is_obeyed_while_it_waits_for_an_address(
    new: Callable[..., Arbiter], number: str, ends: bool
) -> None:
    made = new()
    made._nap(0.0)
    made.SIG_QUEUE.put_nowait(getattr(signal, number))
    if not ends:
        made._nap(5.0)
        return
    with pytest.raises(SystemExit) as ended:
        made._nap(5.0)
    assert ended.value.code == 0


def hook_of_a_start(failure: BaseException) -> Callable[..., None]:
    def hook(server: Any) -> None:
        raise failure

    return hook


@pytest.mark.parametrize("name", ["on_starting", "when_ready"])
@pytest.mark.parametrize(("failure", "status"), [(RuntimeError("no"), 1), (SystemExit(7), 7)])
def test_a_hook_that_stops_a_start_leaves_nothing(
    new: Callable[..., Arbiter], name: str, failure: BaseException, status: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gunicorn.arbiter.Arbiter, "init_signals", lambda self: None)
    hook = {name: hook_of_a_start(failure)}
    made = new(bind=f"unix:{tmp_path}/s", pidfile=str(tmp_path / "pid"), errorlog="-", **hook)
    with pytest.raises(SystemExit) as ended:
        made.start()
    assert ended.value.code == status
    assert list(tmp_path.iterdir()) == []
    for descriptor in (made._wake_reader, made._wake_writer):
        os.close(descriptor)
    log: Log = made.log
    assert len(log.said(f"the {name} hook failed: RuntimeError: no")) == (status == 1)


# --- signals before a child has handlers of its own


@pytest.mark.parametrize(("name", "ends"), [("SIGTERM", True), ("SIGQUIT", True), ("SIGHUP", False)])
def test_a_child_without_handlers_of_its_own_ends_as_by_default(
    new: Callable[..., Arbiter], name: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new()
    made.pid = os.getpid() + 1
    sent: list[tuple[int, int]] = []
    defaults: list[tuple[int, Any]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(signal, "signal", lambda number, handler: defaults.append((number, handler)))
    number = getattr(signal, name)
    made.signal(number, None)
    assert sent == ([(os.getpid(), number)] if ends else [])
    assert defaults == ([(number, signal.SIG_DFL)] if ends else [])
    assert made.SIG_QUEUE.empty()


# --- an app that is preloaded


@pytest.mark.parametrize("errorlog", ["-", "a file"])
def test_an_app_that_cannot_be_preloaded_is_explained(
    errorlog: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_: Any) -> None:
        raise ModuleNotFoundError("No module named 'nowhere'")

    cfg = SimpleNamespace(preload_app=True, errorlog=errorlog)
    with pytest.raises(SystemExit) as ended:
        takeover._explaining(load)(SimpleNamespace(cfg=cfg, app_uri="app:app", callable=None))
    assert ended.value.code == 3
    assert "Error: app:app could not be loaded: ModuleNotFoundError" in capsys.readouterr().err


def test_what_is_not_preloaded_raises_as_before() -> None:
    def load(_: Any) -> None:
        raise ModuleNotFoundError("nowhere")

    cfg = SimpleNamespace(preload_app=False, errorlog="-")
    with pytest.raises(ModuleNotFoundError):
        takeover._explaining(load)(SimpleNamespace(cfg=cfg, app_uri="app:app", callable=None))


# --- systemd's listeners and USR2


class Replaced(Exception):  # noqa: N818 - the process would go on as another program
    pass


def test_usr2_gives_systemds_listeners_the_descriptors_that_systemd_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placed: list[tuple[int, int]] = []
    executed: list[Any] = []

    def execvpe(*arguments: Any) -> None:
        executed.extend(arguments)
        raise Replaced

    monkeypatch.setattr(os, "fork", lambda: 0)
    monkeypatch.setattr(os, "dup2", lambda fd, place: placed.append((fd, place)))
    monkeypatch.setattr(os, "execvpe", execvpe)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    calls: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        cfg = SimpleNamespace(env_orig={"HOME": "/"}, pre_exec=lambda _: calls.append("pre_exec"))
        server = SimpleNamespace(
            cfg=cfg, pid=7, LISTENERS=[one, two], START_CTX={0: sys.executable, "args": ["x"], "cwd": "/"}
        )
        with pytest.raises(Replaced):
            systemd.reexec(server)
        assert [place for _, place in placed] == [3, 4]
        # Set aside first, beyond both places: one may be where the other has to go.
        assert all(fd >= 5 for fd, _ in placed)
    assert calls == ["pre_exec"]
    environ = executed[2]
    assert environ == {
        "HOME": "/", "GUNICORN_PID": "7", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2",
    }  # fmt: skip
    for fd, _ in placed:
        os.close(fd)


def test_the_arbiter_that_asks_for_usr2_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: 4711)
    server = SimpleNamespace(log=Log())
    systemd.reexec(server)
    assert server.reexec_pid == 4711
