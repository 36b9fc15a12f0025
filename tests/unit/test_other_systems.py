"""What is there in place of what Linux has alone."""

from __future__ import annotations

import os
import resource
import socket
import sys
from typing import Any

import pytest

from multicore_server.arbiter import other_systems
from multicore_server.ipc import seqpacket
from multicore_server.ipc.locks import SharedLocks
from multicore_server.ipc.mailboxes import MAX_BODY, Kind, Mailboxes, Packet
from multicore_server.ipc.memory_file import memory_file
from multicore_server.machine import descriptors
from multicore_server.settings.table import Settings


def test_linux_lacks_nothing() -> None:
    assert other_systems.missing() == []
    assert list(other_systems.losses()) == []
    settings = Settings(workers=2)
    assert other_systems.adapt(settings) is settings


@pytest.mark.parametrize(("enabled", "lines"), [(True, 0), (False, 1)])
def test_a_free_threaded_python_is_named(enabled: bool, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: enabled, raising=False)
    assert len(list(other_systems.losses())) == lines


def without_memfd(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "memfd_create")


def without_seqpacket(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(seqpacket, "KIND", socket.SOCK_DGRAM)


def without_proc(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(other_systems, "HAS_PROC", False)


@pytest.mark.parametrize(
    ("take_away", "name"),
    [(without_memfd, "memfd_create"), (without_seqpacket, "SOCK_SEQPACKET"), (without_proc, "/proc")],
)
def test_where_one_thing_is_missing_connections_stay_and_memory_is_resident(
    take_away: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch)
    settings = other_systems.adapt(Settings(workers=2, max_restarts=5))
    assert (settings.scheduling, settings.memory_metric, settings.max_restarts) == ("shared", "rss", 5)
    (line,) = other_systems.losses()
    assert line.startswith(f"this system has no {name}: scheduling = shared, ")


def test_a_file_in_place_of_one_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    without_memfd(monkeypatch)
    file = memory_file("it")
    assert not os.get_inheritable(file)
    assert os.fstat(file).st_nlink == 0
    os.close(file)


def test_its_locks_are_processes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    without_memfd(monkeypatch)
    locks = SharedLocks("it")
    assert locks.take(3)
    child = os.fork()
    if child == 0:
        os._exit(10 * locks.take(3) + locks.take(4))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    locks.close()


@pytest.mark.parametrize("error", [OSError(93, "Protocol not supported"), AttributeError("SOCK_SEQPACKET")])
def test_the_kind_of_socket_that_there_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    assert seqpacket._kind() == socket.SOCK_SEQPACKET

    def refuse(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(socket, "socketpair", refuse)
    assert seqpacket._kind() == socket.SOCK_DGRAM


def test_datagrams_carry_the_longest_message_and_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    without_seqpacket(monkeypatch)
    monkeypatch.setattr(seqpacket, "_CLOEXEC", 0)
    boxes = Mailboxes(2)
    reader, writer = os.pipe()
    boxes.send(1, Packet(Kind.MESSAGE, 0, 7, MAX_BODY * b"x", [writer]))
    packet = boxes.receive(1)
    assert packet is not None
    assert packet[:4] == (Kind.MESSAGE, 0, 7, MAX_BODY * b"x")
    (received,) = packet.descriptors
    assert not os.get_inheritable(received)
    os.write(received, b"it")
    assert os.read(reader, 2) == b"it"
    assert boxes.receive(1) is None
    for descriptor in (reader, writer, received):
        os.close(descriptor)
    boxes.close()


def test_where_unlimited_is_refused_there_are_as_many_descriptors_as_macos_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [(256, resource.RLIM_INFINITY)]

    def setrlimit(which: int, wanted: tuple[int, int]) -> None:
        if wanted[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    descriptors.raise_descriptor_limit()
    assert limits[-1] == (descriptors.OPEN_MAX, resource.RLIM_INFINITY)
