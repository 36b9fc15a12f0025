"""The monitor of real servers: what it shows, and what it counts."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from multicore_server.settings.table import TABLE
from tests.support.addresses import LOCAL
from tests.support.apps import HELLO
from tests.support.asking import ask
from tests.support.deploying import deploy, hup
from tests.support.load import Load, load
from tests.support.monitored_server import MakeMonitored, MonitoredServer, by, over, parsed
from tests.support.programs import program
from tests.support.raw_client import Connection
from tests.support.waiting import wait_for

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SLOW_BOOT = HELLO + "\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\n"
# --- what it shows


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_what_there_is_to_ask(monitored: MonitoredServer, options: tuple[str, ...]) -> None:
    monitored.start("-w", "2", *options, ready=2)
    assert [monitored.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200] * 3
    status = monitored.status()
    assert status["arbiter"]["pid"] == monitored.server.pid
    assert status["monitor"]["pid"] == monitored.server.monitor()
    assert status["addresses"] == [f"http://{LOCAL}:{monitored.server.port}"]
    assert (status["name"], status["configured"], status["ready"]) == ("app:app", 2, 2)
    assert (status["stopping"], status["reloading"]) == (False, False)
    assert status["settings"].keys() == TABLE.keys()
    assert status["settings"]["workers"] == "2"
    assert status["timeout"] == 30
    assert [event["kind"] for event in status["events"]] == ["started"] * 2 + ["ready"] * 2
    assert [worker["instance"] for worker in status["workers"]] == [0, 1]
    assert {worker["pid"] for worker in status["workers"]} == set(monitored.server.workers())
    for worker in status["workers"]:
        assert worker.keys() >= {
            "generation", "state", "since", "uptime", "restarts", "unstable", "next_restart", "memory",
            "cpu_seconds", "connections", "in_hand", "requests", "loop_lag", "blocked", "inline",
            "processes",
        }  # fmt: skip
        assert (worker["state"], worker["generation"], worker["unstable"]) == ("ready", 1, 0)
        assert status["arbiter"]["started"] - 1 < worker["started"] <= worker["since"] <= status["time"]


def test_after_a_crash_status_says_what_comes_next(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={"MULTICORE_RESTART_DELAY": "60s"}, ready=1)
    os.kill(monitored.server.worker_of(0), signal.SIGKILL)
    wait_for(lambda: monitored.workers()[0]["state"] == "backoff", "backoff")
    worker = monitored.workers()[0]
    assert worker["restarts"] == {"signal": 1}
    assert 50 < worker["next_restart"] - worker["since"] < 61
    assert worker["pid"] is None
    answer = monitored.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "no worker is ready\n")
    assert monitored.get("/healthz").status_code == 200
    assert by(monitored.metrics(), "multicore_workers")["backoff"] == 1


def test_no_secret_is_shown(monitored: MonitoredServer) -> None:
    """Neither of the environment nor of the command line, wherever one asks."""
    secrets = ("SESAME-ENV", "SESAME-ARGV", "SESAME-CONF")
    monitored.server.write("conf.py", "raw_env = ['TOKEN=SESAME-CONF']")
    options = ("-c", "conf.py", "--env", "DATABASE=postgres://me:SESAME-ARGV@db/")
    monitored.start("-w", "1", *options, env={"PASSWORD": "SESAME-ENV"}, ready=1)
    deploy(monitored.server, 2, "import nowhere")
    hup(monitored.server, "reload rolled back")
    assert ask(monitored.server, "os.environ['PASSWORD']") == "SESAME-ENV"
    wait_for(lambda: monitored.get("/samples").json()["marks"], "the mark of the reload")
    paths = ("/", "/metrics", "/status", "/samples", "/healthz", "/readyz", "/nowhere")
    shown = "".join(monitored.get(path).text + over(monitored.socket, path).text for path in paths)
    assert "reload rolled back" in shown
    assert [secret for secret in secrets if secret in shown] == []


FACTORY = "import os\ndef make(token):\n    raise RuntimeError(os.environ['DATABASE'])\n"
CONFIG = "import os\nraise RuntimeError(os.environ['DATABASE'])\n"


def test_what_is_said_of_a_failure_is_for_the_log_and_the_owner(monitored: MonitoredServer) -> None:
    server, env = monitored.server, {"DATABASE": "postgres://me:SESAME@db/"}
    server.write("app.py", f"{HELLO}\ndef make(token):\n    return app\n")
    server.write("gunicorn.conf.py", "")
    monitored.start("-w", "1", env=env, app="app:make('ARGUMENT')", ready=1)
    server.write("app.py", FACTORY)
    hup(server, "reload rolled back: app:make could not be loaded: RuntimeError: postgres://me:SESAME@db/")
    server.write("gunicorn.conf.py", CONFIG)
    hup(server, "reload failed: .*SESAME")
    wait_for(
        lambda: len(monitored.get("/samples").json()["marks"]) == 3, "the marks of two reloads and a boot"
    )
    shown = "".join(monitored.get(path).text for path in ("/", "/metrics", "/status", "/samples"))
    assert ("SESAME" in shown, "ARGUMENT" in shown) == (False, False)
    assert [
        event["text"] for event in monitored.status()["events"] if event["kind"] in ("boot", "reload")
    ] == [
        "exited with code 3 before it was ready: the log says why",
        "reload rolled back: the log says why; the old workers keep serving",
        "reload failed: the log says why; everything stays as it was",
    ]
    assert over(monitored.socket, "/status").text.count("SESAME") == 3
    assert "ARGUMENT" not in over(monitored.socket, "/status").text + server.log


def test_status_of_an_app_that_says_what_is_no_unicode(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    monitored.server.write("app.py", "raise RuntimeError('\\udcff \\U0001f600')")
    hup(monitored.server, "reload rolled back")
    assert "? \U0001f600" in over(monitored.socket, "/status").json()["events"][-1]["text"]


def test_every_metric_of_the_docs_and_no_other(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={"MULTICORE_MAX_MEMORY_RESTART": "1G"}, ready=1)
    assert ask(monitored.server, "1") == 1
    names = [f"multicore_worker_{it}_memory_bytes" for it in ("unique", "resident")]
    wait_for(lambda: all(by(monitored.metrics(), name) for name in names), "measured memory")
    text = monitored.get("/metrics").text
    shown = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE))
    assert shown == documented
    samples = {re.split(r"[{ ]", key)[0] for key in parsed(text)}
    for metric, kind in documented.items():
        assert (f"{metric}_count" if kind == "histogram" else metric) in samples, metric
    checked = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_readiness_while_it_starts_and_stops(make_monitored: MakeMonitored) -> None:
    monitored = make_monitored(SLOW_BOOT).start("-w", "1", env={"MULTICORE_SHUTDOWN_DELAY": "1s"})
    monitored.wait_answering()
    answer = monitored.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "no worker is ready\n")
    (monitored.server.directory / "go").touch()
    monitored.server.wait_ready(1)
    wait_for(lambda: monitored.answers("/readyz"), "ready")

    monitored.server.signal(signal.SIGTERM)
    wait_for(lambda: not monitored.answers("/readyz"), "no longer ready", 0.9)
    assert monitored.get("/readyz").text == "the server is stopping\n"
    assert monitored.status()["stopping"] is True
    assert monitored.get("/healthz").status_code == monitored.server.get().status_code == 200
    assert monitored.server.wait_exit() == 0


def test_requests_of_a_load_are_all_counted(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    with Load((LOCAL, monitored.server.port)) as sent:
        wait_for(lambda: sum(sent.answers.values()) > 200, "some load")
        for _ in range(3):
            assert monitored.get("/metrics").status_code == 200
    monitored.wait_counted({"GET 2xx": sum(sent.answers.values())})


def test_slow_scrapers_are_nobodys_problem(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    slow = [Connection(monitored.port) for _ in range(80)]
    for connection in slow:
        with contextlib.suppress(ConnectionError):  # one too many
            connection.send(b"GET /metrics HTTP/1.1\r\n")
    with load(monitored.server) as answered:
        wait_for(lambda: sum(answered.answers.values()) > 50, "answers of the app")
        assert over(monitored.socket, "/readyz").status_code == 200
    for connection in slow:
        connection.close()
    wait_for(lambda: monitored.answers("/readyz"), "an answer for others")
