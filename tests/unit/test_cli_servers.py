"""Finding servers: what is in the directory of command sockets, and what is said when it is no good."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multicore_server.cli import servers
from multicore_server.cli.servers import NoAnswerError, RunningServer, Trouble, choose, names, ports, running
from tests.support.reports import status

Answer = Callable[[bytes], bytes]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "multicore-server").mkdir(mode=0o700)
    return tmp_path / "multicore-server"


@pytest.fixture
def listen(directory: Path) -> Iterator[Callable[[int, bytes | None], None]]:
    """Have somebody listen as the server with this pid, who gives each request this answer (None: never)."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes | None) -> None:
        kept = []  # connections that get no answer
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                if answer is None:
                    kept.append(connection)
                    continue
                with connection, contextlib.suppress(OSError):
                    if connection.recv(65536):
                        connection.sendall(answer)

        for connection in kept:
            connection.close()

    def make(pid: int, answer: bytes | None) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / f"{pid}.sock"))
        listener.listen()
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()

    yield make
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def response(document: object, code: int = 200) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def named(name: str, *addresses: str) -> bytes:
    return response(status(name=name, addresses=list(addresses)))


def said(function: Callable[[], object]) -> str:
    with pytest.raises(Trouble) as raised:
        function()
    assert raised.value.exit_code == 2
    assert raised.value.message.isprintable()
    return raised.value.message


def leave_socket(directory: Path, pid: int) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(directory / f"{pid}.sock"))


# --- choosing ---


def test_by_name_port_and_pid(listen: Callable[..., None]) -> None:
    listen(101, named("api:app", "http://127.0.0.1:8000", "unix:/run/8001"))
    listen(102, named("web:app", "http://[::1]:9000"))
    chosen = [choose(it).pid for it in ("api:app", "8000", ":8000", "101", "web:app", "9000", "102")]
    assert chosen == [101, 101, 101, 101, 102, 102, 102]
    assert "no server '8001' is running; there are api:app (pid 101, port 8000)" in said(
        lambda: choose("8001")
    )
    assert "several servers are running; name one of them" in said(lambda: choose(None))
    assert names() == ["api:app", "web:app"]


def test_the_only_one(listen: Callable[..., None]) -> None:
    listen(101, named("api:app"))
    assert choose(None).pid == 101


def test_one_name_of_two_servers(listen: Callable[..., None]) -> None:
    listen(101, named("app:app"))
    listen(102, named("app:app"))
    message = said(lambda: choose("app:app"))
    assert message == ("'app:app' names several servers; give a pid: app:app (pid 101), app:app (pid 102)")
    assert choose("102").pid == 102
    assert names() == ["101", "102"]


def test_ports() -> None:
    found = status(addresses=["http://0.0.0.0:80", "https://[::]:443", "unix:/run/app.sock"])
    assert ports(found) == ["80", "443"]


# --- what is no good ---


def test_a_look_leaves_nothing_behind(directory: Path) -> None:
    directory.rmdir()
    assert running() == []
    assert said(lambda: choose(None)).startswith("no server of this user is running")
    assert not directory.exists()


def test_no_server_at_all(directory: Path) -> None:
    assert said(lambda: choose(None)).startswith("no server of this user is running")
    assert said(lambda: choose("api")).startswith("no server of this user is running")
    assert names() == []


def test_a_socket_that_a_dead_server_left(directory: Path) -> None:
    leave_socket(directory, 101)
    (directory / "notes.sock").touch()  # somebody else's file
    assert running() == []
    assert (
        said(lambda: choose("101")) == "the server with pid 101 has exited; only its command socket is left"
    )
    assert said(RunningServer(directory / "101.sock").status).endswith("only its command socket is left")


def test_a_server_that_hangs(listen: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunningServer._ask, "__defaults__", (None, 0.2))
    listen(101, None)
    listen(102, named("api:app"))
    assert "pid 101 (does not answer)" in said(lambda: choose("web"))
    assert choose("101").pid == 101
    assert said(choose("101").status) == "the server with pid 101 has not answered within 0.2 s"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-x\r\n", "does not answer: BadStatusLine"),
        (b"", "does not answer: RemoteDisconnected"),
        (response({"error": "nothing\x1b[2J published"}, 503), ": nothing\\x1b[2J published"),
    ],
)
def test_an_answer_that_is_none(listen: Callable[..., None], answer: bytes, message: str) -> None:
    listen(101, answer)
    with pytest.raises(NoAnswerError) as raised:
        running()[0].status()
    assert raised.value.message.endswith(message)


def test_a_status_of_another_version_is_one_line(listen: Callable[..., None]) -> None:
    other = {name: value for name, value in status(version="9.1").items() if name not in ("ready", "workers")}
    listen(101, response(other))
    with pytest.raises(NoAnswerError) as raised:
        running()[0].status()
    assert raised.value.message == (
        "the server with pid 101 runs multicore_server 9.1: its /status has no 'ready'"
    )


def test_a_name_with_control_characters_is_escaped(listen: Callable[..., None]) -> None:
    listen(101, named("app\x1b]0;title\x07:app"))
    assert "app\\x1b]0;title\\x07:app (pid 101)" in said(lambda: choose("web"))


def test_a_directory_that_is_open_to_others(directory: Path) -> None:
    directory.chmod(0o755)
    assert "is open to others" in said(running)
    assert names() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else(directory: Path) -> None:
    os.chown(directory, 12345, -1)
    assert "belongs to another user (uid 12345)" in said(running)


def test_a_server_whose_arbiter_lives_without_its_socket(directory: Path) -> None:
    assert RunningServer(directory / f"{os.getpid()}.sock").lives()
    assert not RunningServer(directory / f"{2**22 + 1}.sock").lives()


def test_patience_is_longer_than_the_arbiters() -> None:
    from multicore_server.monitor.commands import PATIENCE

    assert servers.COMMAND_PATIENCE > PATIENCE
