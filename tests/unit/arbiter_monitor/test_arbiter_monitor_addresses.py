"""Where the monitor listens: bound, taken, looked up, given up."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multicore_server.arbiter.forked_call import LIMIT
from multicore_server.arbiter.monitor_addresses import REST, RETRY, RETRY_OF_SUCCESSOR, MonitorAddresses
from multicore_server.monitor import address
from tests.support.descriptors import descriptors
from tests.unit.arbiter_monitor.watch import NOW, Watch, asking, settings
from tests.unit.shell import Shell, fault

# --- addresses ---


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def addresses(made: Shell, metrics_bind: str, speaks: bool = True) -> tuple[MonitorAddresses, list[str]]:
    found = MonitorAddresses(
        made.log, made.context.system, settings(metrics_bind), lambda: speaks, asking(made)
    )
    changes: list[str] = []
    found.on_change = lambda: changes.append(str(found.listener and found.listener.getsockname()))
    return found, changes


def test_an_address_is_bound_when_it_is_due(watch: Watch, free_port: int) -> None:
    found, changes = addresses(watch.shell, f"127.0.0.1:{free_port}")
    found.bind_if_due(NOW)
    assert (found.due, len(changes)) == (None, 1)
    assert found.listener is not None
    site = f"http://127.0.0.1:{free_port}/"
    assert len(watch.log.said(f"metrics: {site}metrics; live page: {site}")) == 1
    found.configure(settings(metrics_bind=f"127.0.0.1:{free_port}"))
    assert len(changes) == 1
    found.configure(settings())
    assert found.listener is None
    assert (found.due, len(changes)) == (0.0, 2)
    found.bind_if_due(NOW)
    assert found.listener is None
    assert found.due is None
    found.end()


def test_a_taken_address_is_said_once_and_tried_again(watch: Watch, free_port: int) -> None:
    taken = socket.create_server(("127.0.0.1", free_port))
    found, changes = addresses(watch.shell, f"127.0.0.1:{free_port}")
    for _ in range(3):
        found.bind_if_due(watch.os.now)
        watch.os.now += RETRY
        assert found.due == watch.os.now
    assert len(watch.log.said("trying again")) == 1
    taken.close()
    found.bind_if_due(watch.os.now)
    assert (found.due, len(changes)) == (None, 1)
    assert watch.log.said(f"listening on 127.0.0.1:{free_port} now")
    found.end()


def test_an_arbiter_of_usr2_waits_for_the_address_in_silence(watch: Watch, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port)):
        found, _ = addresses(watch.shell, f"127.0.0.1:{free_port}", speaks=False)
        found.bind_if_due(NOW)
        assert not watch.log.said("trying again")
        assert found.due == NOW + RETRY_OF_SUCCESSOR
        found.end()


def test_a_successor_gets_the_address(watch: Watch, free_port: int) -> None:
    found, changes = addresses(watch.shell, f"127.0.0.1:{free_port}")
    found.bind_if_due(NOW)
    found.hand_over()
    assert (found.listener, found.due, changes[1:]) == (None, None, ["None"])
    socket.create_server(("127.0.0.1", free_port)).close()
    found.end()


@pytest.mark.parametrize("bad", ["203.0.113.1:9464", "unix:/no/such/x"])
def test_an_address_that_cannot_be_one_ends_nothing(watch: Watch, bad: str) -> None:
    found, _ = addresses(watch.shell, bad)
    found.bind_if_due(NOW)
    assert len(watch.log.said("metrics_bind: cannot listen on")) == 1
    assert found.due is not None
    found.end()


def look_up(watch: Watch, metrics_bind: str) -> MonitorAddresses:
    """A child looks the name up: its answer is the test's."""
    found, _ = addresses(watch.shell, metrics_bind)
    found.bind_if_due(watch.os.now)
    return found


def answer(watch: Watch, text: bytes) -> None:
    os.write(watch.os.writers[-1], text)
    watch.shell.select()
    watch.shell.reap_helpers()


def test_the_loop_does_not_wait_for_a_name_server(watch: Watch, free_port: int) -> None:
    found = look_up(watch, f"my-host:{free_port}")
    assert (found.listener, found.due) == (None, watch.os.now + LIMIT)
    answer(watch, f"+127.0.0.1:{free_port}".encode())
    assert found.listener is not None
    assert found.listener.getsockname() == ("127.0.0.1", free_port)
    assert found.due is None
    found.end()


def test_a_name_that_is_not_known_is_said_and_asked_for_again(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    answer(watch, b"-Name or service not known")
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: Name or service not known; trying again")
    assert found.due == watch.os.now + RETRY
    found.end()


def test_a_name_that_leads_to_a_taken_address_is_named(watch: Watch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        found = look_up(watch, "my-host:1")
        answer(watch, f"+{place}".encode())
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: the address is in use")
    found.end()


def test_a_name_that_is_slow_to_look_up_is_asked_for_less_often(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    watch.os.now += 2.0
    answer(watch, b"-slow")
    assert found.due == watch.os.now + 2.0 * REST
    found.end()


def test_a_name_server_that_does_not_answer_is_given_up(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    watch.os.now += LIMIT
    found.bind_if_due(watch.os.now)
    assert watch.log.said("metrics_bind: cannot listen on my-host:1: it takes longer than 5 s; trying again")
    assert watch.os.sent() == [(101, "SIGKILL")]
    assert found.due == watch.os.now + LIMIT * REST
    found.end()


@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_a_lookup_that_cannot_be_forked_is_tried_again(watch: Watch, call: str) -> None:
    watch.os.faults[call] = [fault(errno.EMFILE)]
    found = look_up(watch, "my-host:1")
    assert watch.log.said("cannot listen on my-host:1: Too many open files; trying again")
    assert found.due == watch.os.now + RETRY
    found.end()


def test_another_address_or_the_end_does_not_wait_for_the_lookup(watch: Watch) -> None:
    found = look_up(watch, "my-host:1")
    found.configure(settings())
    assert watch.os.sent() == [(101, "SIGKILL")]
    found.bind_if_due(watch.os.now)
    found.configure(settings("your-host:1"))
    found.bind_if_due(watch.os.now)
    found.end()
    assert watch.os.sent()[1:] == [(102, "SIGKILL")]
    assert watch.shell.select() == 0


def test_without_a_command_socket_the_server_goes_on(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise fault(errno.ENOSPC)

    monkeypatch.setattr(address, "bind_command", refuse)
    found, _ = addresses(watch.shell, "")
    assert found.command_listener is None
    assert watch.log.said("continuing without commands")
    found.end()


def test_a_worker_closes_them_all(watch: Watch, free_port: int) -> None:
    found, _ = addresses(watch.shell, f"127.0.0.1:{free_port}")
    found.bind_if_due(NOW)
    found.metrics_address(settings(metrics_path="/metrics"))
    found.close()
    listeners = (found.listener, found.command_listener, found.metrics_socket.listener)
    assert [listener and listener.fileno() for listener in listeners] == [-1, -1, -1]
    assert found.metrics_socket.address  # a worker goes on to ask there
    found.metrics_socket.close()


@pytest.mark.parametrize(
    "changes",
    [{"metrics_bind": "127.0.0.1:0"}, {"metrics_hosts": frozenset({"a.example"})}],
)
def test_a_reload_that_changes_how_it_listens_replaces_the_monitor(
    watch: Watch, changes: dict[str, Any]
) -> None:
    found, seen = addresses(watch.shell, "")
    found.configure(settings())
    assert seen == []
    found.configure(settings(**changes))
    assert len(seen) == 1
    found.end()


def test_the_name_that_it_listens_on_may_be_in_the_host_header(watch: Watch) -> None:
    found, _ = addresses(watch.shell, "")
    found.configure(settings("metrics.example.com:9464", metrics_hosts=frozenset({"*.example.org"})))
    assert found.hosts == {"metrics.example.com", "*.example.org"}
    found.end()


# --- where workers ask for `metrics_path`


def abstract_sockets() -> set[str]:
    """The unix sockets of this machine that have a name and no file."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split()[-1] for line in lines if "@multicore-server" in line}


def test_without_a_metrics_path_nothing_is_bound(watch: Watch) -> None:
    found, changes = addresses(watch.shell, "")
    assert found.metrics_address(settings()) == ""
    assert (found.metrics_socket.listener, changes) == (None, [])
    assert not any(str(os.getpid()) in name for name in abstract_sockets())
    found.end()


def test_a_worker_reaches_the_metrics_socket_and_nobody_finds_it(watch: Watch, tmp_path: Path) -> None:
    found, changes = addresses(watch.shell, "")
    where = found.metrics_address(settings(metrics_path="/metrics"))
    assert len(changes) == 1
    listener = found.metrics_socket.listener
    assert listener is not None
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(where)
        listener.accept()[0].close()
    assert not Path(listener.getsockname()).parent.exists()
    assert found.metrics_address(settings(metrics_path="/other")) == where
    assert len(changes) == 1
    found.configure(settings())
    assert (found.metrics_address(settings()), len(changes)) == ("", 2)
    found.end()


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """The path of a socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="mc-") as directory:
        yield Path(directory)


@pytest.mark.parametrize(
    "call", ["socket.socket.listen", "os.open", "tempfile.mkdtemp", "pathlib.Path.chmod"]
)
def test_a_metrics_path_that_cannot_be_served_costs_one_line_and_leaves_nothing(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, short_directory: Path, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise fault(errno.EMFILE)

    monkeypatch.setattr("tempfile.tempdir", str(short_directory))
    found, changes = addresses(watch.shell, "")
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        for _ in range(3):
            assert found.metrics_address(settings(metrics_path="/metrics")) == ""
    assert len(watch.log.said("metrics_path cannot be served")) == 1
    assert descriptors() == before
    assert changes == []
    assert found.metrics_address(settings(metrics_path="/metrics"))  # the next worker finds it mended
    found.end()
    assert not list(short_directory.iterdir())


def test_where_the_usual_path_is_too_long_for_a_socket(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    found, _ = addresses(watch.shell, "")
    assert found.metrics_address(settings(metrics_path="/metrics"))
    found.end()
    assert not list(long.iterdir())


def test_where_only_shared_memory_is_writable(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    monkeypatch.setattr("tempfile.tempdir", None)
    found, _ = addresses(watch.shell, "")
    assert found.metrics_address(settings(metrics_path="/metrics"))
    found.end()
