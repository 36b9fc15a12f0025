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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import trustme

from multicore_server.settings.table import TABLE
from tests.integration.asking import (
    ASK,
    LOCAL,
    ask,
    configure,
    deploy,
    hup,
    refuses,
    usr2s_arbiter,
    wait_gone,
)
from tests.integration.conftest import HELLO, Server, gone, is_monitor, wait_for
from tests.integration.load import Load, load
from tests.integration.prometheus import command as found
from tests.integration.raw_client import Connection
from tests.integration.test_start import readable_by_all
from tests.integration.watched import (  # noqa: F401 -- make_watched is a fixture
    Watched,
    by,
    make_watched,
    parsed,
    quiet_port,
    requests,
)

MakeWatched = Callable[..., Watched]

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
SLOW_BOOT = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.02)\n" + HELLO
# For the config file, which the arbiter loads.
DIES = "import multicore_server.monitor.process as it, os\nit.run = lambda post: os._exit(7)"
WSGI = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.fixture
def watched(make_watched: MakeWatched) -> Watched:  # noqa: F811
    return make_watched(ASK)


@pytest.fixture
def configured(make_watched: MakeWatched) -> Watched:  # noqa: F811
    """Its address is in conf.py alone."""
    watched = make_watched(ASK)
    watched.server.listens_for_scrapers = True
    return watched


def start_configured(watched: Watched, **settings: object) -> None:
    configure(watched.server, workers=1, metrics_bind=f"{LOCAL}:{watched.port}", **settings)
    environment = {"XDG_RUNTIME_DIR": str(watched.runtime)}
    watched.server.start("-c", "conf.py", env=environment, ready=1)
    watched.wait_answering()


def over(path: Path, url: str, method: str = "GET") -> httpx.Response:
    """One request over a unix socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost", trust_env=False) as client:
        return client.request(method, url, headers={"connection": "close"})


def ends_within(server: Server, seconds: float) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait_exit(seconds) == 0


def left_behind(watched: Watched) -> list[str]:
    """Files of sockets, beside the server's directory."""
    return [str(path) for path in watched.runtime.rglob("*") if not path.is_dir()]


# --- what it shows


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["", "preload"])
def test_what_there_is_to_ask(watched: Watched, options: tuple[str, ...]) -> None:
    watched.start("-w", "2", *options, ready=2)
    assert [watched.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200] * 3
    status = watched.status()
    assert status["arbiter"]["pid"] == watched.server.pid
    assert status["monitor"]["pid"] == watched.server.monitor()
    assert status["addresses"] == [f"http://{LOCAL}:{watched.server.port}"]
    assert (status["name"], status["configured"], status["ready"]) == ("app:app", 2, 2)
    assert (status["stopping"], status["reloading"]) == (False, False)
    assert status["settings"].keys() == TABLE.keys()
    assert status["settings"]["workers"] == "2"
    assert [event["kind"] for event in status["events"]] == ["started"] * 2 + ["ready"] * 2
    assert [worker["instance"] for worker in status["workers"]] == [0, 1]
    assert {worker["pid"] for worker in status["workers"]} == set(watched.server.workers())
    for worker in status["workers"]:
        assert worker.keys() >= {
            "generation", "state", "since", "uptime", "restarts", "unstable", "next_restart", "memory",
            "cpu_seconds", "connections", "in_hand", "requests", "loop_lag", "processes",
        }  # fmt: skip
        assert (worker["state"], worker["generation"], worker["unstable"]) == ("ready", 1, 0)
        assert status["arbiter"]["started"] - 1 < worker["started"] <= worker["since"] <= status["time"]


def test_after_a_crash_status_says_what_comes_next(watched: Watched) -> None:
    watched.start("-w", "1", env={"MULTICORE_RESTART_DELAY": "60s"}, ready=1)
    os.kill(watched.server.worker_of(0), signal.SIGKILL)
    wait_for(lambda: watched.workers()[0]["state"] == "backoff", "backoff")
    worker = watched.workers()[0]
    assert worker["restarts"] == {"signal": 1}
    assert 50 < worker["next_restart"] - worker["since"] < 61
    assert worker["pid"] is None
    answer = watched.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "no worker is ready\n")
    assert watched.get("/healthz").status_code == 200
    assert by(watched.metrics(), "multicore_workers")["backoff"] == 1


def test_no_secret_is_shown(watched: Watched) -> None:
    """Neither of the environment nor of the command line, wherever one asks."""
    secrets = ("SESAME-ENV", "SESAME-ARGV", "SESAME-CONF")
    watched.server.write("conf.py", "raw_env = ['TOKEN=SESAME-CONF']")
    options = ("-c", "conf.py", "--env", "DATABASE=postgres://me:SESAME-ARGV@db/")
    watched.start("-w", "1", *options, env={"PASSWORD": "SESAME-ENV"}, ready=1)
    deploy(watched.server, 2, "import nowhere")
    hup(watched.server, "reload rolled back")
    assert ask(watched.server, "os.environ['PASSWORD']") == "SESAME-ENV"
    paths = ("/", "/metrics", "/status", "/healthz", "/readyz", "/nowhere")
    shown = "".join(watched.get(path).text + over(watched.socket, path).text for path in paths)
    assert "reload rolled back" in shown
    assert [secret for secret in secrets if secret in shown] == []


def test_status_of_an_app_that_says_what_is_no_unicode(watched: Watched) -> None:
    watched.start("-w", "1", ready=1)
    watched.server.write("app.py", "raise RuntimeError('\\udcff \\U0001f600')")
    hup(watched.server, "reload rolled back")
    assert "? \U0001f600" in watched.status()["events"][-1]["text"]


def test_every_metric_of_the_docs_and_no_other(watched: Watched) -> None:
    watched.start("-w", "1", env={"MULTICORE_MAX_MEMORY_RESTART": "1G"}, ready=1)
    assert ask(watched.server, "1") == 1
    names = [f"multicore_worker_{it}_memory_bytes" for it in ("unique", "resident")]
    wait_for(lambda: all(by(watched.metrics(), name) for name in names), "measured memory")
    text = watched.get("/metrics").text
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


def test_readiness_while_it_starts_and_stops(make_watched: MakeWatched) -> None:  # noqa: F811
    watched = make_watched(SLOW_BOOT).start("-w", "1", env={"MULTICORE_SHUTDOWN_DELAY": "1s"})
    watched.wait_answering()
    answer = watched.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "no worker is ready\n")
    (watched.server.directory / "go").touch()
    watched.server.wait_ready(1)
    wait_for(lambda: watched.answers("/readyz"), "ready")

    watched.server.signal(signal.SIGTERM)
    wait_for(lambda: not watched.answers("/readyz"), "no longer ready", 0.9)
    assert watched.get("/readyz").text == "the server is stopping\n"
    assert watched.status()["stopping"] is True
    assert watched.get("/healthz").status_code == watched.server.get().status_code == 200
    assert watched.server.wait_exit() == 0


# --- its address


def test_a_taken_address_is_waited_for(watched: Watched) -> None:
    with socket.create_server((LOCAL, watched.port)):
        watched.start("-w", "1")
        watched.server.wait_ready(1)
        wait_for(lambda: over(watched.socket, "/healthz").status_code == 200, "the command socket")
        assert ask(watched.server, "1 + 1") == 2
        line = watched.server.wait_logged("metrics_bind: cannot listen")[0]
        assert f"{LOCAL}:{watched.port}: the address is in use" in line
        before = watched.server.monitor()
    wait_for(lambda: watched.answers("/healthz"), "the address taken over", 3)
    assert watched.status()["monitor"]["pid"] != before
    assert requests(watched.metrics()) == {"GET 2xx": 1}
    assert len(watched.server.logged("metrics_bind: cannot listen")) == 1
    assert watched.server.logged(f"metrics_bind: listening on {LOCAL}:{watched.port} now")


def test_hup_moves_it(configured: Watched) -> None:
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


def over_command(watched: Watched) -> int:
    try:
        return over(watched.socket, "/healthz").status_code
    except httpx.TransportError:
        return 0


def test_a_unix_socket_goes_with_the_server(configured: Watched) -> None:
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


def test_hup_to_an_address_that_is_taken(configured: Watched) -> None:
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


def test_a_rolled_back_reload_leaves_it_where_it_was(configured: Watched) -> None:
    start_configured(configured)
    before = configured.server.monitor()
    configure(configured.server, workers=1, metrics_bind=f"{LOCAL}:{quiet_port()}")
    deploy(configured.server, 2, "import nowhere")
    hup(configured.server, "reload rolled back")
    assert configured.answers("/readyz")
    assert configured.server.monitor() == before


# --- what befalls it


def test_a_killed_monitor_comes_back(watched: Watched) -> None:
    watched.start("-w", "2", ready=2)
    with load(watched.server) as answered:
        for count in (1, 2):
            before = watched.server.monitor()
            os.kill(before, signal.SIGKILL)
            watched.server.wait_logged(rf"monitor pid={before} has ended \(status -9\); starting it again in")
            wait_for(lambda: watched.answers("/readyz"), "the monitor's return")
            assert watched.status()["monitor"]["pid"] != before, count
    delays = re.findall(r"starting it again in (\d\.\d)", watched.server.log)
    assert len(delays) == 2
    watched.wait_counted({"GET 2xx": sum(answered.answers.values())})
    assert not watched.server.logged("ERROR|exited|unstable")


def test_a_monitor_that_cannot_live_is_tried_ever_more_slowly(watched: Watched) -> None:
    """Nothing of the server waits for it, and the log is not flooded."""
    watched.server.write("conf.py", DIES)
    watched.start("-w", "1", "-c", "conf.py")
    watched.server.wait_ready(1)
    lines = watched.server.wait_logged(r"monitor pid=\d+ has ended \(status 7\)", 4)
    delays = [float(re.findall(r"again in ([\d.]+) s", line)[0]) for line in lines]
    assert delays == sorted(delays)
    assert delays[0] == 0 < delays[-1]
    assert ask(watched.server, "1 + 1") == 2
    ends_within(watched.server, 5)
    assert left_behind(watched) == []


def test_a_stopped_monitor_stops_nobody_else(watched: Watched) -> None:
    watched.start("-w", "2", ready=2)
    monitor = watched.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    with load(watched.server, "version") as requests_:
        deploy(watched.server, 2)
        hup(watched.server)
        requests_.wait_for(2)
    ends_within(watched.server, 5)
    assert gone(monitor)
    assert left_behind(watched) == []


def test_a_silent_monitor_is_replaced(watched: Watched) -> None:
    watched.server.write("conf.py", "import multicore_server.arbiter.monitor_process as it\nit.SILENCE = 2.0")
    watched.start("-w", "1", "-c", "conf.py", ready=1)
    monitor = watched.server.monitor()
    os.kill(monitor, signal.SIGSTOP)
    watched.server.wait_logged(rf"monitor pid={monitor} has hung for [23] s; killing it")
    wait_for(lambda: watched.answers("/readyz"), "another monitor")
    assert watched.status()["monitor"]["pid"] != monitor


def test_a_monitor_that_was_told_to_end_while_it_was_stopped(configured: Watched) -> None:
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
    make_watched: MakeWatched,  # noqa: F811
) -> None:
    watched, heir = make_watched(ASK).start("-w", "1", ready=1), make_watched(ASK)
    monitor, socket_path = watched.server.monitor(), watched.socket
    watched.server.signal(signal.SIGKILL)
    watched.server.wait_exit()
    wait_gone(monitor)
    assert refuses(watched.port)
    assert socket_path.exists()
    heir.start("-w", "1", env={"XDG_RUNTIME_DIR": str(watched.runtime)}, ready=1)
    assert [path.name for path in socket_path.parent.iterdir()] == [f"{heir.server.pid}.sock"]


def test_without_descriptors_the_server_lives(watched: Watched) -> None:
    watched.start("-w", "1", env={"MULTICORE_MAX_MEMORY_RESTART": "80%"}, ready=1)
    psutil.Process(watched.server.pid).rlimit(psutil.RLIMIT_NOFILE, (5, 5))
    before = watched.metrics()["process_cpu_seconds_total"]
    os.kill(watched.server.monitor(), signal.SIGKILL)
    watched.server.wait_logged("the monitor could not be forked .*Too many open files")
    os.kill(watched.server.pid, signal.SIGHUP)
    watched.server.wait_logged("reload (failed|rolled back)")
    assert before > 0
    assert ask(watched.server, "1 + 1") == 2
    ends_within(watched.server, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_nothing_is_left(watched: Watched, number: signal.Signals) -> None:
    watched.start("-w", "2", ready=2)
    family = watched.server.children()
    assert len(family) == 3
    assert len(left_behind(watched)) == 1
    watched.server.signal(number)
    assert watched.server.wait_exit(5) == 0
    assert [pid for pid in family if not gone(pid)] == []
    assert left_behind(watched) == []
    assert refuses(watched.port)


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
    make_watched: MakeWatched, app: str, settings: dict[str, str], status: int  # noqa: F811
) -> None:  # fmt: skip
    watched = make_watched(app)
    watched.start("-w", "2", env=settings)
    assert watched.server.wait_exit() == status
    assert left_behind(watched) == []
    assert refuses(watched.port)
    assert not watched.server.logged("Traceback.*monitor")


def test_ctrl_c_does_not_end_it_before_the_server(watched: Watched) -> None:
    """It is not in the group that a terminal's signals go to."""
    watched.start("-w", "1", ready=1)
    monitor = watched.server.monitor()
    assert os.getpgid(monitor) == monitor
    assert os.getpgid(watched.server.worker_of(0)) == os.getpgid(watched.server.pid)
    os.kill(monitor, signal.SIGHUP)
    assert watched.answers("/readyz")


# --- USR2


def test_usr2s_monitor_takes_over(watched: Watched, ending: list[int]) -> None:
    watched.start("-w", "1", ready=1)
    assert ask(watched.server, "1") == 1
    watched.server.signal(signal.SIGUSR2)
    new = usr2s_arbiter(watched.server)
    ending.append(new)
    watched.server.wait_ready(2)
    new_socket = watched.socket.with_name(f"{new}.sock")
    wait_for(lambda: new_socket.exists() and over(new_socket, "/readyz").status_code == 200, "its monitor")
    assert watched.status()["arbiter"]["pid"] == watched.server.pid
    assert watched.status()["workers"][0]["requests"]["total"] == 1
    ends_within(watched.server, 10)
    wait_for(lambda: watched.answers("/readyz"), "the address taken over", 3)
    assert watched.status()["arbiter"]["pid"] == new
    assert left_behind(watched) == [str(new_socket)]
    assert not watched.server.logged("metrics_bind: cannot listen")
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert left_behind(watched) == []


def test_usr2s_arbiter_says_so_where_its_address_is_still_taken_after_the_old_one(
    configured: Watched, ending: list[int]
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


def check_path(watched: Watched, path: str = "/metrics", client: Any = None) -> str:
    """That the app's port answers as the monitor does; its text."""
    served = watched.server
    answer = client(path) if client else served.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == watched.get("/metrics").headers["content-type"]
    assert families(answer.text) == families(watched.get("/metrics").text)
    return str(answer.text)


PATH = {"MULTICORE_METRICS_PATH": "/metrics"}


@pytest.mark.parametrize("app", [HELLO, WSGI], ids=["asgi", "wsgi"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_metrics_on_the_apps_port(make_watched: MakeWatched, app: str, loop: str) -> None:  # noqa: F811
    watched = make_watched(app).start("-w", "2", env={**PATH, "UVICORN_LOOP": loop}, ready=2)
    assert watched.server.get("/").status_code == 200
    assert requests(parsed(check_path(watched))) == {"GET 2xx": 1}
    assert httpx.head(f"{watched.server.url}/metrics").headers["content-length"]
    openmetrics = watched.server.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert openmetrics.text.endswith("# EOF\n")
    watched.wait_idle()

    os.kill(watched.server.monitor(), signal.SIGKILL)
    answers = wait_for(lambda: while_away(watched.server), "the monitor's return")
    assert set(answers) <= {200, 503}
    assert watched.server.get("/").status_code == 200


def while_away(server: Server) -> list[int]:
    answer = server.get("/metrics")
    if answer.status_code == 503:
        assert answer.text.count("\n") == 1
        assert "the monitor does not answer" in answer.text
        return []
    return [answer.status_code]


def test_metrics_on_the_apps_port_while_there_is_no_monitor(watched: Watched) -> None:
    watched.server.write(
        "conf.py", f"{DIES}\nimport multicore_server.worker.metrics_path as it\nit.PATIENCE = 0.5"
    )
    watched.start("-w", "1", "-c", "conf.py", env={**PATH, "MULTICORE_METRICS_BIND": "none"})
    watched.server.wait_ready(1)
    watched.server.wait_logged(r"monitor pid=\d+ has ended")
    # The arbiter holds the address: the question waits in its backlog until somebody answers or time is up.
    answer = watched.server.get("/metrics")
    assert (answer.status_code, answer.text.count("\n")) == (503, 1)
    assert ask(watched.server, "1 + 1") == 2


def test_metrics_below_a_root_path(watched: Watched) -> None:
    watched.start("-w", "1", env={**PATH, "UVICORN_ROOT_PATH": "/below"}, ready=1)
    # A proxy has taken the prefix off, as uvicorn's root_path has it.
    check_path(watched)


def test_metrics_over_tls(watched: Watched, ca: trustme.CA, trusting: ssl.SSLContext) -> None:
    tls = ("--certfile", "../cert.pem", "--keyfile", "../key.pem")
    watched.start("-w", "1", *tls, env=PATH, ready=1)

    def get(path: str) -> httpx.Response:
        return httpx.get(f"https://localhost:{watched.server.port}{path}", verify=trusting)

    check_path(watched, client=get)


# --- commands


def test_the_command_socket_is_the_owners(watched: Watched) -> None:
    watched.start("-w", "1", ready=1)
    assert stat.S_IMODE(watched.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(watched.socket.parent.stat().st_mode) == 0o700
    for name in ("reload", "restart", "scale", "stop", "reset"):
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"http://{LOCAL}:{watched.port}/commands/{name}")
        assert answer.status_code in (404, 405), name
    assert over(watched.socket, "/commands/reload").status_code == 405
    assert watched.command("nonsense").status_code == 404
    assert watched.answers("/readyz")


def test_where_the_command_socket_would_not_be_safe_there_is_none(watched: Watched) -> None:
    directory = watched.runtime / "multicore-server"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    watched.start("-w", "1", ready=1)
    (line,) = watched.server.logged("ERROR")
    assert "is open to others (mode 0777, not 0700)" in line
    assert line.endswith("going on without commands")
    assert watched.answers("/readyz")
    assert ask(watched.server, "1 + 1") == 2
    ends_within(watched.server, 5)
    assert left_behind(watched) == []


def test_commands_do_what_they_say(watched: Watched) -> None:
    server = watched.start("-w", "2", ready=2).server
    before = set(server.workers())

    def said(name: str, **arguments: Any) -> tuple[int, str]:
        answer = watched.command(name, **arguments)
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
    wait_for(lambda: watched.status()["ready"] == 3, "three workers")
    assert said("scale", workers=1) == (200, "scaling from 3 to 1")
    wait_for(lambda: watched.workers().keys() == {0}, "one worker")
    assert said("scale", workers="-1") == (409, "0 workers: from 1 to 64 can be run without a restart")
    assert said("scale", workers=65)[0] == 409
    assert said("scale", workers="many")[0] == 400
    restarts = by(watched.metrics(), "multicore_worker_restarts_total")
    assert {reason: value for reason, value in restarts.items() if value} == {"reload": 2, "manual": 3}

    assert said("stop", graceful="perhaps")[0] == 400
    assert said("stop") == (200, "stopping")
    assert server.wait_exit() == 0
    assert left_behind(watched) == []


def test_reset_revives_what_is_errored(watched: Watched) -> None:
    env = {"MULTICORE_MAX_RESTARTS": "0", "MULTICORE_MIN_UPTIME": "10m"}
    watched.start("-w", "2", env=env, ready=2)
    os.kill(watched.server.worker_of(1), signal.SIGKILL)
    wait_for(lambda: watched.workers()[1]["state"] == "errored", "an errored worker")
    assert watched.workers()[1]["unstable"] == 1
    assert by(watched.metrics(), "multicore_workers") == {
        "starting": 0, "ready": 1, "draining": 0, "backoff": 0, "stopped": 0, "errored": 1,
    }  # fmt: skip
    assert watched.command("reset").status_code == 200
    wait_for(lambda: watched.workers()[1]["state"] == "ready", "a revived worker")
    assert watched.workers()[1]["unstable"] == 0


def test_while_it_stops_only_stop_is_accepted(watched: Watched) -> None:
    watched.start("-w", "1", ready=1, env={"MULTICORE_SHUTDOWN_DELAY": "60s"})
    assert watched.command("stop").json() == {"ok": True, "text": "stopping"}
    commands: dict[str, Any] = {"reload": {}, "restart": {}, "scale": {"workers": 2}, "reset": {}}
    for name, arguments in commands.items():
        answer = watched.command(name, **arguments)
        assert (answer.status_code, answer.json()["text"]) == (409, "the server is stopping"), name
    assert watched.command("stop", graceful=False).status_code == 200
    assert watched.server.wait_exit(5) == 0


def test_events_of_a_reload_are_followed(watched: Watched) -> None:
    watched.start("-w", "1", ready=1)
    transport = httpx.HTTPTransport(uds=str(watched.socket))
    with (
        httpx.Client(transport=transport, trust_env=False, timeout=20) as client,
        client.stream("GET", "http://localhost/events?last=1") as stream,
    ):
        lines = stream.iter_lines()
        assert next_event(lines)["kind"] == "ready"
        watched.command("reload")
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
def test_it_drops_privileges_with_the_workers(watched: Watched, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    # As in test_user_and_group: where nobody may not read Python itself.
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    command = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    watched.start("-w", "1", "-u", "nobody", "-g", "nogroup", command=command, ready=1)
    monitor = psutil.Process(watched.server.monitor())
    assert set(monitor.uids()) == {65534}
    assert set(monitor.gids()) == {65534}
    assert (watched.socket.stat().st_uid, stat.S_IMODE(watched.socket.stat().st_mode)) == (0, 0o600)
    assert watched.command("scale", workers=2).status_code == 200
    wait_for(lambda: watched.status()["ready"] == 2, "two workers")
    os.kill(watched.server.monitor(), signal.SIGKILL)
    wait_for(lambda: watched.answers("/readyz"), "the monitor's return")
    assert set(psutil.Process(watched.server.monitor()).uids()) == {65534}
    ends_within(watched.server, 10)
    assert left_behind(watched) == []


def test_with_daemon(watched: Watched, ending: list[int]) -> None:
    server = watched.server
    options = ("--daemon", "-p", "server.pid", "--error-logfile", str(server.log_path))
    watched.start("-w", "1", *options)
    server.wait_ready(1)
    arbiter = int((server.directory / "server.pid").read_text())
    ending.append(arbiter)
    watched.wait_answering()
    status = watched.status()
    assert status["arbiter"]["pid"] == arbiter
    assert is_monitor(status["monitor"]["pid"])
    path = watched.socket.with_name(f"{arbiter}.sock")
    assert over(path, "/commands/stop", "POST").status_code == 200
    wait_gone(arbiter)
    wait_gone(status["monitor"]["pid"])
    assert left_behind(watched) == []


def test_requests_of_a_load_are_all_counted(watched: Watched) -> None:
    watched.start("-w", "2", ready=2)
    with Load((LOCAL, watched.server.port)) as sent:
        wait_for(lambda: sum(sent.answers.values()) > 200, "some load")
        for _ in range(3):
            assert watched.get("/metrics").status_code == 200
    watched.wait_counted({"GET 2xx": sum(sent.answers.values())})


def test_slow_scrapers_are_nobodys_problem(watched: Watched) -> None:
    watched.start("-w", "1", ready=1)
    slow = [Connection(watched.port) for _ in range(80)]
    for connection in slow:
        with contextlib.suppress(ConnectionError):  # one too many
            connection.send(b"GET /metrics HTTP/1.1\r\n")
    with load(watched.server) as answered:
        wait_for(lambda: sum(answered.answers.values()) > 50, "answers of the app")
        assert over(watched.socket, "/readyz").status_code == 200
    for connection in slow:
        connection.close()
    wait_for(lambda: watched.answers("/readyz"), "an answer for others")
