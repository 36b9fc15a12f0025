"""Hooks that gunicorn does not have: what they are told, and that a mistake in one costs nothing."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import pytest

from tests.support.apps import source
from tests.support.asking import ask
from tests.support.refused_start import BAD_SETTING, Refused
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = pytest.mark.integration

APP = source("talking")
EVENTS = ("on_message", "on_worker_ready", "on_worker_exit", "on_reload_result", "on_errored")
ARGUMENTS = {
    "on_message": 3,
    "on_worker_ready": 2,
    "on_worker_exit": 4,
    "on_reload_result": 3,
    "on_errored": 2,
}

CONF = """
import json, os

version = 1


def note(*line):
    with open("events", "a") as file:
        file.write(json.dumps([*line, version]) + "\\n")


def attempt(call, *arguments):
    try:
        return call(*arguments)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"


def on_message(server, worker, message):
    note("on_message", server.pid, worker.pid, message.value, message.sender, message.fds)
    if message.value == "misuse":
        said = [attempt(worker.send, value) for value in (object(), float("nan"), "x" * 65535)]
        said.append(attempt(worker.send, 1, [0] * 17))
        note("misuse", *said)
    else:
        worker.send({"answer": message.value})


def on_worker_ready(server, worker):
    note("on_worker_ready", server.pid, worker.pid)
    worker.send(["welcome", worker.pid])


def on_worker_exit(server, worker, reason, status):
    note("on_worker_exit", server.pid, worker.pid, reason, status, attempt(worker.send, "late"))


def on_reload_result(server, result, reason):
    note("on_reload_result", server.pid, result, reason)


def on_errored(server, instance):
    note("on_errored", server.pid, instance)
"""


class Told:
    """What the hooks of a server have noted."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def all(self, hook: str) -> list[Any]:
        path = self.server.directory / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [entry[1:] for entry in map(json.loads, lines) if entry[0] == hook]

    def wait(self, hook: str, count: int = 1) -> list[Any]:
        return wait_for(lambda: len(self.all(hook)) >= count and self.all(hook), f"{count} x {hook}") or []


def got(server: Server, pid: int) -> list[Any]:
    path = server.directory / f"got.{pid}"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def hooked(server: Server, conf: str = CONF, workers: int = 2, **more: Any) -> Told:
    server.write("conf.py", conf)
    server.start("-w", str(workers), "-c", "conf.py", ready=workers, **more)
    return Told(server)


def hup(server: Server, done: str = "reload done") -> None:
    before = len(server.logged(done))
    server.signal(signal.SIGHUP)
    server.wait_logged(done, before + 1)


# --- what they are told


def test_the_arbiter_and_the_app_talk(make_server: MakeServer) -> None:
    server = make_server(APP)
    told = hooked(server)
    pids = {0: server.worker_of(0), 1: server.worker_of(1)}
    ready = told.wait("on_worker_ready", 2)
    assert sorted(ready) == sorted([server.pid, pid, 1] for pid in pids.values())
    for pid in pids.values():
        wait_for(lambda pid=pid: got(server, pid) == [["arbiter", ["welcome", pid]]], "a welcome")  # type: ignore[misc]
    expression = "cluster.send_sync('arbiter', {'a': [1, None, 'é'], 'of': 'x' * 60000})"
    _, pid, instance = ask(server, f"[{expression}, os.getpid(), cluster.instance]")
    value = {"a": [1, None, "é"], "of": "x" * 60_000}
    assert told.wait("on_message") == [[server.pid, pid, value, instance, [], 1]]
    wait_for(lambda: got(server, pid)[-1:] == [["arbiter", {"answer": value}]], "an answer")
    # In order.
    expression = "[[cluster.send_sync('arbiter', number) for number in range(50)], os.getpid()]"
    _, pid = ask(server, expression)
    wait_for(
        lambda: [["arbiter", {"answer": it}] for it in range(50)] == got(server, pid)[-50:], "50 answers"
    )
    # Mistakes of the hook's.
    ask(server, "cluster.send_sync('arbiter', 'misuse')")
    ((*said, _),) = told.wait("misuse")
    assert [text.partition(":")[0] for text in said] == ["TypeError", *["ValueError"] * 3]
    assert server.logged("Traceback|hook") == []


def test_how_workers_and_reloads_end(make_server: MakeServer) -> None:
    server = make_server(APP)
    told = hooked(server, env={"MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0"})
    first = {server.worker_of(0), server.worker_of(1)}
    hup(server)
    exits = told.wait("on_worker_exit", 2)
    assert {(pid, reason, status) for _, pid, reason, status, *_ in exits} == {
        (pid, "reload", 0) for pid in first
    }
    assert all(arbiter == server.pid for arbiter, *_ in exits)
    assert all("takes no messages" in said for *_, said, _ in exits)
    ((arbiter, result, reason, _),) = told.wait("on_reload_result")
    assert (arbiter, result) == (server.pid, "ok")
    assert reason.startswith("reload done: 2 workers replaced")
    # One that is killed.
    killed = server.worker_of(1)
    os.kill(killed, signal.SIGKILL)
    assert told.wait("on_worker_exit", 3)[-1][1:4] == [killed, "signal", -9]
    told.wait("on_worker_ready", 5)
    # A config file that breaks, and an app that does.
    server.write("conf.py", CONF + "\n1 / 0\n")
    hup(server, "reload failed")
    result, reason = told.wait("on_reload_result", 2)[-1][1:3]
    assert (result, len(reason.splitlines())) == ("failed", 1)
    assert "ZeroDivisionError" in reason
    server.write("conf.py", CONF)
    server.write("app.py", APP + "\n1 / 0\n")
    hup(server, "reload rolled back")
    result, reason = told.wait("on_reload_result", 3)[-1][1:3]
    assert (result, len(reason.splitlines())) == ("rolled_back", 1)
    assert told.wait("on_worker_exit", 4)[-1][2:4] == ["boot", 3]
    # Other hooks, from now on.
    server.write("app.py", APP)
    server.write("conf.py", CONF.replace("version = 1", "version = 2"))
    hup(server)
    assert told.wait("on_reload_result", 4)[-1][-1] == 2
    wait_for(lambda: [entry[-1] for entry in told.all("on_worker_ready")[-2:]] == [2, 2], "the new hooks")
    ask(server, "cluster.send_sync('arbiter', 1)")
    assert told.wait("on_message")[-1][-1] == 2
    assert told.wait("on_worker_exit", 6)[-1][-1] == 2
    server.ends_within(20)
    assert [reason for _, _, reason, *_ in told.all("on_worker_exit")[6:]] == ["manual", "manual"]


def test_hooks_that_a_reload_takes_away_are_not_called_any_more(make_server: MakeServer) -> None:
    server = make_server(APP)
    told = hooked(server, workers=1)
    server.write("conf.py", "")
    hup(server)
    ask(server, "cluster.send_sync('arbiter', 1)")
    hup(server)
    assert len(told.all("on_worker_ready")) == 1
    assert told.all("on_message") == []
    assert server.logged("Traceback|hook") == []


def test_an_instance_that_is_given_up(make_server: MakeServer) -> None:
    server = make_server(APP + "\nif os.path.exists('broken') and cluster.instance == 1:\n    1 / 0\n")
    env = {
        "MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0",
        "MULTICORE_MAX_RESTARTS": "2",
        "MULTICORE_MIN_UPTIME": "3600",
    }
    told = hooked(server, env=env)
    (server.directory / "broken").touch()
    os.kill(server.worker_of(1), signal.SIGKILL)
    assert told.wait("on_errored") == [[server.pid, 1, 1]]
    ends = [(reason, status) for _, _, reason, status, *_ in told.all("on_worker_exit")]
    assert ends[0] == ("signal", -9)
    assert set(ends[1:]) == {("boot", 3)}
    (server.directory / "broken").unlink()
    hup(server)
    (server.directory / "broken").touch()
    os.kill(server.worker_of(1), signal.SIGKILL)
    assert told.wait("on_errored", 2)[-1] == [server.pid, 1, 1]


# --- what goes wrong in them


BREAKS = "".join(
    f"def {name}({', '.join('abcd'[:count])}):\n    raise ValueError('no luck')\n"
    for name, count in ARGUMENTS.items()
)


def test_one_that_raises_is_named_and_costs_nothing(make_server: MakeServer) -> None:
    server = make_server(APP + "\nif os.path.exists('broken') and cluster.instance == 1:\n    1 / 0\n")
    env = {"MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0", "MULTICORE_MAX_RESTARTS": "1"}
    hooked(server, BREAKS, env=env)
    assert ask(server, "cluster.send_sync('arbiter', 1)") is None
    hup(server)
    (server.directory / "broken").touch()
    os.kill(server.worker_of(1), signal.SIGKILL)
    for name in EVENTS:
        server.wait_logged(rf"\[ERROR\] the {name} hook failed; continuing without it")
    assert server.get("/?1").json() == 1
    server.ends_within(20)


def test_one_that_takes_long_is_named(make_server: MakeServer) -> None:
    server = make_server(APP)
    slow = CONF.replace("import json, os", "import json, os, time").replace(
        'note("on_message"', 'time.sleep(0.15), note("on_message"'
    )
    told = hooked(server, slow, workers=1)
    ask(server, "cluster.send_sync('arbiter', 1)")
    told.wait("on_message")
    server.wait_logged(
        r"\[WARNING\] the on_message hook took 0\.\d s; the arbiter does nothing else during a hook"
    )
    assert server.logged("the on_worker_ready hook took") == []


def bad_hooks(name: str) -> list[str]:
    """As a config file may have them."""
    fewer, more = "abcd"[: ARGUMENTS[name] - 1], "abcdef"[: ARGUMENTS[name] + 1]
    return ["1", "'nothing:such'", *(f"lambda {', '.join(some)}: None" for some in (fewer, more))]


RUN = [sys.executable, "-m", "multicore_server", "run", "--config", "conf.py", "--workers", "2"]


@pytest.mark.parametrize("name", EVENTS)
def test_a_bad_one_stops_the_start_with_one_line(make_server: MakeServer, name: str) -> None:
    started: list[Refused] = []
    for value in bad_hooks(name):
        server = make_server(APP)
        server.write("conf.py", f"{name} = {value}\n")
        started.append(Refused(server, "-c", "conf.py"))
    for refused in started:
        assert refused.server.wait_exit() == BAD_SETTING
        lines = refused.server.log.splitlines()
        assert len([line for line in lines if name in line]) == 1, lines
        refused.check_settings(f"{name}: ")


def test_a_bad_one_stops_the_other_command_and_a_reload_too(make_server: MakeServer) -> None:
    run = make_server(APP)
    run.write("conf.py", "on_worker_ready = 1\n")
    run.start(command=[*RUN, "--port", str(run.port)], bind="")
    server = make_server(APP)
    told = hooked(server, workers=1)
    server.write("conf.py", CONF.replace("def on_errored(server, instance)", "def on_errored(server)"))
    hup(server, "reload failed.*on_errored")
    result, reason = told.wait("on_reload_result")[-1][1:3]
    assert result == "failed"
    assert "on_errored" in reason
    assert len(reason.splitlines()) == 1
    assert run.wait_exit() == BAD_SETTING
    assert "Invalid value for on_worker_ready: 1\n" in run.log  # as gunicorn says it of its own
    assert "Traceback" not in run.log


# --- other ways to give them


PROGRAM = """
import json, os, sys
import multicore_server

def ready(server, worker):
    with open("events", "a") as file:
        file.write(json.dumps(["on_worker_ready", server.pid, worker.pid, 1]) + "\\n")

def heard(server, worker, message):
    worker.send(message.value + 1)

multicore_server.run("app:app", workers=2, bind=sys.argv[-2], on_worker_ready=ready, on_message=heard)
"""


def test_run_takes_them_as_options(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("program.py", PROGRAM)
    address = f"127.0.0.1:{server.port}"
    server.start(command=[sys.executable, "program.py", address], bind="", ready=2)
    told = Told(server)
    pids = [server.worker_of(0), server.worker_of(1)]
    assert sorted(told.wait("on_worker_ready", 2)) == sorted([server.pid, pid, 1] for pid in pids)
    _, pid = ask(server, "[cluster.send_sync('arbiter', 41), os.getpid()]")
    wait_for(lambda: got(server, pid) == [["arbiter", 42]], "an answer")
    hup(server)
    told.wait("on_worker_ready", 4)


def test_run_refuses_a_bad_one(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.write("program.py", PROGRAM.replace("on_worker_ready=ready", "on_worker_ready=lambda server: 1"))
    server.start(command=[sys.executable, "program.py", f"127.0.0.1:{server.port}"], bind="")
    assert server.wait_exit() == BAD_SETTING
    (line,) = server.log.split("\n\n")[-1].strip().splitlines()
    assert line.startswith("Error: on_worker_ready: ")


@pytest.mark.parametrize("command", [None, RUN], ids=["gunicorn", "run"])
def test_each_command_takes_them_from_its_config_file(
    make_server: MakeServer, command: list[str] | None
) -> None:
    server = make_server(APP)
    name = "gunicorn.conf.py" if command is None else "conf.py"
    server.write(name, CONF)
    if command is None:
        server.start("-w", "2", ready=2)
    else:
        server.start(command=[*command, "--port", str(server.port)], bind="", ready=2)
    told = Told(server)
    told.wait("on_worker_ready", 2)
    _, pid = ask(server, "[cluster.send_sync('arbiter', 1), os.getpid()]")
    wait_for(lambda: got(server, pid)[-1:] == [["arbiter", {"answer": 1}]], "an answer")
