"""`ps --all`: the servers of all users, none of whom is trusted."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from multicore_server.cli import all_users, listing, servers
from multicore_server.cli.all_users import running_of_all, user_of
from multicore_server.cli.main import main
from multicore_server.cli.servers import NoAnswerError, RunningServer, Trouble
from tests.support.reports import status, worker

ME = os.geteuid()
Listen = Callable[..., Path]


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its /tmp and /run, of this user's files alone; who asks is root."""
    monkeypatch.setattr(all_users, "temporary_directory", lambda: tmp_path / "tmp")
    monkeypatch.setattr(all_users, "RUN", tmp_path / "run")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(listing, "BETWEEN", 0.0)
    for path in ("tmp", "run/user"):
        (tmp_path / path).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def listen(machine: Path) -> Iterator[Listen]:
    """Have somebody listen in a directory who gives each request these bytes, one after the other."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes, pause: float) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if connection.recv(65536):
                        for byte in (
                            [answer] if not pause else [answer[i : i + 1] for i in range(len(answer))]
                        ):
                            connection.sendall(byte)
                            time.sleep(pause)

    def make(directory: str, pid: int, answer: bytes = b"", pause: float = 0.0) -> Path:
        place = machine / directory
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place / f"{pid}.sock"))
        listener.listen()
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer, pause), daemon=True).start()
        return place / f"{pid}.sock"

    yield make
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def response(document: Any) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def ps(*options: str) -> Any:
    return CliRunner().invoke(main, ["ps", "--all", *options])


def test_where_servers_are(listen: Listen) -> None:
    for number, directory in enumerate([
        f"tmp/multicore-server-{ME}", f"run/user/{ME}/multicore-server", "run/shop/multicore-server",
    ]):  # fmt: skip
        listen(directory, 4000 - number, response(status(name=directory)))
    found = running_of_all()
    assert [(it.pid, it.owner) for it in found] == [(3998, ME), (3999, ME), (4000, ME)]
    name = pwd.getpwuid(ME).pw_name
    lines = [line for line in ps().stdout.splitlines() if "ready  up" in line]
    assert [line.partition("  pid")[0] for line in lines] == [
        f"user {name}  run/shop/multicore-server",
        f"user {name}  run/user/{ME}/multicore-server",
        f"user {name}  tmp/multicore-server-{ME}",
    ]
    assert {it["user"] for it in json.loads(ps("--json").stdout)} == {name}


def test_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    result = ps()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("multicore-server: --all: the servers of other users are root's to see;")


def test_nothing_runs_and_no_server_beside_all() -> None:
    assert ps().stderr == "no server is running\n"
    assert ps("shop").stderr == "multicore-server: ps: give a server or --all\n"


def test_directories_that_are_not_safe(machine: Path, listen: Listen) -> None:
    """Open to others; of another user than its name says; a link to a good one."""
    answer = response(status())
    listen("run/open/multicore-server", 1, answer).parent.chmod(0o755)
    listen(f"tmp/multicore-server-{ME + 1}", 2, answer)
    good = listen("elsewhere", 3, answer)
    (machine / "run/link").mkdir()
    (machine / "run/link/multicore-server").symlink_to(good.parent)
    assert running_of_all() == []


def test_what_is_no_socket_of_a_server(machine: Path, listen: Listen) -> None:
    place = listen("run/a/multicore-server", 1).parent
    other = listen("elsewhere", 2)
    (place / "3.sock").symlink_to(other)
    (place / "4.sock").write_text("")
    (place / "x.sock").write_text("")
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place / "5.sock"))
    stale.close()
    assert [it.pid for it in running_of_all()] == [1]


def test_only_some_of_many(monkeypatch: pytest.MonkeyPatch, listen: Listen) -> None:
    monkeypatch.setattr(all_users, "MOST", 2)
    for pid in range(1, 5):
        listen("run/a/multicore-server", pid)
    assert len(running_of_all()) == 2


def test_nothing_is_said_to_another_user(listen: Listen) -> None:
    """A link to somebody else's socket, put there between the look and the connection."""
    path = listen("run/a/multicore-server", 1, response(status()))
    with pytest.raises(NoAnswerError, match="another user answers there"):
        RunningServer(path, ME + 1).status()
    assert RunningServer(path, ME).status() == status()


def test_an_answer_that_takes_its_time(monkeypatch: pytest.MonkeyPatch, listen: Listen) -> None:
    """Byte by byte: no wait of its own is long."""
    monkeypatch.setattr(servers.RunningServer._ask, "__defaults__", (None, 0.3))
    path = listen("run/a/multicore-server", 1, response(status()), pause=0.05)
    began = time.monotonic()
    with pytest.raises(NoAnswerError):
        RunningServer(path, ME).status()
    assert time.monotonic() - began < 5


def test_an_answer_that_is_too_long(monkeypatch: pytest.MonkeyPatch, listen: Listen) -> None:
    monkeypatch.setattr(servers, "MOST_OF_OTHERS", 100)
    path = listen("run/a/multicore-server", 1, response(status()))
    with pytest.raises(NoAnswerError, match="answers too much"):
        RunningServer(path, ME).status()
    assert RunningServer(path).status() == status()


NONSENSE: dict[str, Any] = {
    "no status": {},
    "no document": [1],
    "deep": None,
    "no numbers": {**status(), "arbiter": {"pid": "\x1b[2J", "uptime": "long"}},
    "no workers": {**status(), "workers": [None]},
    "infinite": {**status(), "arbiter": {"pid": 1, "uptime": float("inf"), "started": 0}},
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_hides_nobody_else(listen: Listen, name: str) -> None:
    body = b"[" * 100_000 if name == "deep" else json.dumps(NONSENSE[name]).encode()
    listen("run/a/multicore-server", 1, b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    listen("run/b/multicore-server", 2, response(status(name="good")))
    result = ps()
    assert result.exit_code == 2
    assert "good  pid 4000" in result.stdout
    assert "\x1b" not in result.output
    assert result.stderr.startswith("multicore-server: the server with pid 1 ")


def test_control_characters_are_shown(listen: Listen) -> None:
    shown = status(worker(0, pid="\x1b]0;x\x07"), name="\x1b[2Jshop", addresses=["\x07"])
    listen("run/a/multicore-server", 1, response(shown))
    assert not {"\x1b", "\x07"} & set(ps().stdout)


def test_a_user_without_a_name() -> None:
    assert user_of(RunningServer(Path("1.sock"), 2**31 - 7)) == str(2**31 - 7)


def test_a_mistake_of_ours_is_no_mistake_of_a_users() -> None:
    own, other = RunningServer(Path("1.sock")), RunningServer(Path("1.sock"), ME)
    with pytest.raises(ZeroDivisionError), all_users.understood(own):
        1 / 0  # noqa: B018 - it raises
    with pytest.raises(NoAnswerError, match="answers what no server does"), all_users.understood(other):
        1 / 0  # noqa: B018 - it raises
    with pytest.raises(Trouble, match="its own words"), all_users.understood(other):
        raise Trouble("its own words")
