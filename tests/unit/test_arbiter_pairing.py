"""Which listener belongs to which address, and what a reload does about the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from multicore_server.arbiter import deployment, listeners
from multicore_server.arbiter.deployment import Deployment, DeploymentError
from multicore_server.arbiter.pairing import pair
from tests.support.addresses import LOCAL, free_port
from tests.unit.shell import Log
from tests.unit.test_arbiter_reloader import settings

# gunicorn drops the socket by which it looks what kind of socket a descriptor is.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def held(name: Any, configured: Any = None) -> SimpleNamespace:
    """A listener that is bound to this; for this address, where that is known."""
    known = {} if configured is None else {"configured": configured}
    return SimpleNamespace(getsockname=lambda: name, **known)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ((LOCAL, 80), (LOCAL, 80)),
        (("", 80), ("0.0.0.0", 80)),
        (("localhost", 80), (LOCAL, 80)),
        (("::", 80), ("::", 80, 0, 0)),
        (("0:0::1", 80), ("::1", 80, 0, 0)),
        ((LOCAL, 0), (LOCAL, 34567)),
        ("s.sock", "s.sock"),
        ("\0abstract", b"\0abstract"),
    ],
)
def test_an_address_and_what_a_socket_says(address: Any, name: Any) -> None:
    listener = held(name)
    assert pair([address], [listener], {"localhost": LOCAL}) == {address: listener}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ((LOCAL, 80), (LOCAL, 81)),
        ((LOCAL, 80), ("0.0.0.0", 80)),
        (("localhost", 80), ("127.0.0.2", 80)),
        ((LOCAL, 0), "s.sock"),
        ("s.sock", "t.sock"),
        (7, (LOCAL, 80)),
    ],
)
def test_others_are_not_taken_for_it(address: Any, name: Any) -> None:
    assert pair([address], [held(name)], {"localhost": LOCAL}) == {}


@pytest.mark.parametrize("address", [("elsewhere", 80), (LOCAL, 0), 7])
def test_what_it_was_bound_for_counts_whatever_it_is_bound_to(address: Any) -> None:
    """A name may have another IP address by now, and a descriptor has none."""
    other, listener = held((LOCAL, 81)), held((LOCAL, 34567), address)
    assert pair([address], [other, listener], {}) == {address: listener}


def test_positions_do_not_matter() -> None:
    a, b, c = (held((LOCAL, port)) for port in (1, 2, 3))
    assert pair([(LOCAL, 3), (LOCAL, 4), (LOCAL, 2)], [a, b, c], {}) == {(LOCAL, 3): c, (LOCAL, 2): b}


def test_an_exact_one_is_not_given_to_an_address_whose_port_is_the_kernels() -> None:
    exact, other = held((LOCAL, 80)), held((LOCAL, 34567))
    found = pair([(LOCAL, 0), (LOCAL, 80)], [exact, other], {})
    assert found == {(LOCAL, 80): exact, (LOCAL, 0): other}


def test_one_listener_has_one_address() -> None:
    listener = held((LOCAL, 80))
    found = pair([(LOCAL, 80), ("localhost", 80)], [listener], {"localhost": LOCAL})
    assert found == {(LOCAL, 80): listener}


def test_one_that_is_closed_is_what_it_was_bound_for() -> None:
    """In the child that tries a configuration."""
    closed = SimpleNamespace(configured=(LOCAL, 80))
    assert pair([(LOCAL, 80), (LOCAL, 81)], [closed, SimpleNamespace()], {}) == {(LOCAL, 80): closed}


# --- a reload


class Inherited:
    """USR2's arbiter: it has these sockets, and a configuration with these addresses."""

    def __init__(self, *ports: int, bind: list[str]) -> None:
        self.log = Log()
        sockets = [socket.create_server((LOCAL, port)) for port in ports]
        self.cfg = self.configuration(bind)
        self.held = [listeners.inherit(it.detach(), self.cfg, self.log) for it in sockets]
        self.current = Deployment(None, self.cfg, settings(), self.held)

    @staticmethod
    def configuration(bind: list[str]) -> Any:
        cfg = Config()
        cfg.set("bind", bind)
        return cfg

    def reload(self, *bind: str) -> list[Any]:
        """The addresses that are listened on afterwards."""
        new = Deployment(None, self.configuration(list(bind)), settings(), self.current.listeners)
        self.current = deployment.bind(new, self.current, self.log, {})
        self.held += [it for it in self.current.listeners if it not in self.held]
        return [listener.getsockname() for listener in self.current.listeners]


A, B, C = free_port(), free_port(), free_port()


@pytest.fixture
def inherited() -> Iterator[Inherited]:
    """It listens on A and B, and its configuration says B."""
    found = Inherited(A, B, bind=[f"{LOCAL}:{B}"])
    yield found
    listeners.unbind(found.held)


def test_what_has_no_address_stays_until_bind_changes(inherited: Inherited) -> None:
    before = inherited.current.listeners
    assert inherited.reload(f"{LOCAL}:{B}") == [(LOCAL, A), (LOCAL, B)]
    assert inherited.current.listeners is before
    assert inherited.reload(f"{LOCAL}:{B}", f"{LOCAL}:{C}") == [(LOCAL, B), (LOCAL, C)]
    assert inherited.current.listeners[0] is before[1]


def test_what_usr2_could_not_bind_is_bound_by_a_reload_without_a_change() -> None:
    inherited = Inherited(A, bind=[f"{LOCAL}:{B}"])
    kept = inherited.held[0]
    assert inherited.reload(f"{LOCAL}:{B}") == [(LOCAL, B), (LOCAL, A)]
    found = inherited.current.listeners
    assert found[1] is kept
    inherited.reload(f"{LOCAL}:{B}")
    assert inherited.current.listeners is found
    listeners.unbind(inherited.held)


def test_a_taken_address_leaves_all_as_it_was(inherited: Inherited) -> None:
    before = inherited.current
    with socket.create_server((LOCAL, C)), pytest.raises(DeploymentError, match="the address is in use"):
        inherited.reload(f"{LOCAL}:{B}", f"{LOCAL}:{C}")
    assert inherited.current is before
    assert [listener.sock is None for listener in inherited.held] == [False, False]


def test_addresses_of_systemd_do_not_count(inherited: Inherited) -> None:
    given = Deployment(None, inherited.cfg, settings(), inherited.held, given=True)
    new = Deployment(None, inherited.configuration([f"{LOCAL}:{C}"]), settings(), inherited.held)
    assert deployment.bind(new, given, inherited.log, {}) is new


def test_names_are_looked_up_where_no_listener_has_the_address(
    inherited: Inherited, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = SimpleNamespace(cfg=inherited.configuration([f"localhost:{B}", f"{LOCAL}:{A}"]))
    monkeypatch.setattr(deployment, "load", lambda current, log: new)
    assert deployment.check(inherited.current) == {"localhost": LOCAL}
    given = Deployment(None, inherited.cfg, settings(), inherited.held, given=True)
    assert deployment.check(given) == {}


def test_no_host_is_all_of_them(tmp_path: Path) -> None:
    assert listeners.resolve([("", 80), f"{tmp_path}/s"]) == {}
