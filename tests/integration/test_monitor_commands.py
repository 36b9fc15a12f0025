"""Commands over the monitor's own socket, and the events that follow."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from typing import Any

import httpx

from tests.support.addresses import LOCAL
from tests.support.asking import ask
from tests.support.deploying import deploy
from tests.support.monitored_server import MonitoredServer, by, left_behind, over
from tests.support.processes import gone, wait_gone
from tests.support.waiting import wait_for

# --- commands


def test_the_command_socket_is_the_owners(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    assert stat.S_IMODE(monitored.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(monitored.socket.parent.stat().st_mode) == 0o700
    for name in ("reload", "restart", "scale", "stop", "reset"):
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"http://{LOCAL}:{monitored.port}/commands/{name}")
        assert answer.status_code in (404, 405), name
    assert over(monitored.socket, "/commands/reload").status_code == 405
    assert monitored.command("nonsense").status_code == 404
    assert monitored.answers("/readyz")


def test_where_the_command_socket_would_not_be_safe_there_is_none(monitored: MonitoredServer) -> None:
    directory = monitored.runtime / "multicore-server"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    monitored.start("-w", "1", ready=1)
    (line,) = monitored.server.logged("ERROR")
    assert "is open to others (mode 0777, not 0700)" in line
    assert line.endswith("continuing without commands")
    assert monitored.answers("/readyz")
    assert ask(monitored.server, "1 + 1") == 2
    monitored.server.ends_within(5)
    assert left_behind(monitored) == []


def test_commands_do_what_they_say(monitored: MonitoredServer) -> None:
    server = monitored.start("-w", "2", ready=2).server
    before = set(server.workers())

    def said(name: str, **arguments: Any) -> tuple[int, str]:
        answer = monitored.command(name, **arguments)
        assert answer.json().keys() - {"workers"} == {"ok", "text"}
        return answer.status_code, answer.json()["text"]

    deploy(server, 2)
    assert said("reload") == (200, "reloading")
    server.wait_logged("reload done")
    assert ask(server, "version") == 2
    for pid in before:
        wait_gone(pid)

    first, second = server.worker_of(0), server.worker_of(1)
    assert said("restart", instances=[1]) == (200, "restarting 1")
    wait_gone(second)
    assert server.worker_of(0) == first
    assert not gone(first)
    assert said("restart") == (200, "restarting all instances")
    wait_gone(first)
    assert said("restart", instances=[7]) == (409, "there is no instance 7; there are 0, 1")

    assert said("scale", workers="+1") == (200, "scaling from 2 to 3")
    wait_for(lambda: monitored.status()["ready"] == 3, "three workers")
    assert said("scale", workers=1) == (200, "scaling from 3 to 1")
    wait_for(lambda: monitored.workers().keys() == {0}, "one worker")
    assert said("scale", workers="-1") == (409, "0 workers: 1 to 64 are possible without a restart")
    assert said("scale", workers=65)[0] == 409
    assert said("scale", workers="many")[0] == 400
    restarts = by(monitored.metrics(), "multicore_worker_restarts_total")
    assert {reason: value for reason, value in restarts.items() if value} == {"reload": 2, "manual": 3}

    assert said("stop", graceful="perhaps")[0] == 400
    assert said("stop") == (200, "stopping")
    assert server.wait_exit() == 0
    assert left_behind(monitored) == []


IMPATIENT = """
from multicore_server.monitor.commands import ArbiterClient
ArbiterClient.__init__.__defaults__ = (0.3,)
"""


def test_a_command_that_was_given_up_is_not_carried_out_later(monitored: MonitoredServer) -> None:
    monitored.server.write("conf.py", IMPATIENT)
    server = monitored.start("-w", "1", "-c", "conf.py", ready=1).server
    server.signal(signal.SIGSTOP)
    try:
        answer = monitored.command("scale", workers="+1")
    finally:
        server.signal(signal.SIGCONT)
    assert (answer.status_code, answer.json()["ok"]) == (504, False)
    server.wait_logged("Refusing command: scale comes too late, nobody waits for it any more")
    assert monitored.command("scale", workers="+1").json()["text"] == "scaling from 1 to 2"
    assert len(server.logged("Handling command")) == 1


def test_reset_revives_what_is_errored(monitored: MonitoredServer) -> None:
    env = {"MULTICORE_MAX_RESTARTS": "0", "MULTICORE_MIN_UPTIME": "10m"}
    monitored.start("-w", "2", env=env, ready=2)
    os.kill(monitored.server.worker_of(1), signal.SIGKILL)
    wait_for(lambda: monitored.workers()[1]["state"] == "errored", "an errored worker")
    assert monitored.workers()[1]["unstable"] == 1
    assert by(monitored.metrics(), "multicore_workers") == {
        "starting": 0, "ready": 1, "draining": 0, "backoff": 0, "stopped": 0, "errored": 1,
    }  # fmt: skip
    assert monitored.command("reset").status_code == 200
    wait_for(lambda: monitored.workers()[1]["state"] == "ready", "a revived worker")
    assert monitored.workers()[1]["unstable"] == 0


def test_while_it_stops_only_stop_is_accepted(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1, env={"MULTICORE_SHUTDOWN_DELAY": "60s"})
    assert monitored.command("stop").json() == {"ok": True, "text": "stopping"}
    commands: dict[str, Any] = {"reload": {}, "restart": {}, "scale": {"workers": 2}, "reset": {}}
    for name, arguments in commands.items():
        answer = monitored.command(name, **arguments)
        assert (answer.status_code, answer.json()["text"]) == (409, "the server is stopping"), name
    assert monitored.command("stop", graceful=False).status_code == 200
    assert monitored.server.wait_exit(5) == 0


def test_events_of_a_reload_are_followed(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    transport = httpx.HTTPTransport(uds=str(monitored.socket))
    with (
        httpx.Client(transport=transport, trust_env=False, timeout=20) as client,
        client.stream("GET", "http://localhost/events?last=1") as stream,
    ):
        lines = stream.iter_lines()
        assert next_event(lines)["kind"] == "ready"
        monitored.command("reload")
        kinds: list[tuple[str, str]] = []
        while not kinds or kinds[-1][0] != "reload" or not kinds[-1][1].startswith("reload done"):
            event = next_event(lines)
            kinds.append((event["kind"], event["text"]))
    assert [kind for kind, _ in kinds if kind in ("started", "ready")] == ["started", "ready"]


def next_event(lines: Iterator[str]) -> dict[str, Any]:
    line = next(line for line in lines if line.startswith("data: "))
    event: dict[str, Any] = json.loads(line.removeprefix("data: "))
    return event
