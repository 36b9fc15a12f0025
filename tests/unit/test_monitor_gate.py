"""What is refused in front of the monitor's app: bodies, and hosts that are others'."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from multicore_server.monitor.allowed_hosts import AllowedHosts
from multicore_server.monitor.gate import Gate, Message, probes_only


def ask(
    app: Any, path: str = "/metrics", method: str = "GET", *headers: tuple[bytes, bytes]
) -> list[Message]:
    """What is sent for one request."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing here reads a body")

    scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    return sent


async def app(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_every_answer_has_the_headers() -> None:
    start, body = ask(Gate(app))
    assert start["headers"] == [
        (b"a", b"b"), (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"),
    ]  # fmt: skip
    assert body["body"] == b"ok"


@pytest.mark.parametrize("header", [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")])
@pytest.mark.parametrize(("method", "status"), [("GET", 413), ("HEAD", 413), ("POST", 200)])
def test_a_body_has_a_place_with_post_alone_and_ends_the_connection(
    header: tuple[bytes, bytes], method: str, status: int
) -> None:
    start = ask(Gate(app), "/metrics", method, header)[0]
    assert start["status"] == status
    assert (b"connection", b"close") in start["headers"]


def test_an_empty_body_is_none() -> None:
    assert ask(Gate(app), "/metrics", "GET", (b"content-length", b"0"))[0]["status"] == 200


# --- Host ---

OURS = [
    "127.0.0.1", "127.0.0.1:9464", "10.1.2.3:9464", "[::1]:9464", "[fd00::1]", "localhost:9464", "LOCALHOST",
    "app:9464", "localhost.", "a.localhost:1", "host.local", "app.namespace.svc:9464",
    "app.namespace.svc.cluster.local:9464", "ip-10-0-0-1.eu-west-1.compute.internal", "",
]  # fmt: skip
OTHERS = [
    "evil.example", "evil.example:9464", "127.0.0.1.evil.example", "127.0.0.1.nip.io:9464",
    "localhost.evil.example",
    "evil.example.", "x.local.evil", "mysvc.example", "evil.example:9464:1", "a b.c", "[::1",
    "[::1]x.y", "notlocalhost.x",
]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
def test_addresses_and_names_that_nobody_can_own_are_ours(host: str) -> None:
    assert AllowedHosts().accept(host)


@pytest.mark.parametrize("host", OTHERS)
def test_names_that_somebody_may_own_are_not(host: str) -> None:
    """A page of theirs reads us in its visitor's browser, once its name points to 127.0.0.1."""
    assert not AllowedHosts().accept(host)


def test_names_that_are_allowed() -> None:
    allowed = AllowedHosts(["Metrics.Example.com", "*.example.org"])
    for host in ("metrics.example.com", "METRICS.example.com.:9464", "a.example.org", "a.b.example.org"):
        assert allowed.accept(host)
    for host in ("example.com", "a.metrics.example.com", "example.org", "badexample.org"):
        assert not allowed.accept(host)
    assert AllowedHosts(["*"]).accept("evil.example")


def test_this_machine_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: type("U", (), {"nodename": "Web1.Example.com"}))
    assert AllowedHosts().accept("web1.example.com:9464")


@pytest.mark.parametrize("path", ["/metrics", "/status", "/", "/page.js", "/nothing"])
def test_a_request_for_another_host_is_refused_with_the_setting_that_allows_it(path: str) -> None:
    start, body = ask(Gate(app, AllowedHosts()), path, "GET", (b"host", b"evil.example"))
    assert start["status"] == 421
    assert b"metrics_hosts" in body["body"]
    assert b"evil" not in body["body"]
    assert body["body"].count(b"\n") == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_are_answered_whatever_their_host(path: str) -> None:
    assert ask(Gate(app, AllowedHosts()), path, "GET", (b"host", b"evil.example"))[0]["status"] == 200


def test_without_a_host_and_over_unix_sockets_anybody_is_answered() -> None:
    assert ask(Gate(app, AllowedHosts()))[0]["status"] == 200
    assert ask(Gate(app), "/status", "GET", (b"host", b"evil.example"))[0]["status"] == 200


# --- the reserve ---


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/metrics", 503), ("/", 503)]
)
def test_a_connection_too_many_may_ask_for_probes_and_ends(path: str, status: int) -> None:
    start = ask(probes_only(app), path)[0]
    assert start["status"] == status
    assert (b"connection", b"close") in start["headers"]
