"""`multicore-server trigger`: actions of the app, in its workers."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.apps import source
from tests.support.command_line import Operator
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.smoke]

ACTING = source("acting")
NAMES = ["fail", "gc", "greet", "large", "later", "loop", "memory", "stacks", "tracemalloc", "what"]


@pytest.fixture
def server(operator: Operator) -> Server:
    return operator.start(app=ACTING)


def answers(operator: Operator, *arguments: str) -> dict[int, object]:
    """What each worker answers, by instance."""
    lines = operator.run("trigger", *arguments).stdout.splitlines()
    found = (line.removeprefix("instance ").partition(": ") for line in lines)
    return {int(instance): json.loads(answer) for instance, _, answer in found}


def test_without_a_name_the_actions_are_listed(operator: Operator, server: Server) -> None:
    assert operator.run("trigger").stdout.splitlines() == NAMES


def test_arguments_come_by_name_by_position_or_alone(operator: Operator, server: Server) -> None:
    for given, greets in [('{"name": "a"}', ["a"]), ('["a", "b"]', ["a", "b"]), ('"a"', ["a"])]:
        found = answers(operator, "greet", "--json", given)
        expected = {
            number: {"greets": greets, "pid": server.worker_of(number), "thread": "MainThread"}
            for number in (0, 1)
        }
        assert found == expected
    assert answers(operator, "greet", "1").keys() == {1}
    assert answers(operator, "greet", "-s", str(server.pid)).keys() == {0, 1}


@pytest.mark.parametrize("threads", ["1", "4"])
def test_in_a_wsgi_app_no_loop_runs_there(operator: Operator, threads: str) -> None:
    server = operator.start("--threads", threads, app=ACTING.replace("def wsgi(", "app = None\n\n\ndef app("))
    assert answers(operator, "loop") == {0: False, 1: False}
    assert server.get().text == "ok"
    assert answers(operator, "later", "--json", "0.01") == {0: 0.01, 1: 0.01}


def test_what_fails_is_said_and_the_exit_status_is_1(operator: Operator, server: Server) -> None:
    done = operator.run("trigger", "fail", status=1)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "instance 0: ValueError: no \\x1b[2Jdice",
        "instance 1: ValueError: no \\x1b[2Jdice",
    ]
    server.wait_logged("the action 'fail': fail failed", 2)
    for name, why in [
        ("what", "its result cannot be sent: Object of type object is not JSON serializable"),
        ("large", "its result cannot be sent: the message has 70"),
        ("nope", "there is no action 'nope'; there are " + ", ".join(NAMES)),
        ("later", "TypeError: later() missing 1 required positional argument: 'seconds'"),
    ]:
        assert f"instance 0: {why}" in operator.run("trigger", name, status=1).stderr
    assert server.get().status_code == 200


def test_a_worker_that_does_not_run_or_answer_costs_its_own_answer(
    operator: Operator, server: Server
) -> None:
    done = operator.run("trigger", "greet", "0", "9", status=1)
    assert done.stdout.startswith("instance 0: ")
    assert done.stderr == "instance 9: it is not running\n"
    assert "not answered within 0.2 s" in operator.run(
        "trigger", "later", "--json", "60", "--timeout", "200ms", status=1
    ).stderr  # fmt: skip
    stopped = server.worker_of(0)
    os.kill(stopped, signal.SIGSTOP)
    try:
        done = operator.run("trigger", "greet", "--timeout", "1", status=1)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert done.stdout.startswith("instance 1: ")
    assert done.stderr == "instance 0: it has not answered within 1 s\n"
    wait_for(lambda: answers(operator, "greet").keys() == {0, 1}, "both workers")


def test_what_cannot_be_asked_is_one_line(operator: Operator, server: Server) -> None:
    assert operator.refused("trigger", "greet", "x") == (
        "trigger: 'x' is not an instance number; `ps` shows them; for a server 'greet': trigger x -s greet"
    )
    assert operator.refused("trigger", "greet", "--json", "{").startswith("--json: '{' is not JSON: ")
    assert operator.refused("trigger", "greet", "--timeout", "0") == (
        "--timeout: '0' is not between 0 and 600 seconds"
    )
    assert operator.refused("trigger", "greet", "--json", json.dumps("x" * 20_000)) == (
        "trigger: the body is longer than 16384 bytes"
    )


def test_what_is_built_in(operator: Operator, server: Server) -> None:
    collected = answers(operator, "gc", "0")[0]
    assert isinstance(collected, dict)
    assert collected["tracked"] > 100
    assert collected["frozen"] > 10_000
    used = answers(operator, "memory", "0")[0]
    assert isinstance(used, dict)
    assert 0 < used["uss"] <= used["rss"]
    assert used["types"][0]["bytes"] >= used["types"][1]["bytes"] > 0
    assert "it is not running; start it first" in operator.run("trigger", "tracemalloc", status=1).stderr
    assert answers(operator, "tracemalloc", "--json", '"start"') == {
        0: {"tracing": True},
        1: {"tracing": True},
    }
    server.get()
    top = answers(operator, "tracemalloc", "1")[1]
    assert isinstance(top, dict)
    assert top["top"][0]["bytes"] > 0
    assert answers(operator, "tracemalloc", "--json", '["stop"]')[0] == {"tracing": False}
    assert (
        "give start, top or stop" in operator.run("trigger", "tracemalloc", "--json", '"x"', status=1).stderr
    )


def test_a_name_that_is_built_in_is_refused(make_server: MakeServer) -> None:
    server = make_server(ACTING.replace('cluster.action("loop")', 'cluster.action("gc")'))
    server.start("-w", "1", ready=0)
    assert server.wait_exit() == 3
    assert server.logged("ValueError: the action 'gc' is built in; give yours another name")


def test_an_answer_outlives_a_reload(operator: Operator, server: Server) -> None:
    waiting = operator.begin("trigger", "later", "--json", "1")
    operator.run("reload")
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, sorted(out.splitlines()), err) == (0, ["instance 0: 1", "instance 1: 1"], "")
    assert operator.run("trigger").stdout.splitlines() == NAMES
