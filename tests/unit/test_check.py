"""`check`: what a start would refuse, what has no effect, what would clash; nothing is left behind."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from multicore_server.check.unit import StopTimeout, UnitError, stop_timeout
from multicore_server.cli.main import main
from multicore_server.machine.cpu import usable_cpus
from tests.support.addresses import free_port

ASGI = "async def app(scope, receive, send): ...\n"
WSGI = "def app(environ, start_response): ...\n"
Check = Callable[..., "Said"]


class Said(dict[str, list[str]]):
    """The findings by level, and the exit status."""

    def __init__(self, status: int, output: str) -> None:
        self.status = status
        document = json.loads(output)
        assert document["ok"] is (status == 0)
        super().__init__({level: [] for level in ("note", "warning", "error")})
        for finding in document["findings"]:
            self[finding["level"]].append(finding["text"])


MODULES = ("shop", "__config__")  # the app, and the config file as gunicorn loads it


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A directory with an app, as the current one; this process is as it was afterwards."""
    (tmp_path / "shop.py").write_text(ASGI)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["multicore-server"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MULTICORE_METRICS_BIND", "none")
    for name in ("INVOCATION_ID", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)
    for name in MODULES:  # another test may have left one behind
        monkeypatch.delitem(sys.modules, name, raising=False)
    environ = {**os.environ}
    monkeypatch.setattr("gunicorn.config.Workers.default", 1)
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)
    os.environ.clear()
    os.environ.update(environ)


@pytest.fixture
def check(project: Path) -> Check:
    """Run the command, see that it leaves nothing, and return what it says."""

    def run(*arguments: str, app: str = "shop:app") -> Said:
        before = {path for path in project.rglob("*") if "__pycache__" not in path.parts}
        result = CliRunner().invoke(main, ["check", "--json", *arguments, *filter(None, [app])])
        assert {path for path in project.rglob("*") if "__pycache__" not in path.parts} == before
        return Said(result.exit_code, result.stdout)

    return run


# --- what it says where all is well


def test_how_many_workers_and_why(check: Check) -> None:
    said = check("--port", str(port := free_port()))
    assert said.status == 0
    versions, workers, memory, addresses, app = said["note"]
    assert re.fullmatch(r"multicore_server \S+, gunicorn \S+, uvicorn \S+, Python \S+", versions)
    assert workers.startswith(f"workers: {usable_cpus()} (the default, 'max'); {usable_cpus()} usable CPU")
    assert re.fullmatch(r"memory: \d+ MiB \(.*limit.*\), \d+ MiB for each worker", memory)
    assert (addresses, app) == (f"addresses: 127.0.0.1:{port}", "app: shop:app (ASGI)")
    assert said["warning"] == said["error"] == []


def test_memory_limits_are_in_bytes(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multicore_server.machine.memory.available", lambda: 1024 * 2**20)
    said = check("--workers", "4", "--max-memory-restart", "50%", "--max-memory-kill", "300M")
    assert "max_memory_restart: 128 MiB for each worker" in said["note"]
    (warning,) = said["warning"]
    assert warning.startswith(
        "max_memory_kill: 300 MiB for each of 4 workers are more than there is (1024 MiB)"
    )


def test_as_text(project: Path) -> None:
    result = CliRunner().invoke(main, ["check", "--use-colors", "--port", str(free_port()), "shop:app"])
    assert result.exit_code == 0
    *_, warning, verdict = result.stdout.splitlines()
    assert warning == "warning: --use-colors has no effect: log lines have gunicorn's form"
    assert verdict == "it would start: 1 warning"


def test_strict(check: Check) -> None:
    assert check("--strict", "--use-colors", "--port", str(free_port())).status == 1


# --- what a start would refuse


def test_every_bad_value_is_named(check: Check, project: Path) -> None:
    (project / "conf.py").write_text("min_uptime = 'soon'\n")
    said = check("--config", "conf.py", "--log-format", "yaml", app="shop:nothing")
    assert said.status == 1
    first, second, app = said["error"]
    assert first.startswith("min_uptime: 'soon' (from the config file, ")
    assert second.startswith("log_format: 'yaml' (from run's options, --log-format) is unknown; give text or")
    assert app.startswith("shop:nothing: Failed to find attribute")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ssl-keyfile", "nowhere.pem"], "keyfile: 'nowhere.pem' does not exist or is not a file"),
        (["--max-memory-kill", "1", "--max-memory-restart", "2"], "max_memory_kill: '1' (from run's options"),
        (["--pid", "nowhere/pid"], "pidfile: 'nowhere/pid' cannot be written: there is no directory nowhere"),
        (["--error-logfile", "nowhere/log"], "errorlog: 'nowhere/log' cannot be written: there is no direct"),
        (["--access-logfile", "."], "accesslog: '.' cannot be written: it is a directory"),
        (["--fd", "99"], "cannot listen on fd://99: Bad file descriptor; is it an open socket?"),
        (["--uds", "shop.py"], "cannot listen on unix:shop.py: 'shop.py' is not a socket"),
        (["--uds", "nowhere/sock"], "cannot listen on unix:nowhere/sock: there is no directory nowhere"),
        (["--uds", "x" * 120], f"cannot listen on unix:{'x' * 120}: AF_UNIX path too long"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:8000: this machine has no such address"),
    ],
)
def test_what_a_start_would_refuse(check: Check, options: list[str], said: str) -> None:
    found = check(*options)
    assert found.status == 1
    (error,) = found["error"]
    assert error.startswith(said)


@pytest.mark.parametrize(
    ("source", "app", "error"),
    [
        ("raise ValueError('in\\nthe app')", "shop:app", "shop:app could not be loaded: ValueError: in"),
        ("import sys; sys.exit(5)", "shop:app", "shop:app ended the process (sys.exit(5)) while it was load"),
        (ASGI, "nowhere:app", "no module named 'nowhere'; check 'nowhere:app', --chdir and --pythonpath"),
        ("app = 5", "shop:app", "shop:app: Application object must be callable; check the name after the"),
        (
            "def app(a, b, c, d): ...",
            "shop:app",
            "cannot tell which interface shop.app speaks: it requires",
        ),
    ],
)
def test_an_app_that_does_not_load(check: Check, project: Path, source: str, app: str, error: str) -> None:
    (project / "shop.py").write_text(source)
    found = check("--port", str(free_port()), app=app)
    assert found.status == 1
    (said,) = found["error"]
    assert said.startswith(error)


def test_a_preloaded_app_is_no_other(check: Check, project: Path) -> None:
    (project / "shop.py").write_text("1 / 0")
    (error,) = check("--preload", "--port", str(free_port()))["error"]
    assert error == "shop:app could not be loaded: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("source", "kind"), [(WSGI, "WSGI"), ("def app(): raise SystemError", "a factory of an app")]
)
def test_which_interface(check: Check, project: Path, source: str, kind: str) -> None:
    """A factory is not called: it may do what only a server should."""
    (project / "shop.py").write_text(source)
    said = check("--port", str(free_port()), "--threads", "4")
    assert f"app: shop:app ({kind})" in said["note"]
    assert said["warning"] == []


def test_what_the_app_prints_is_no_json(check: Check, project: Path) -> None:
    (project / "shop.py").write_text(f"print('loud')\n{ASGI}")
    assert check("--port", str(free_port())).status == 0


# --- what has no effect


def test_what_has_no_effect_and_why(check: Check, project: Path) -> None:
    (project / "conf.py").write_text(
        "timeot = 3\nmin_uptime = 1000\nsendfile = True\nthreads = 4\nmax_requests_jitter = 5\n"
        "logconfig_dict = {'version': 1}\nlog_format = 'json'\nmax_lifetime_jitter = '5%'\nlog_keep = 2\n"
        "metrics_hosts = ['a.example']\n"
    )
    said = check("--config", "conf.py", "--reload-delay", "1", "--port", str(free_port()))
    assert said.status == 0
    wanted = (
        r"min_uptime: 1000 .* if these are PM2's milliseconds, give 1000ms, otherwise 1000s",
        r"timeot \(in the config file, .*\) is not a setting: did you mean timeout\?",
        r"sendfile has no effect with multicore_server.Worker: responses go through the event loop",
        r"log_format = json has no effect with logconfig_dict, which has .*logs\.JsonFormatter there",
        r"max_requests_jitter = 5 has no effect without max_requests",
        r"max_lifetime_jitter: '5%' \(from the config file, .*\) has no effect without max_lifetime",
        r"log_keep: 2 \(from the config file, .*\) has no effect without log_max_size",
        r"metrics_hosts: .* has no effect without a host and a port in metrics_bind",
        r"--reload-delay has no effect: gunicorn's reloader has no delay",
        r"threads = 4 has no effect: the app is ASGI and has its own concurrency",
    )
    assert len(said["warning"]) == len(wanted)
    for pattern, line in zip(wanted, said["warning"], strict=True):
        assert re.fullmatch(pattern, line)


# --- what would clash


def test_a_port_that_is_taken(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = ("--port", str(taken.getsockname()[1]))
        refused = check(*options)
        assert refused.status == 1
        assert "the address is in use" in refused["error"][0]
        running = check(*options, "--running")
        assert (running.status, running["warning"]) == (0, refused["error"])


def test_a_unix_socket_that_is_taken_or_stale(check: Check, project: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("shop.sock")
        listener.listen()
        (error,) = check("--uds", "shop.sock")["error"]
        assert error.startswith("cannot listen on unix:shop.sock: the address is in use")
        said = check("--port", str(free_port()), "--metrics-bind", "unix:shop.sock")
        assert (said.status, "the address is in use" in said["warning"][0]) == (0, True)
    assert check("--uds", "shop.sock").status == 0
    assert Path("shop.sock").is_socket()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_metrics_at_the_apps_own_address(check: Check, host: str) -> None:
    port = free_port()
    said = check("--host", host, "--port", str(port), "--metrics-bind", f"127.0.0.1:{port}")
    assert said["warning"] == [
        f"metrics_bind: 127.0.0.1:{port} is in use by bind ({host}:{port}); give another one"
    ]


def test_metrics_at_an_address_that_is_taken(check: Check) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = check("--port", str(free_port()), "--metrics-bind", f"127.0.0.1:{taken.getsockname()[1]}")
    assert said.status == 0  # the server would start, and try again
    assert "the address is in use" in said["warning"][0]


def test_a_pidfile_of_a_process_that_runs(check: Check, project: Path) -> None:
    options = ("--pid", "shop.pid", "--port", str(free_port()))
    (project / "shop.pid").write_text(f"{os.getpid()}\n")
    line = f"pidfile: 'shop.pid' has the pid of a process that runs ({os.getpid()})"
    assert check(*options)["error"] == [line]
    assert check(*options, "--running")["warning"] == [line]
    (project / "shop.pid").write_text("no number")
    assert check(*options).status == 0


def test_workers_of_another_user(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    (warning,) = check("--user", "1", "--port", str(free_port()))["warning"]
    assert warning.startswith("user: only root, or who has CAP_SETUID and CAP_SETGID, can run workers")


# --- systemd


def test_an_end_that_takes_longer_than_systemd_allows(check: Check, project: Path) -> None:
    (project / "shop.service").write_text("[Unit]\nTimeoutStopSec=1\n[Service]\nTimeoutStopSec = 20\n")
    options = ("--unit", "shop.service", "--port", str(free_port()))
    (warning,) = check(*options, "--shutdown-delay", "5s")["warning"]
    assert warning == (
        "graceful_timeout = 30 and shutdown_delay = 5 take up to 37 s, and systemd kills the server after "
        "20 s (TimeoutStopSec in shop.service): give TimeoutStopSec=40 or more"
    )
    assert check(*options, "--graceful-timeout", "10")["warning"] == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 90.0),
        ("TimeoutStopSec=45", 45.0),
        ("TimeoutSec=1min 30s", 90.0),
        ("TimeoutStopSec=1h2m3.5", 3723.5),
        ("TimeoutStopSec=500ms", 0.5),
        ("TimeoutStopSec=infinity", math.inf),
        ("TimeoutStopSec=5\nTimeoutStopSec=", 90.0),
        ("TimeoutStopSec=5\n[Install]\nTimeoutStopSec=6", 5.0),
    ],
)
def test_spans_of_time_in_a_unit(tmp_path: Path, text: str, seconds: float) -> None:
    path = tmp_path / "shop.service"
    path.write_text(f"[Service]\n{text}\n")
    found = stop_timeout(str(path))
    assert found is not None
    assert found.seconds == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["soon", "5 parsecs", "-5", "5,"])
def test_what_is_no_span(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shop.service"
    path.write_text(f"[Service]\nTimeoutStopSec={text}\n")
    with pytest.raises(UnitError, match="is not a time span"):
        stop_timeout(str(path))


class Systemctl:
    """What systemd would say of the services that it has, by manager."""

    def __init__(self, **services: str) -> None:
        self.services = services

    def run(self, command: list[str], **_: Any) -> Any:
        manager = "user" if "--user" in command else "system"
        said = self.services.get(manager)
        text = f"LoadState=loaded\nTimeoutStopUSec={said}\n" if said else "LoadState=not-found\n"
        return subprocess.CompletedProcess(command, 0, text)


@pytest.mark.parametrize("services", [{"system": "1min 30s"}, {"user": "90"}])
def test_a_unit_that_systemd_knows(monkeypatch: pytest.MonkeyPatch, services: dict[str, str]) -> None:
    monkeypatch.setattr("subprocess.run", Systemctl(**services).run)
    assert stop_timeout("shop.service") == StopTimeout(90.0, "TimeoutStopSec of shop.service")


def test_a_unit_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    monkeypatch.setattr("subprocess.run", Systemctl().run)
    result = CliRunner().invoke(main, ["check", "--unit", "nowhere.service", "shop:app"])
    assert result.exit_code == 2
    assert "--unit: systemd does not tell about 'nowhere.service'; give the unit's file" in result.stderr


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("0::/system.slice/shop.service", "shop.service"),
        ("0::/system.slice/shop.service/control\n", "shop.service"),
        ("1:name=x:/\n0::/user.slice/user@5.service/app.slice/shop.service\n", "shop.service"),
        ("0::/user.slice/session-1.scope", None),
    ],
)
def test_the_service_that_this_process_is_in(
    monkeypatch: pytest.MonkeyPatch, group: str, name: str | None
) -> None:
    monkeypatch.setenv("INVOCATION_ID", "4f")
    monkeypatch.setattr(Path, "read_text", lambda *_: group)
    monkeypatch.setattr("subprocess.run", Systemctl(system="5").run)
    found = stop_timeout(None)
    assert (found and found.source) == (name and f"TimeoutStopSec of {name}")
    monkeypatch.delenv("INVOCATION_ID")
    assert stop_timeout(None) is None


# --- other commands than `run`


def test_the_command_line_of_gunicorn(check: Check, project: Path) -> None:
    (project / "conf.py").write_text("timeot = 1\n")
    worker = ("-k", "multicore_server.Worker", "--chdir", str(project), "-c", str(project / "conf.py"))
    said = check("gunicorn", *worker, "-w1", "-b", f"127.0.0.1:{free_port()}")
    assert said.status == 0
    assert "workers: 1 (from the command line, -w, 1)" in said["note"]
    assert "did you mean timeout?" in said["warning"][0]
    said = check("python3", "-m", "gunicorn", *worker, "-w1", "-b", f"127.0.0.1:{free_port()}")
    assert "workers: 1 (from the command line, -w, 1)" in said["note"]
    said = check("/usr/bin/gunicorn", "-k", "sync")
    assert said["error"] == [
        "worker_class: 'sync' is not multicore_server.Worker: nothing of this package is at work"
    ]
    said = check("gunicorn", "-k", "nowhere.Worker")
    assert said["error"] == ["worker_class: 'nowhere.Worker': ModuleNotFoundError: No module named 'nowhere'"]
    said = check("gunicorn", "-k", "multicore_server.Wrker")
    assert said["error"] == ["worker_class: 'multicore_server.Wrker' is not a class"]
    assert check("gunicorn", *worker, "-b", "127.0.0.1:9x")["error"] == [
        "bind: '9x' is not a valid port number."
    ]


@pytest.mark.parametrize(
    "command",
    [
        ["uvicorn"],
        ["/usr/bin/uvicorn"],
        ["multicore-server", "run"],
        ["python", "-m", "multicore_server", "run"],
        ["/usr/bin/python3.11", "-X", "utf8", "-m", "uvicorn"],
        [],
    ],
)
def test_the_command_line_of_others(check: Check, command: list[str]) -> None:
    options = ("--loop", "multicore_server:prefork", "--workers", "3", "--port", str(free_port()))
    said = check(*command, *options)
    assert said.status == 0
    assert "workers: 3 (from run's options, --workers, '3')" in said["note"]


def test_the_app_may_be_in_the_config_file_or_nowhere(check: Check, project: Path) -> None:
    (project / "conf.py").write_text("wsgi_app = 'shop:app'\n")
    options = ("--port", str(free_port()))
    assert "app: shop:app (ASGI)" in check("--config", "conf.py", *options, app="")["note"]
    assert check(*options, app="")["warning"] == ["app: none is named, so the app is not checked"]


def test_a_config_file_that_fails(check: Check, project: Path) -> None:
    (project / "conf.py").write_text("1 / 0\n")
    said = check("--config", "conf.py")
    assert (said.status, said["error"]) == (
        1,
        ["Failed to read config file: conf.py: ZeroDivisionError: division by zero (line 1)"],
    )


@pytest.mark.parametrize(
    "wrong", [["--nowhere"], ["--port", "x"], ["shop.py"], ["python", "-m"], ["python", "shop.py"]]
)
def test_a_command_line_that_is_wrong(project: Path, wrong: list[str]) -> None:
    result = CliRunner().invoke(main, ["check", *wrong])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: main check [OPTIONS] ")
