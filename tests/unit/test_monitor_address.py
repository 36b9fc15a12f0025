"""Where the monitor listens: private command sockets, and addresses that are taken, stale or wrong."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from multicore_server.monitor import address
from multicore_server.monitor.address import (
    AddressError,
    bind_command,
    bind_metrics,
    command_directory,
    command_path,
    is_numeric,
    remove_stale,
    resolve,
    unbind,
)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened() -> Iterator[list[socket.socket]]:
    """Listeners that are closed at the end."""
    sockets: list[socket.socket] = []
    yield sockets
    for it in sockets:
        it.close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def leave_stale(path: Path) -> Path:
    """A socket's file whose process is dead."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
    return path


# --- the directory ---


def test_the_directory_is_private_whatever_the_umask(runtime: Path) -> None:
    before = os.umask(0)
    try:
        directory = command_directory()
    finally:
        os.umask(before)
    assert directory == runtime / "multicore-server"
    assert mode(directory) == 0o700
    assert command_directory() == directory
    assert command_path(4711) == directory / "4711.sock"


def test_who_looks_for_servers_makes_none(runtime: Path) -> None:
    directory = runtime / "multicore-server"
    assert command_directory(make=False) == directory
    assert not directory.exists()
    directory.symlink_to(runtime / "nowhere")
    with pytest.raises(AddressError, match="it is not a directory"):
        command_directory(make=False)


@pytest.mark.parametrize("variable", ["", "relative", "/nowhere/at/all"])
def test_without_a_runtime_directory_there_is_one_of_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", variable)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert command_directory() == tmp_path / f"multicore-server-{os.geteuid()}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_runtime_directory_of_another_user_is_left_alone(
    runtime: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr("tempfile.tempdir", str(other))
    os.chown(runtime, 12345, 12345)
    assert command_directory().parent == other
    assert list(runtime.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    directory = command_directory()
    os.chown(directory, 12345, 12345)
    with pytest.raises(AddressError, match=r"belongs to another user \(uid 12345\); remove it or set XDG"):
        command_directory()


def test_a_directory_that_is_open_to_others_is_refused(runtime: Path) -> None:
    command_directory().chmod(0o770)
    with pytest.raises(AddressError, match=r"it is open to others \(mode 0770, not 0700\)"):
        command_directory()


def test_a_link_is_refused(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / "multicore-server").symlink_to(runtime / "elsewhere")
    with pytest.raises(AddressError, match="it is not a directory"):
        command_directory()


def test_a_file_in_its_place_is_refused(runtime: Path) -> None:
    (runtime / "multicore-server").touch()
    with pytest.raises(AddressError, match="it is not a directory"):
        command_directory()


def test_one_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(AddressError, match=r"cannot make .* for the command socket: No such file") as caught:
        command_directory()
    assert "\n" not in str(caught.value)


# --- the command socket ---


def test_the_command_socket_is_the_owners_alone(runtime: Path, opened: list[socket.socket]) -> None:
    path = command_path(1)
    before = os.umask(0)
    try:
        opened.append(bind_command(path))
    finally:
        os.umask(before)
    assert mode(path) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert [it.name for it in path.parent.iterdir()] == ["1.sock"]


def test_dead_servers_leave_nothing_and_living_ones_stay(runtime: Path, opened: list[socket.socket]) -> None:
    directory = command_directory()
    stale = [leave_stale(directory / f"{pid}.sock") for pid in (1, 2)]
    living = directory / "3.sock"
    opened.append(bind_command(living))
    (directory / "notes.txt").touch()
    leave_stale(directory / "notes.sock")
    opened.append(bind_command(directory / "4.sock"))
    assert [path for path in stale if path.exists()] == []
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["3.sock", "4.sock", "notes.sock", "notes.txt"]


def test_a_busy_server_is_not_taken_for_a_dead_one(runtime: Path, opened: list[socket.socket]) -> None:
    path = command_path(1)
    opened.append(bind_command(path))
    for _ in range(address.BACKLOG + 10):  # nobody accepts
        opened.append(client := socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect_ex(str(path))
    remove_stale(path.parent)
    assert path.exists()


def test_the_socket_of_a_dead_server_with_our_pid_is_replaced(
    runtime: Path, opened: list[socket.socket]
) -> None:
    path = leave_stale(command_path(1))
    leave_stale(path.with_suffix(".new"))
    opened.append(bind_command(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    with pytest.raises(AddressError, match=r"cannot listen on the command socket .*: AF_UNIX path too long"):
        bind_command(directory / "1.sock")


def test_unbind_removes_the_file(runtime: Path) -> None:
    path = command_path(1)
    unbind(bind_command(path), path)
    metrics = runtime / "metrics.sock"
    unbind(bind_metrics(f"unix:{metrics}"))
    unbind(bind_metrics("127.0.0.1:0"))
    assert (path.exists(), metrics.exists()) == (False, False)


# --- the read-only address ---


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_tcp(host: str, opened: list[socket.socket]) -> None:
    try:
        opened.append(bind_metrics(f"{host}:0"))
    except AddressError:
        if host == "[::1]":
            pytest.skip("this machine has no IPv6")
        raise
    with socket.socket(opened[0].family) as client:
        client.connect(opened[0].getsockname())
    # By the protocol asyncio knows that it may set TCP_NODELAY.
    assert opened[0].proto == socket.IPPROTO_TCP


def test_unix(tmp_path: Path, opened: list[socket.socket]) -> None:
    path = leave_stale(tmp_path / "metrics.sock")
    opened.append(bind_metrics(f"unix:{path}"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_where_the_pages_are(tmp_path: Path, opened: list[socket.socket]) -> None:
    opened += [bind_metrics("localhost:0"), bind_metrics(f"unix:{tmp_path}/m")]
    site = f"http://localhost:{opened[0].getsockname()[1]}/"
    assert address.pages("localhost:0", opened[0]) == f"metrics: {site}metrics; live page: {site}"
    assert (
        address.pages(f"unix:{tmp_path}/m", opened[1])
        == f"metrics: /metrics on unix:{tmp_path}/m; live page: / there"
    )


def test_an_address_that_is_tried_stays_free(tmp_path: Path, opened: list[socket.socket]) -> None:
    stale = leave_stale(tmp_path / "stale")
    for text in ("127.0.0.1:0", f"unix:{tmp_path}/new", f"unix:{stale}"):
        address.try_metrics(text)
    assert list(tmp_path.iterdir()) == [stale]
    (tmp_path / "file").touch()
    for text, said in (
        (f"unix:{tmp_path}/no/m", "there is no directory"),
        (f"unix:{tmp_path}/file", "there is a file that is not a socket"),
    ):
        with pytest.raises(AddressError, match=said):
            address.try_metrics(text)


def test_a_taken_port(opened: list[socket.socket]) -> None:
    opened.append(bind_metrics("127.0.0.1:0"))
    taken = f"127.0.0.1:{opened[0].getsockname()[1]}"
    with pytest.raises(AddressError, match=f"metrics_bind: cannot listen on {taken}: the address is in use"):
        bind_metrics(taken)


def test_a_taken_unix_socket(tmp_path: Path, opened: list[socket.socket]) -> None:
    text = f"unix:{tmp_path / 'metrics.sock'}"
    opened.append(bind_metrics(text))
    with pytest.raises(AddressError, match="the address is in use"):
        bind_metrics(text)


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    with pytest.raises(AddressError, match="there is a file that is not a socket"):
        bind_metrics(f"unix:{path}")
    assert path.read_text() == "text"


@pytest.mark.parametrize(
    "wrong", ["203.0.113.1:9464", "no.such.host.invalid:9464", "unix:/nowhere/at/all/x.sock"]
)
def test_one_line_for_what_there_is_not(wrong: str) -> None:
    with pytest.raises(AddressError, match=r"metrics_bind: cannot listen on ") as caught:
        bind_metrics(wrong)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "[Errno" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "numeric"),
    [
        ("127.0.0.1:9464", True),
        ("[::1]:9464", True),
        ("unix:/run/x", True),
        ("localhost:9464", False),
        ("0..0.0:9464", False),
        ("a\0b:9464", False),
    ],
)
def test_numeric_addresses_need_no_name_server(text: str, numeric: bool) -> None:
    assert is_numeric(text) is numeric


def test_a_name_is_resolved_to_what_can_be_bound(opened: list[socket.socket]) -> None:
    place = resolve("localhost:0")
    assert is_numeric(place)
    opened.append(bind_metrics(place))


@pytest.mark.parametrize("wrong", ["0..0.0:9464", "no.such.host.invalid:9464", "localhost:no such port"])
def test_a_name_that_cannot_be_resolved_has_its_reason_in_one_line(wrong: str) -> None:
    with pytest.raises(AddressError) as caught:
        resolve(wrong)
    assert str(caught.value)
    assert "[Errno" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["a\0b", "\ud800", "no/such/place"])
def test_an_address_that_cannot_be_bound_leaves_no_descriptor(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []

    class Socket(socket.socket):
        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(AddressError) as raised:
        bind_metrics(f"unix:{tmp_path}/{wrong}")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert [listener.fileno() for listener in made] == [-1] * len(made)
