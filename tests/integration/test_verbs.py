"""The operating verbs, as commands of their own, against real servers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.support.addresses import free_port
from tests.support.apps import HELLO
from tests.support.command_line import Operator
from tests.support.deploying import usr2s_arbiter
from tests.support.processes import gone
from tests.support.server import Server
from tests.support.threads import running
from tests.support.waiting import PATIENCE, wait_for

BROKEN = "raise RuntimeError('no \\x1b[2Jsuch table')\n"


@pytest.fixture
def server(operator: Operator) -> Server:
    return operator.start()


# --- looking ---


def wait_measured(operator: Operator) -> None:
    """Memory is not known from the first moment on."""

    def measured() -> bool:
        return all(worker["memory"]["resident"] for worker in operator.json("show")["workers"])

    wait_for(measured, "the workers' memory")


def test_ps(operator: Operator, server: Server) -> None:
    wait_measured(operator)
    for _ in range(3):
        server.get()
    heading, titles, *rows = operator.run("ps").stdout.splitlines()
    assert heading.startswith(f"app:app  pid {server.pid}  {server.url}  2 of 2 ready  up ")
    assert titles.split() == [
        "id", "name", "pid", "uptime", "restarts", "status", "cpu", "mem", "req/s", "5xx/s", "499/s", "in",
        "progress", "conns",
    ]  # fmt: skip
    pids = [server.worker_of(0), server.worker_of(1)]
    for row, instance in zip(rows, (0, 1), strict=True):
        expected = rf"\s*{instance}  app:app  {pids[instance]} +\d+s +0  ready +\d+% +[\d.]+mb +0 +0 +0 +0 +0"
        assert re.fullmatch(expected, row)
    assert "\x1b" not in operator.run("ps").stdout


def test_ps_counts_requests_between_two_looks(operator: Operator, server: Server) -> None:
    enough = threading.Event()

    def load() -> None:
        while not enough.is_set():
            server.get()

    with running(load, end=enough.set):
        rows = operator.run("ps").stdout.splitlines()[2:]
    assert sum(float(row.split()[8]) for row in rows) > 0


def test_usr2_keeps_the_name(operator: Operator, server: Server, ending: list[int]) -> None:
    server.signal(signal.SIGUSR2)
    new = usr2s_arbiter(server)
    ending.append(new)
    server.wait_ready(4)
    assert operator.refused("show", "app:app").startswith("'app:app' names several servers; give a pid: ")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert operator.json("show", "app:app")["arbiter"]["pid"] == new


def test_ps_of_several_servers(operator: Operator) -> None:
    one = operator.start("-n", "api", workers=1)
    two = operator.start("-n", "web\x1b[31m[red]", workers=1)
    shown = operator.run("ps").stdout
    assert re.findall(r"^(\S+)  pid (\d+)", shown, re.MULTILINE) == [
        ("api", str(one.pid)), ("web\\x1b[31m[red]", str(two.pid)),
    ] or shown.index("api") > shown.index("web")  # fmt: skip
    assert "\x1b" not in shown
    assert {it["name"] for it in operator.json("ps")} == {"api", "web\x1b[31m[red]"}
    assert "web" not in operator.run("ps", "api").stdout
    assert operator.json("show", str(two.port))["arbiter"]["pid"] == two.pid
    assert operator.json("show", str(one.pid))["name"] == "api"
    message = operator.refused("reload")
    assert message.startswith("several servers are running; name one of them: ")
    assert f"api (pid {one.pid}, port {one.port})" in message
    assert operator.refused("stop", "db").startswith("no server 'db' is running; there are ")
    os.kill(one.pid, signal.SIGTERM)
    assert one.wait_exit() == 0
    assert operator.json("show")["arbiter"]["pid"] == two.pid  # the only one by now


def test_ps_in_a_terminal(operator: Operator, server: Server) -> None:
    wide = operator.terminal("ps", columns=120)
    assert wide.wait_exit() == 0
    assert b"\x1b[32mready\x1b[0m" in wide.raw
    assert "conns" in wide.shown
    narrow = operator.terminal("ps", columns=34, NO_COLOR="1")
    assert narrow.wait_exit() == 0
    assert b"\x1b" not in narrow.raw
    titles = narrow.wait_shown(r"^id .*")[0]
    assert titles.split()[:2] == ["id", "restarts"]
    assert "conns" not in titles


def test_ps_without_a_server(operator: Operator) -> None:
    done = operator.run("ps")
    assert (done.stdout, done.stderr) == ("", "no server of this user is running\n")
    assert operator.json("ps") == []


def test_show(operator: Operator, server: Server) -> None:
    server.get()
    wait_measured(operator)
    shown = operator.run("show", "app:app").stdout
    for pattern in (
        r"^app:app$", rf"^  pid +{server.pid}, monitor \d+$", rf"^  addresses +{server.url}$",
        r"^  workers +2 of 2 ready, room for 64$", r"^instance 0: ready$", r"^instance 1: ready$",
        r"^  memory +[\d.]+mb.*, limit -$", r"^  max_restarts +16$",
        r"^  \d\d:\d\d:\d\d  info     instance=0 gen=1 pid=\d+ ready after ",
    ):  # fmt: skip
        assert re.search(pattern, shown, re.MULTILINE), pattern


def test_metrics(operator: Operator, server: Server) -> None:
    server.get()
    shown = operator.run("metrics").stdout
    assert 'multicore_http_requests_total{code="2xx",method="GET"} 1.0\n' in shown


# --- events ---


def test_events(operator: Operator, server: Server) -> None:
    every = operator.run("events").stdout.splitlines()
    assert len([line for line in every if " ready after " in line]) == 2
    assert operator.run("events", "--last", "1").stdout.splitlines() == every[-1:]
    assert operator.run("events", "--last", "0").stdout == ""
    last = json.loads(operator.run("events", "--last", "1", "--json").stdout)
    assert last["kind"] == "ready"
    assert operator.refused("events", "--last", "many") == "--last: 'many' is not a number from 0 to 999999"


def test_following_events(operator: Operator, server: Server) -> None:
    following = operator.begin("events", "--follow", "--last", "1", "--json")
    assert following.stdout is not None
    assert following.stderr is not None
    first = json.loads(following.stdout.readline())
    assert first["kind"] == "ready"
    os.kill(server.worker_of(0), signal.SIGKILL)
    crash = json.loads(following.stdout.readline())
    assert (crash["id"], crash["kind"], crash["reason"]) == (first["id"] + 1, "exited", "signal")
    os.kill(server.monitor(), signal.SIGKILL)  # it comes back, and no event is lost or told twice
    server.wait_ready(3)
    operator.run("stop")
    rest = [json.loads(line) for line in following.stdout]
    told = [first, crash, *rest]
    assert [event["id"] for event in told] == list(range(first["id"], first["id"] + len(told)))
    assert following.wait(PATIENCE) == 0
    assert following.stderr.read() == f"the server with pid {server.pid} has exited\n"


# --- changing ---


def test_reload(operator: Operator, server: Server) -> None:
    before = server.workers()
    done = operator.run("reload")
    assert re.fullmatch(r"reload done: 2 workers replaced in [\d.]+ s\n", done.stdout)
    assert done.stderr.splitlines()[-1] == "2 of 2 workers replaced"
    ready = [it for it in operator.json("show")["workers"] if it["state"] == "ready"]
    assert not {it["pid"] for it in ready} & set(before)


def test_a_reload_that_is_rolled_back(operator: Operator, server: Server) -> None:
    server.write("app.py", BROKEN)
    done = operator.run("reload", status=1)
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("multicore-server: reload rolled back: ")
    assert "no \\x1b[2Jsuch table" in last
    assert "\x1b" not in done.stderr
    answer = operator.json("reload", status=1)
    assert (answer["ok"], answer["pid"]) == (False, server.pid)
    assert answer["text"].startswith("reload rolled back: ")
    assert server.get().status_code == 200


def test_a_reload_whose_configuration_is_wrong(operator: Operator) -> None:
    config = operator.runtime / "gunicorn.conf.py"
    config.write_text("workers = 1\n")
    operator.start("-c", str(config), workers=1)
    config.write_text("workers = \n")
    done = operator.run("reload", status=1)
    assert done.stderr.splitlines()[-1].startswith("multicore-server: reload failed: ")


def test_reload_without_waiting(operator: Operator, server: Server) -> None:
    assert operator.run("reload", "--no-wait").stdout == "reloading\n"
    server.wait_logged("reload done")


def test_restart(operator: Operator, server: Server) -> None:
    before = [server.worker_of(0), server.worker_of(1)]
    assert operator.run("restart", "1").stdout == "restarted: 1 worker replaced\n"
    assert server.worker_of(0) == before[0]
    assert server.worker_of(1) != before[1]
    assert operator.run("restart", "app:app").stdout == "restarted: 2 workers replaced\n"
    assert server.worker_of(0) != before[0]
    assert operator.json("restart", "-s", str(server.port), "0")["ok"] is True
    assert operator.refused("restart", "7").startswith("restart: there is no instance 7; there are 0, 1; ")
    assert operator.refused("restart", "0", "x").startswith("restart: 'x' is not an instance number")


def test_a_restart_that_fails(operator: Operator, server: Server) -> None:
    before = server.worker_of(0)
    server.write("app.py", BROKEN)
    done = operator.run("restart", "0", status=1)
    assert done.stderr.splitlines()[-1].startswith("multicore-server: restart failed: instance=0 gen=2 ")
    assert before in server.workers()


def test_scale(operator: Operator, server: Server) -> None:
    assert operator.run("scale", "+2").stdout == "scaled: 4 workers ready\n"
    assert len(server.workers()) == 4
    assert operator.run("scale", "-1").stdout == "scaled: 3 workers ready\n"
    assert len(server.workers()) == 3
    assert operator.run("scale", "app:app", "1").stdout == "scaled: 1 worker ready\n"
    assert operator.json("scale", "-s", str(server.pid), "2")["text"] == "scaled: 2 workers ready"
    assert operator.run("scale", "max", "--no-wait").stdout.startswith("scaling from 2 to ")


WRONG = {
    ("0",): 'workers: give a number from 1, a change such as "+2" or "-1", or "max"',
    ("-5",): "-3 workers: 1 to 64 are possible without a restart",
    ("65",): "65 workers: 1 to 64 are possible without a restart",
    ("many",): "'many' is not a number of workers; give 4, +1, -1 or max",
    ("1.5",): "'1.5' is not a number of workers; give 4, +1, -1 or max",
    (): "'' is not a number of workers; give 4, +1, -1 or max",
    ("a", "b", "3"): "give a server and a number of workers, such as `scale api +2`",
}


def test_a_wrong_number(operator: Operator, server: Server) -> None:
    for arguments, message in WRONG.items():
        assert operator.refused("scale", *arguments) == f"scale: {message}"


def test_a_scale_that_fails(operator: Operator, server: Server) -> None:
    server.write("app.py", BROKEN)
    done = operator.run("scale", "3", status=1)
    assert done.stderr.splitlines()[-1].startswith("multicore-server: scale incomplete: instance=2 ")


def test_stop(operator: Operator, server: Server) -> None:
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(server.get("/block?5").text))
    thread.start()
    wait_for(lambda: _in_hand(operator), "a request in hand")
    assert operator.run("stop").stdout == "stopped\n"
    assert gone(server.pid)
    thread.join()
    assert answers[0].isdecimal()  # it was answered
    assert server.wait_exit() == 0
    assert operator.refused("stop").startswith("no server of this user is running")


def _in_hand(operator: Operator) -> int:
    return sum(worker["in_hand"] for worker in operator.json("show")["workers"])


def test_stop_now(operator: Operator, server: Server) -> None:
    waiting = threading.Thread(target=_ask_in_vain, args=(server.port,))
    waiting.start()
    wait_for(lambda: _in_hand(operator), "a request in hand")
    assert operator.json("stop", "--now") == {"ok": True, "text": "stopped", "pid": server.pid}
    waiting.join(5)
    assert not waiting.is_alive()


def _ask_in_vain(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /block?15 HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(PATIENCE)
        try:
            client.recv(100)
        except OSError:
            return


def test_reset_revives_what_was_given_up(operator: Operator) -> None:
    server = operator.start("--env", "MULTICORE_MAX_RESTARTS=0")
    sabotage = server.write("app.py", BROKEN)
    os.kill(server.worker_of(0), signal.SIGKILL)
    wait_for(lambda: operator.json("show")["workers"][0]["state"] == "errored", "an errored worker")
    assert "errored" in operator.run("ps").stdout
    sabotage.write_text(HELLO)
    assert operator.run("reset").stdout == "the counts of unstable exits start from 0\n"
    wait_for(lambda: operator.json("show")["ready"] == 2, "two ready workers")


def test_a_python_that_drops_docstrings_and_assertions(operator: Operator) -> None:
    operator.env["PYTHONOPTIMIZE"] = "2"
    server = operator.start()
    assert int(server.get().text) in server.workers()
    assert operator.run("reload").stdout.startswith("reload done: 2 workers replaced")
    assert "SERVER is a name" in operator.run("reload", "--help").stdout


# --- on a terminal ---


def test_the_progress_bar(operator: Operator) -> None:
    operator.start(app=HELLO + "\ntime.sleep(0.7)\n")
    terminal = operator.terminal("reload")
    terminal.wait_shown(r"\[░{24}\] 0/2 workers replaced, \d+ s")
    terminal.wait_shown(r"\[█{12}░{12}\] 1/2 workers replaced, \d+ s")
    assert terminal.wait_exit() == 0
    assert re.fullmatch(r"reload done: 2 workers replaced in [\d.]+ s", terminal.shown.strip())
    assert terminal.modes() == terminal.before


def test_whoever_leaves_the_progress_bar_stops_nothing(operator: Operator) -> None:
    server = operator.start(app=HELLO + "\ntime.sleep(2)\n")
    terminal = operator.terminal("reload")
    terminal.wait_shown("0/2 workers replaced")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait_exit() == 130
    assert terminal.shown.strip() == "multicore-server: no longer waiting; the server continues"
    server.wait_logged("reload done: 2 workers replaced")


# --- what is no good ---


@pytest.fixture
def dead(operator: Operator) -> str:
    """The pid of a server that was killed with its monitor: its command socket is still there."""
    directory = operator.runtime / "multicore-server"
    directory.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(directory / "4194305.sock"))
    return "4194305"


def test_a_dead_socket(operator: Operator, dead: str) -> None:
    assert operator.refused("show", dead) == (
        f"the server with pid {dead} has exited; only its command socket is left"
    )
    assert operator.run("ps").stdout == ""


def test_a_monitor_that_hangs(operator: Operator, server: Server) -> None:
    other = operator.start("-n", "other", workers=1)
    os.kill(server.monitor(), signal.SIGSTOP)
    try:
        done = operator.run("ps", status=2)  # the other one is shown
    finally:
        os.kill(server.monitor(), signal.SIGCONT)
    assert done.stderr == f"multicore-server: the server with pid {server.pid} has not answered within 5 s\n"
    assert f"other  pid {other.pid}  " in done.stdout
    assert "app:app" not in done.stdout


def test_a_directory_that_is_not_safe(operator: Operator, tmp_path: Path) -> None:
    (operator.runtime / "multicore-server").mkdir(mode=0o755)
    (operator.runtime / "multicore-server").chmod(0o755)
    assert "is open to others (mode 0755, not 0700)" in operator.refused("ps")


def test_a_server_that_listens_no_more_is_not_chosen(operator: Operator) -> None:
    assert operator.refused("reload", str(free_port())).startswith("no server of this user is running")


def test_a_server_that_ends_during_a_reload(operator: Operator) -> None:
    server = operator.start(app=HELLO + "\ntime.sleep(1)\n")
    reloading = operator.begin("reload")
    server.wait_logged("started to replace")
    server.signal(signal.SIGTERM)
    assert reloading.wait(PATIENCE) == 1
    assert reloading.stderr is not None
    last = reloading.stderr.read().splitlines()[-1]
    assert re.search("the server (is stopping|has exited)", last)


# --- shell completion ---


def test_completion_knows_the_servers(operator: Operator, server: Server) -> None:
    operator.env |= {
        "_MULTICORE_SERVER_COMPLETE": "bash_complete",
        "COMP_WORDS": "x reload ",
        "COMP_CWORD": "2",
    }
    assert operator.run().stdout == "plain,app:app\n"
