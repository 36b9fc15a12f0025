"""The monitor of real servers: its addresses, its commands, and that its troubles are nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme

from multicore_server.settings.table import TABLE
from tests.support.addresses import LOCAL, quiet_port, refuses
from tests.support.apps import ASK, HELLO
from tests.support.asking import ask
from tests.support.deploying import configure, deploy, hup, usr2s_arbiter
from tests.support.load import Load, load
from tests.support.monitored_server import MakeMonitored, MonitoredServer, by, parsed, requests
from tests.support.privileges import readable_by_all
from tests.support.processes import gone, is_monitor, wait_gone
from tests.support.prometheus import command as found
from tests.support.raw_client import Connection
from tests.support.server import Server
from tests.support.waiting import wait_for

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SLOW_BOOT = HELLO + "\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\n"
# For the config file, which the arbiter loads.
DIES = "import multicore_server.monitor.process as it, os\nit.run = lambda post: os._exit(7)"
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def configured(make_monitored: MakeMonitored) -> MonitoredServer:
    """Its address is in conf.py alone."""
    monitored = make_monitored(ASK)
    monitored.server.listens_for_scrapers = True
    return monitored


def start_configured(monitored: MonitoredServer, **settings: object) -> None:
    configure(monitored.server, workers=1, metrics_bind=f"{LOCAL}:{monitored.port}", **settings)
    environment = {"XDG_RUNTIME_DIR": str(monitored.runtime)}
    monitored.server.start("-c", "conf.py", env=environment, ready=1)
    monitored.wait_answering()


def over(path: Path, url: str, method: str = "GET") -> httpx.Response:
    """One request over a unix socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost", trust_env=False) as client:
        return client.request(method, url, headers={"connection": "close"})


def ends_within(server: Server, seconds: float) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait_exit(seconds) == 0


def left_behind(monitored: MonitoredServer) -> list[str]:
    """Files of sockets, beside the server's directory."""
    return [str(path) for path in monitored.runtime.rglob("*") if not path.is_dir()]


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
    assert [event["kind"] for event in status["events"]] == ["started"] * 2 + ["ready"] * 2
    assert [worker["instance"] for worker in status["workers"]] == [0, 1]
    assert {worker["pid"] for worker in status["workers"]} == set(monitored.server.workers())
    for worker in status["workers"]:
        assert worker.keys() >= {
            "generation", "state", "since", "uptime", "restarts", "unstable", "next_restart", "memory",
            "cpu_seconds", "connections", "in_hand", "requests", "loop_lag", "processes",
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
    paths = ("/", "/metrics", "/status", "/healthz", "/readyz", "/nowhere")
    shown = "".join(monitored.get(path).text + over(monitored.socket, path).text for path in paths)
    assert "reload rolled back" in shown
    assert [secret for secret in secrets if secret in shown] == []


def test_status_of_an_app_that_says_what_is_no_unicode(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", ready=1)
    monitored.server.write("app.py", "raise RuntimeError('\\udcff \\U0001f600')")
    hup(monitored.server, "reload rolled back")
    assert "? \U0001f600" in monitored.status()["events"][-1]["text"]


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
        [found("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
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


# --- its address


def test_a_taken_address_is_waited_for(monitored: MonitoredServer) -> None:
    with socket.create_server((LOCAL, monitored.port)):
        monitored.start("-w", "1")
        monitored.server.wait_ready(1)
        wait_for(lambda: over(monitored.socket, "/healthz").status_code == 200, "the command socket")
        assert ask(monitored.server, "1 + 1") == 2
        line = monitored.server.wait_logged("metrics_bind: cannot listen")[0]
        assert f"{LOCAL}:{monitored.port}: the address is in use" in line
        before = monitored.server.monitor()
    wait_for(lambda: monitored.answers("/healthz"), "the address taken over", 3)
    assert monitored.status()["monitor"]["pid"] != before
    assert requests(monitored.metrics()) == {"GET 2xx": 1}
    assert len(monitored.server.logged("metrics_bind: cannot listen")) == 1
    assert monitored.server.logged(f"metrics_bind: listening on {LOCAL}:{monitored.port} now")


def test_hup_moves_it(configured: MonitoredServer) -> None:
    server, first, second = configured.server, configured.port, quiet_port()
    start_configured(configured)

    def move(metrics_bind: str) -> None:
        configure(server, workers=1, metrics_bind=metrics_bind)
        hup(server)

    move(f"{LOCAL}:{second}")
    wait_for(lambda: configured.answers("/healthz", second), "the second address")
    assert refuses(first)
    move("none")
    wait_for(lambda: refuses(second), "no address")
    wait_for(lambda: over_command(configured) == 200, "the command socket")
    move("unix:m.sock")
    path = server.directory / "m.sock"
    wait_for(lambda: path.exists() and over(path, "/healthz").status_code == 200, "the unix socket")
    assert refuses(first)
    move(f"{LOCAL}:{first}")
    wait_for(lambda: configured.answers("/healthz"), "the first address again")
    assert not path.exists()
    assert by(configured.metrics(), "multicore_reloads_total")["ok"] == 4
    assert not server.logged("WARNING|ERROR")


def over_command(monitored: MonitoredServer) -> int:
    try:
        return over(monitored.socket, "/healthz").status_code
    except httpx.TransportError:
        return 0


def test_a_unix_socket_goes_with_the_server(configured: MonitoredServer) -> None:
    """Also from another directory than the one that it was named in."""
    server, path = configured.server, configured.server.directory / "m.sock"
    (server.directory / "below").mkdir()
    configure(server, workers=1, metrics_bind="unix:m.sock")
    server.start("-c", "conf.py", env={"XDG_RUNTIME_DIR": str(configured.runtime)}, ready=1)
    wait_for(path.exists, "the socket")
    configure(server, workers=1, metrics_bind="unix:m.sock", chdir="below", pythonpath=str(server.directory))
    hup(server)
    wait_for(lambda: over(path, "/readyz").status_code == 200, "ready")
    ends_within(server, 5)
    assert not path.exists()
    assert not (server.directory / "below" / "m.sock").exists()
    assert left_behind(configured) == []


def test_hup_to_an_address_that_is_taken(configured: MonitoredServer) -> None:
    """The reload is done, as the app is none of the monitor's business; the old address is given up."""
    start_configured(configured)
    other = quiet_port()
    with socket.create_server((LOCAL, other)):
        configure(configured.server, workers=1, metrics_bind=f"{LOCAL}:{other}")
        hup(configured.server)
        configured.server.wait_logged(f"metrics_bind: cannot listen on {LOCAL}:{other}")
        wait_for(lambda: over_command(configured) == 200, "the command socket")
        assert refuses(configured.port)
    wait_for(lambda: configured.answers("/readyz", other), "the address", 3)
    assert len(configured.server.logged("cannot listen")) == 1


def test_a_rolled_back_reload_leaves_it_where_it_was(configured: MonitoredServer) -> None:
    start_configured(configured)
    before = configured.server.monitor()
    configure(configured.server, workers=1, metrics_bind=f"{LOCAL}:{quiet_port()}")
    deploy(configured.server, 2, "import nowhere")
    hup(configured.server, "reload rolled back")
    assert configured.answers("/readyz")
    assert configured.server.monitor() == before


# --- what befalls it


def test_a_killed_monitor_comes_back(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    with load(monitored.server) as answered:
        for count in (1, 2):
            before = monitored.server.monitor()
            os.kill(before, signal.SIGKILL)
            monitored.server.wait_logged(
                rf"monitor pid={before} has ended \(status -9\); starting it again in"
            )
            wait_for(lambda: monitored.answers("/readyz"), "the monitor's return")
            assert monitored.status()["monitor"]["pid"] != before, count
    delays = re.findall(r"starting it again in (\d\.\d)", monitored.server.log)
    assert len(delays) == 2
    monitored.wait_counted({"GET 2xx": sum(answered.answers.values())})
    assert not monitored.server.logged("ERROR|exited|unstable")


def test_a_monitor_that_cannot_live_is_tried_ever_more_slowly(monitored: MonitoredServer) -> None:
    """Nothing of the server waits for it, and the log is not flooded."""
    monitored.server.write("conf.py", DIES)
    monitored.start("-w", "1", "-c", "conf.py")
    monitored.server.wait_ready(1)
    lines = monitored.server.wait_logged(r"monitor pid=\d+ has ended \(status 7\)", 4)
    delays = [float(re.findall(r"again in ([\d.]+) s", line)[0]) for line in lines]
    assert delays == sorted(delays)
    assert delays[0] == 0 < delays[-1]
    assert ask(monitored.server, "1 + 1") == 2
    ends_within(monitored.server, 5)
    assert left_behind(monitored) == []


def test_a_stopped_monitor_stops_nobody_else(monitored: MonitoredServer) -> None:
    monitored.start("-w", "2", ready=2)
    monitor = monitored.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    with load(monitored.server, "version") as requests_:
        deploy(monitored.server, 2)
        hup(monitored.server)
        requests_.wait_for(2)
    ends_within(monitored.server, 5)
    assert gone(monitor)
    assert left_behind(monitored) == []


def test_a_silent_monitor_is_replaced(monitored: MonitoredServer) -> None:
    monitored.server.write(
        "conf.py", "import multicore_server.arbiter.monitor_process as it\nit.SILENCE = 2.0"
    )
    monitored.start("-w", "1", "-c", "conf.py", ready=1)
    monitor = monitored.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    monitored.server.wait_logged(rf"monitor pid={monitor} has hung for [23] s; killing it")
    wait_for(lambda: monitored.answers("/readyz"), "another monitor")
    assert monitored.status()["monitor"]["pid"] != monitor


def test_a_monitor_that_was_told_to_end_while_it_was_stopped(configured: MonitoredServer) -> None:
    """A reload moves its address: the old one is in the way until it is killed."""
    server, second = configured.server, quiet_port()
    server.write("silence.py", "import multicore_server.arbiter.monitor_process as it\nit.SILENCE = 2.0")
    start_configured(configured, pythonpath=".")
    # conf.py is loaded by the arbiter, which is where the constant is.
    text = f"import silence\nworkers = 1\nmetrics_bind = '{LOCAL}:{second}'\n"
    server.write("conf.py", "import sys; sys.path.insert(0, '.')\n" + text)
    monitor = server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    hup(server)
    assert ask(server, "1 + 1") == 2
    wait_for(lambda: configured.answers("/readyz", second), "the monitor at its new address")
    assert gone(monitor)


def test_it_ends_with_an_arbiter_that_was_killed_and_the_next_one_cleans_up(
    make_monitored: MakeMonitored,
) -> None:
    monitored, heir = make_monitored(ASK).start("-w", "1", ready=1), make_monitored(ASK)
    monitor, socket_path = monitored.server.monitor(), monitored.socket
    monitored.server.signal(signal.SIGKILL)
    monitored.server.wait_exit()
    wait_gone(monitor)
    assert refuses(monitored.port)
    assert socket_path.exists()
    heir.start("-w", "1", env={"XDG_RUNTIME_DIR": str(monitored.runtime)}, ready=1)
    assert [path.name for path in socket_path.parent.iterdir()] == [f"{heir.server.pid}.sock"]


def test_without_descriptors_the_server_lives(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={"MULTICORE_MAX_MEMORY_RESTART": "80%"}, ready=1)
    psutil.Process(monitored.server.pid).rlimit(psutil.RLIMIT_NOFILE, (5, 5))
    before = monitored.metrics()["process_cpu_seconds_total"]
    os.kill(monitored.server.monitor(), signal.SIGKILL)
    monitored.server.wait_logged("the monitor could not be forked .*Too many open files")
    os.kill(monitored.server.pid, signal.SIGHUP)
    monitored.server.wait_logged("reload (failed|rolled back)")
    assert before > 0
    assert ask(monitored.server, "1 + 1") == 2
    ends_within(monitored.server, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_nothing_is_left(monitored: MonitoredServer, number: signal.Signals) -> None:
    monitored.start("-w", "2", ready=2)
    family = monitored.server.children()
    assert len(family) == 3
    assert len(left_behind(monitored)) == 1
    monitored.server.signal(number)
    assert monitored.server.wait_exit(5) == 0
    assert [pid for pid in family if not gone(pid)] == []
    assert left_behind(monitored) == []
    assert refuses(monitored.port)


@pytest.mark.parametrize(
    ("app", "settings", "status"),
    [
        ("import nowhere", {}, 3),
        (HELLO, {"MULTICORE_MAX_RESTARTS": "often"}, 1),
        (HELLO, {"MULTICORE_METRICS_BIND": "nowhere"}, 1),
    ],
    ids=["boot", "setting", "address"],
)
def test_a_start_that_fails_leaves_nothing(
    make_monitored: MakeMonitored, app: str, settings: dict[str, str], status: int
) -> None:  # fmt: skip
    monitored = make_monitored(app)
    monitored.start("-w", "2", env=settings)
    assert monitored.server.wait_exit() == status
    assert left_behind(monitored) == []
    assert refuses(monitored.port)
    assert not monitored.server.logged("Traceback.*monitor")


def test_ctrl_c_does_not_end_it_before_the_server(monitored: MonitoredServer) -> None:
    """It is not in the group that a terminal's signals go to."""
    monitored.start("-w", "1", ready=1)
    monitor = monitored.server.monitor()
    assert os.getpgid(monitor) == monitor
    assert os.getpgid(monitored.server.worker_of(0)) == os.getpgid(monitored.server.pid)
    os.kill(monitor, signal.SIGHUP)
    assert monitored.answers("/readyz")


# --- USR2


def test_usr2s_monitor_takes_over(monitored: MonitoredServer, ending: list[int]) -> None:
    monitored.start("-w", "1", ready=1)
    assert ask(monitored.server, "1") == 1
    monitored.server.signal(signal.SIGUSR2)
    new = usr2s_arbiter(monitored.server)
    ending.append(new)
    monitored.server.wait_ready(2)
    new_socket = monitored.socket.with_name(f"{new}.sock")
    wait_for(lambda: new_socket.exists() and over(new_socket, "/readyz").status_code == 200, "its monitor")
    assert monitored.status()["arbiter"]["pid"] == monitored.server.pid
    assert monitored.status()["workers"][0]["requests"]["total"] == 1
    ends_within(monitored.server, 10)
    wait_for(lambda: monitored.answers("/readyz"), "the address taken over", 3)
    assert monitored.status()["arbiter"]["pid"] == new
    assert left_behind(monitored) == [str(new_socket)]
    assert not monitored.server.logged("metrics_bind: cannot listen")
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert left_behind(monitored) == []


def test_usr2s_arbiter_says_so_where_its_address_is_still_taken_after_the_old_one(
    configured: MonitoredServer, ending: list[int]
) -> None:
    start_configured(configured)
    server, other = configured.server, quiet_port()
    with socket.create_server((LOCAL, other)):
        configure(server, workers=1, metrics_bind=f"{LOCAL}:{other}")
        server.signal(signal.SIGUSR2)
        ending.append(usr2s_arbiter(server))
        server.wait_ready(2)
        ends_within(server, 10)
        server.wait_logged(f"metrics_bind: cannot listen on {LOCAL}:{other}")
    wait_for(lambda: configured.answers("/readyz", other), "the address taken over", 3)


# --- the app's own port


def families(text: str) -> list[str]:
    found = re.findall("^# .*$", text, re.MULTILINE)
    assert found
    return found


def check_path(monitored: MonitoredServer, path: str = "/metrics", client: Any = None) -> str:
    """That the app's port answers as the monitor does; its text."""
    served = monitored.server
    answer = client(path) if client else served.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == monitored.get("/metrics").headers["content-type"]
    assert families(answer.text) == families(monitored.get("/metrics").text)
    return str(answer.text)


PATH = {"MULTICORE_METRICS_PATH": "/metrics"}


@pytest.mark.parametrize("app", [HELLO, WSGI], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_metrics_on_the_apps_port(make_monitored: MakeMonitored, app: str, loop: str) -> None:
    monitored = make_monitored(app).start("-w", "2", env={**PATH, "UVICORN_LOOP": loop}, ready=2)
    assert monitored.server.get("/").status_code == 200
    assert requests(parsed(check_path(monitored))) == {"GET 2xx": 1}
    assert httpx.head(f"{monitored.server.url}/metrics").headers["content-length"]
    openmetrics = monitored.server.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")
    monitored.wait_idle()

    os.kill(monitored.server.monitor(), signal.SIGKILL)
    answers = wait_for(lambda: while_away(monitored.server), "the monitor's return")
    assert set(answers) <= {200, 503}
    assert monitored.server.get("/").status_code == 200


def while_away(server: Server) -> list[int]:
    answer = server.get("/metrics")
    if answer.status_code == 503:
        assert answer.text.count("\n") == 1
        assert "the monitor does not answer" in answer.text
        return []
    return [answer.status_code]


def test_metrics_on_the_apps_port_while_there_is_no_monitor(monitored: MonitoredServer) -> None:
    monitored.server.write(
        "conf.py", f"{DIES}\nimport multicore_server.worker.metrics_path as it\nit.PATIENCE = 0.5"
    )
    monitored.start("-w", "1", "-c", "conf.py", env={**PATH, "MULTICORE_METRICS_BIND": "none"})
    monitored.server.wait_ready(1)
    monitored.server.wait_logged(r"monitor pid=\d+ has ended")
    # The arbiter holds the address: the question waits in its backlog until somebody answers or time is up.
    answer = monitored.server.get("/metrics")
    assert (answer.status_code, answer.text.count("\n")) == (503, 1)
    assert ask(monitored.server, "1 + 1") == 2


def test_metrics_below_a_root_path(monitored: MonitoredServer) -> None:
    monitored.start("-w", "1", env={**PATH, "UVICORN_ROOT_PATH": "/below"}, ready=1)
    # A proxy has taken the prefix off, as uvicorn's root_path has it.
    check_path(monitored)


def test_metrics_over_tls(monitored: MonitoredServer, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem")
    monitored.start("-w", "1", *tls, env=PATH, ready=1)

    def get(path: str) -> httpx.Response:
        return httpx.get(f"https://localhost:{monitored.server.port}{path}", verify=trusting)

    check_path(monitored, client=get)


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
    assert line.endswith("going on without commands")
    assert monitored.answers("/readyz")
    assert ask(monitored.server, "1 + 1") == 2
    ends_within(monitored.server, 5)
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
    assert said("scale", workers="-1") == (409, "0 workers: from 1 to 64 can be run without a restart")
    assert said("scale", workers=65)[0] == 409
    assert said("scale", workers="many")[0] == 400
    restarts = by(monitored.metrics(), "multicore_worker_restarts_total")
    assert {reason: value for reason, value in restarts.items() if value} == {"reload": 2, "manual": 3}

    assert said("stop", graceful="perhaps")[0] == 400
    assert said("stop") == (200, "stopping")
    assert server.wait_exit() == 0
    assert left_behind(monitored) == []


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


# --- who runs it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_it_drops_privileges_with_the_workers(monitored: MonitoredServer, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    # As in test_user_and_group: where nobody may not read Python itself.
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    command = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    monitored.start("-w", "1", "-u", "nobody", "-g", "nogroup", command=command, ready=1)
    monitor = psutil.Process(monitored.server.monitor())
    assert set(monitor.uids()) == {65534}
    assert set(monitor.gids()) == {65534}
    assert (monitored.socket.stat().st_uid, stat.S_IMODE(monitored.socket.stat().st_mode)) == (0, 0o600)
    assert monitored.command("scale", workers=2).status_code == 200
    wait_for(lambda: monitored.status()["ready"] == 2, "two workers")
    os.kill(monitored.server.monitor(), signal.SIGKILL)
    wait_for(lambda: monitored.answers("/readyz"), "the monitor's return")
    assert set(psutil.Process(monitored.server.monitor()).uids()) == {65534}
    ends_within(monitored.server, 10)
    assert left_behind(monitored) == []


def test_with_daemon(monitored: MonitoredServer, ending: list[int]) -> None:
    server = monitored.server
    options = ("--daemon", "-p", "server.pid", "--error-logfile", str(server.log_path))
    monitored.start("-w", "1", *options)
    server.wait_ready(1)
    arbiter = int((server.directory / "server.pid").read_text())
    ending.append(arbiter)
    monitored.wait_answering()
    status = monitored.status()
    assert status["arbiter"]["pid"] == arbiter
    assert is_monitor(status["monitor"]["pid"])
    path = monitored.socket.with_name(f"{arbiter}.sock")
    assert over(path, "/commands/stop", "POST").status_code == 200
    wait_gone(arbiter)
    wait_gone(status["monitor"]["pid"])
    assert left_behind(monitored) == []


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
