"""Binding: at the start with patience, at a reload without, one line when it fails, nothing half bound."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from multicore_server.arbiter import listeners
from multicore_server.arbiter.listeners import BindError
from tests.unit.shell import Log, fault

# gunicorn drops a socket that cannot be bound, unclosed.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    def bind(*addresses: str, **options: Any) -> list[Any]:
        cfg = Config()
        cfg.set("bind", list(addresses))
        return listeners.bind(cfg, Log(), **options)

    return bind


def test_what_is_kept_stays_and_the_order_is_the_configurations(
    bind: Callable[..., list[Any]], free_port: int, tmp_path: Path
) -> None:
    (first,) = bind(f"unix:{tmp_path}/a")
    both = bind(f"127.0.0.1:{free_port}", f"unix:{tmp_path}/a", kept={f"{tmp_path}/a": first})
    assert both[1] is first
    listeners.unbind(both)
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_named_twice_is_bound_once(bind: Callable[..., list[Any]], free_port: int) -> None:
    found = bind(f"127.0.0.1:{free_port}", f"127.0.0.1:{free_port}")
    assert len(found) == 1
    listeners.unbind(found)


def test_a_taken_address_is_waited_for_as_long_as_there_is_patience(
    bind: Callable[..., list[Any]], free_port: int
) -> None:
    taken = socket.create_server(("127.0.0.1", free_port))
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            taken.close()

    listeners.unbind(bind(f"127.0.0.1:{free_port}", patience=60.0, wait=nap))
    assert naps == [listeners.RETRY] * 2


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("taken", "the address is in use (is another server running?"),
        ("192.0.2.1:80", "this machine has no such address"),
        ("127.0.0.1:99999", "cannot listen on 127.0.0.1:99999"),
        (
            "unix:/no/such/directory/s",
            "cannot listen on unix:/no/such/directory/s: No such file or directory",
        ),
        ("a file", "is not a socket"),
    ],
)
def test_what_cannot_be_bound_is_one_line_and_closes_the_rest(
    bind: Callable[..., list[Any]], free_port: int, tmp_path: Path, address: str, text: str
) -> None:
    (tmp_path / "file").touch()
    os.umask(before := os.umask(0o077))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = {"taken": f"127.0.0.1:{port}", "a file": f"unix:{tmp_path}/file"}.get(address, address)
        with pytest.raises(BindError) as caught:
            bind(f"127.0.0.1:{free_port}", address)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    socket.create_server(("127.0.0.1", free_port)).close()
    os.umask(umask := os.umask(0o077))
    assert umask == before


def test_a_unix_socket_that_somebody_serves_is_not_taken_away(
    bind: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """gunicorn removes it."""
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(BindError, match="the address is in use"):
            bind(f"unix:{tmp_path}/s")
    listeners.unbind(bind(f"unix:{tmp_path}/s"))  # of a dead process: it is replaced


def test_a_privileged_port(bind: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise fault(errno.EACCES)

    monkeypatch.setattr("gunicorn.sock.TCPSocket.bind", refuse)
    with pytest.raises(BindError, match="a port below 1024 needs root or CAP_NET_BIND_SERVICE"):
        bind("127.0.0.1:80")


def test_a_directory_that_is_not_writable_is_no_matter_of_ports(
    bind: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise fault(errno.EACCES)

    monkeypatch.setattr("gunicorn.sock.UnixSocket.bind", refuse)
    with pytest.raises(BindError, match=r"unix:.*: permission denied \(its directory is to be writable\)$"):
        bind(f"unix:{tmp_path}/s")


def test_no_descriptors(
    bind: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    def refuse(*_: Any) -> None:
        raise fault(errno.EMFILE)

    monkeypatch.setattr("gunicorn.sock.TCPSocket.bind", refuse)
    with pytest.raises(BindError, match="Too many open files"):
        bind(f"127.0.0.1:{free_port}")


def test_a_descriptor_is_inherited(bind: Callable[..., list[Any]], free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)) as open_socket:
        (found,) = bind(f"fd://{os.dup(open_socket.fileno())}")
        assert found.getsockname() == ("127.0.0.1", free_port)
        listeners.unbind([found])


@pytest.mark.parametrize("fd", [9999, "a pipe"])
def test_a_descriptor_that_is_no_socket(bind: Callable[..., list[Any]], fd: Any) -> None:
    reader, writer = os.pipe()
    number = reader if fd == "a pipe" else fd
    with pytest.raises(BindError, match=f"cannot listen on fd://{number}: .*; is it an open socket"):
        bind(f"fd://{number}")
    os.close(reader)
    os.close(writer)


def test_a_file_that_somebody_else_removed_is_no_trouble(
    bind: Callable[..., list[Any]], tmp_path: Path
) -> None:
    found = bind(f"unix:{tmp_path}/s", f"unix:{tmp_path}/behind")
    (tmp_path / "s").unlink()
    listeners.unbind(found)
    assert list(tmp_path.iterdir()) == []
    assert [listener.sock for listener in found] == [None, None]
