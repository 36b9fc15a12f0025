"""`start` and `startup`: which apps are meant, what is said of each, the units."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from click.testing import CliRunner, Result

from multicore_server.cli import start, startup
from multicore_server.cli.main import main
from multicore_server.cli.servers import RunningServer, Trouble
from multicore_server.cli.units import Service
from multicore_server.ipc.report import Status
from tests.support.reports import status, worker
from tests.unit.scripted_server import ScriptedServer

INTERPRETER = """#!/bin/sh
echo "$@" >> called
cat said >&2
[ ! -e logs ] || cat logs >> state/multicore/shop.log
exit $(cat status)
"""


class Machine:
    """A directory with an app, whose interpreter says and returns what the test wants."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.servers: list[RunningServer] = []
        self.will(0, "")
        python = directory / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(INTERPRETER)
        python.chmod(0o755)
        monkeypatch.chdir(directory)
        monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "config"))
        monkeypatch.delenv("SUDO_USER", raising=False)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
        for module in (start, startup):
            monkeypatch.setattr(module, "running", lambda: self.servers)

    def will(self, code: int, said: str) -> None:
        (self.directory / "status").write_text(str(code))
        (self.directory / "said").write_text(said)

    def write(self, *tables: str, last: str = "") -> None:
        """``last`` stands in the last of the tables."""
        text = "\n".join(f'[{table}]\napp = "{table}:app"\npython = "venv"\nport = 1' for table in tables)
        (self.directory / "multicore.toml").write_text(f"{text}\n{last}")

    def runs(self, name: str, **changes: Any) -> None:
        there: Status = {**status(worker(0)), "name": name, **changes}  # type: ignore[typeddict-item]
        self.servers.append(ScriptedServer(there))

    def called(self) -> list[str]:
        path = self.directory / "called"
        return sorted(path.read_text().splitlines()) if path.exists() else []

    def run(self, *arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == code, done.output
        return done


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def log_options(machine: Machine, name: str) -> str:
    log = machine.directory / f"state/multicore/{name}.log"
    return f"--error-logfile {log} --capture-output --log-max-size 10M --log-keep 5 --daemon"


# --- which apps


def test_all_apps_of_the_file_here(machine: Machine) -> None:
    machine.write("shop", "blog")
    machine.run("start")
    assert machine.called() == [
        f"-m multicore_server run {name}:app --name {name} --port 1 {log_options(machine, name)}"
        for name in ("blog", "shop")
    ]
    assert (machine.directory / "state/multicore").stat().st_mode & 0o777 in (0o700, 0o755)


@pytest.mark.parametrize(
    "arguments", [["blog"], ["multicore.toml", "blog"], ["{here}/multicore.toml", "blog"]]
)
def test_some_of_them(machine: Machine, arguments: list[str]) -> None:
    machine.write("shop", "blog")
    machine.run("start", *(it.format(here=machine.directory) for it in arguments))
    assert [line.split()[3] for line in machine.called()] == ["blog:app"]


def test_a_file_elsewhere_is_read_from_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("shop")
    (machine.directory / "elsewhere").mkdir()
    monkeypatch.chdir(machine.directory / "elsewhere")
    machine.run("start", "../multicore.toml")
    assert len(machine.called()) == 1, "it has run in the directory of the file"


def test_a_directory_that_is_a_link_stays_one(machine: Machine) -> None:
    """A reload goes to where it leads by then: to the next release."""
    (machine.directory / "1").mkdir()
    (machine.directory / "current").symlink_to("1")
    python = machine.directory / "venv/bin/python"
    python.write_text("#!/bin/sh\nenv > environment\n")
    (machine.directory / "multicore.toml").write_text(
        f"[shop]\napp = 'a:b'\ncwd = 'current'\npython = '{python}'\nenv = {{ A = 'b' }}"
    )
    machine.run("start")
    environment = (machine.directory / "1/environment").read_text().splitlines()
    assert f"PWD={machine.directory}/current" in environment
    assert "A=b" in environment
    assert f"Environment=PWD={machine.directory}/current\n" in machine.run("startup").stdout


def test_an_app_without_a_file(machine: Machine) -> None:
    (app,) = start.apps_of(["main:app", "--port", "8001", "-w", "2"])
    assert (app.name, app.app, app.options) == ("main:app", "main:app", ("--port", "8001", "-w", "2"))
    assert app.cwd == machine.directory
    assert app.log is not None
    assert app.log.file.name == "main:app.log"
    (factory,) = start.apps_of(["main:make('secret')"])
    assert factory.log is not None
    assert factory.log.file.name == "main:make.log"
    (named,) = start.apps_of(["main:app", "--name", "a/b"])
    assert (named.name, named.command(logs=False)[-2:]) == ("a/b", ["--name", "a/b"])
    assert named.command().count("--name") == 1
    assert start.apps_of(["main:app", "--error-logfile", "x"])[0].log is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            [],
            "there is no multicore.toml here, and no [tool.multicore_server] in pyproject.toml; write",
        ),
        (["app.py"], "'app.py' is a file; give the module and the app in it: app:app"),
        (["ecosystem.config.js"], "ecosystem.config.js is PM2's; write multicore.toml"),
        (["process.json", "--only", "x"], "process.json is PM2's; write multicore.toml"),
        (["none.toml"], "none.toml cannot be read: No such file or directory"),
        (["shop"], "'shop' is no app such as main:app, and there is no multicore.toml here"),
    ],
)
def test_what_cannot_be_started(machine: Machine, arguments: list[str], said: str) -> None:
    assert f"multicore-server: {said}" in machine.run("start", *arguments, code=2).stderr


def test_a_server_that_has_run_is_forgotten(machine: Machine) -> None:
    log = machine.directory / "state/multicore/shop.log"
    log.parent.mkdir(parents=True)
    log.touch()
    said = machine.run("start", "shop", code=2).stderr
    assert said.startswith("multicore-server: 'shop' is not running, and a stopped server is forgotten: ")
    assert said.endswith("; give the app again: start main:app --name shop\n")


def test_options_stand_in_the_file(machine: Machine) -> None:
    machine.write("shop")
    said = machine.run("start", "shop", "--port", "1", code=2).stderr
    assert "--port: the options of the apps in" in said
    only = machine.run("start", "multicore.toml", "--only", "shop", code=2).stderr
    assert "--only is PM2's; here `start shop` starts a table of multicore.toml" in only
    assert "has no app 'blog'; there are shop" in machine.run("start", "blog", code=2).stderr
    assert "No such option '--prot'" in machine.run("start", "a:b", "--prot", "1", code=2).stderr
    assert machine.called() == []


# --- what is said of each


def test_ready(machine: Machine) -> None:
    machine.write("shop")
    log = machine.directory / "state/multicore/shop.log"
    assert machine.run("start").stdout == f"shop: ready, log {log}\n"


def test_the_warnings_of_a_start_are_shown(machine: Machine) -> None:
    machine.write("shop")
    log = machine.directory / "state/multicore/shop.log"
    log.parent.mkdir(parents=True)
    log.write_text("[2026] [1] [WARNING] of another start\n")
    (machine.directory / "logs").write_text(
        "[2026] [2] [INFO] ready\n[2026] [2] [WARNING] 9464 is \x1b[2Jtaken\nWARNING of the app\n"
        '{"level": "ERROR", "message": "in JSON"}\n{"level": "INFO", "message": "ready"}\n{"level\n'
    )
    done = machine.run("start")
    assert done.stdout == f"shop: ready, log {log}\n"
    assert done.stderr == "shop: warning: 9464 is \\x1b[2Jtaken\nshop: warning: in JSON\n"


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (3, "x\nTraceback\n\nReason: no module\n\n", "no module; `logs shop` shows more"),
        (2, "Usage: x\n\nError: Invalid value for '--port': 'a'.\n", "Invalid value for '--port': 'a'."),
        (1, "max_restarts: 'x' is not a whole number\n", "max_restarts: 'x' is not a whole number"),
        (1, "sh: No module \x1b[2Jnamed x\n", "sh: No module \\x1b[2Jnamed x"),
        (-9, "", "it has said nothing"),
    ],
)  # fmt: skip
def test_not_ready(machine: Machine, code: int, said: str, reason: str) -> None:
    machine.write("shop")
    machine.will(code % 256, said)
    done = machine.run("start", code=1)
    assert (done.stdout, done.stderr) == ("", f"shop: not started: {reason}\n")


def test_what_cannot_be_run_at_all(machine: Machine) -> None:
    machine.write("shop", "blog")
    (machine.directory / "state").write_text("a file where a directory is to be")
    assert machine.run("start", code=1).stderr.count("not started: ") == 2


def test_a_log_elsewhere_is_found_by_the_name_of_its_server(machine: Machine) -> None:
    machine.write("shop", "blog", last='log = "out/blog.log"')
    machine.run("start")
    state = machine.directory / "state/multicore"
    assert not (state / "shop.log").exists()
    assert (state / "blog.log").readlink() == machine.directory / "out/blog.log"
    machine.write("shop", last='log = "out/shop.log"')
    (state / "shop.log").touch()
    machine.run("start")
    assert not (state / "shop.log").is_symlink(), "what it has written there stays"
    (machine.directory / "out/blog.log").write_text("said\n")
    assert machine.run("logs", "blog").stdout == "said\n"


def test_a_server_that_runs_is_not_started_again(machine: Machine) -> None:
    machine.write("shop", "blog")
    machine.runs("shop")
    pid = machine.servers[0].status()["arbiter"]["pid"]
    text = machine.run("start").stdout
    assert f"shop: runs already (pid {pid}); `reload shop` loads new code\n" in text
    assert [line.split()[3] for line in machine.called()] == ["blog:app"]


def test_a_server_that_is_stopping_is_waited_for_by_nobody(machine: Machine) -> None:
    machine.write("shop")
    machine.runs("shop", stopping=True)
    assert "shop: is stopping (pid " in machine.run("start", code=1).stderr
    assert machine.called() == []


def test_the_arguments_of_a_factory_are_not_in_the_name_of_a_server(machine: Machine) -> None:
    machine.runs("main:make")
    assert "main:make('x'): runs already" in machine.run("start", "main:make('x')").stdout


# --- units


@pytest.mark.parametrize(
    ("name", "unit"),
    [("shop", "multicore-shop"), ("main:app", "multicore-main:app"), ("a/b @c", "multicore-a_b__c")],
)  # fmt: skip
def test_the_name_of_a_unit(name: str, unit: str) -> None:
    assert Service(name, ["x"], Path("/"), 30).unit == f"{unit}.service"


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--port=80", "--port=80"),
        ("a b", '"a b"'),
        ("50%", "50%%"),
        ("$HOME", '"$$HOME"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("a\nb\tc", '"a\\x0ab\\x09c"'),
        ("", '""'),
        ("'", '"\'"'),
        ("ü", '"ü"'),
    ],
)
def test_words_of_a_unit(word: str, written: str) -> None:
    text = Service("x", ["/bin/echo", word], Path("/"), 30).text(system=True)
    assert f"ExecStart=/bin/echo {written}\n" in text


def test_a_unit() -> None:
    env = {"A": "b $C %d", "E": "f"}
    service = Service("shop", ["/v/python", "x"], Path("/srv/50% off"), 42.5, env, "www")
    lines = service.text(system=True).splitlines()
    for line in (
        "Type=notify", "User=www", "WorkingDirectory=/srv/50%% off", 'Environment="A=b $C %%d"',
        "Environment=E=f", "ExecReload=/v/python -m multicore_server reload $MAINPID", "KillMode=mixed",
        "TimeoutStopSec=57.5", "WantedBy=multi-user.target", "After=network-online.target",
        "WatchdogSec=30", "Restart=on-failure",
    ):  # fmt: skip
        assert line in lines
    own = service.text(system=False)
    assert "\nWatchdogSec=30\n" in own
    assert "WantedBy=default.target" in own
    assert "network" not in own


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
@pytest.mark.parametrize("scope", ["--system", "--user"])
def test_systemd_finds_no_fault_with_it(tmp_path: Path, scope: str) -> None:
    service = Service("sh op", [sys.executable, "-c", "print('50% \"$HOME\"')"], tmp_path, 30, {"A": "b c"})
    path = tmp_path / service.unit
    path.write_text(service.text(system=scope == "--system"))
    done = subprocess.run(
        ["systemd-analyze", "verify", scope, str(path)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
    )  # fmt: skip
    # Others of the machine's units may have faults.
    assert (done.returncode, [line for line in done.stderr.splitlines() if "multicore" in line]) == (0, [])


# --- startup


def test_units_of_the_file(machine: Machine) -> None:
    machine.write("shop", "blog", last='log = "out/blog.log"\ngraceful_timeout = "50s"\nshutdown_delay = 5\n')
    text = machine.run("startup").stdout
    python = machine.directory / "venv/bin/python"
    assert f"# {machine.directory}/config/systemd/user/multicore-shop.service\n[Unit]\n" in text
    assert f"ExecStart={python} -m multicore_server run shop:app --name shop --port 1\n" in text, (
        "to the journal"
    )
    assert f"--error-logfile {machine.directory}/out/blog.log --capture-output" in text
    assert "\nTimeoutStopSec=45\n" in text
    assert "\nTimeoutStopSec=70\n" in text
    assert text.count("[Install]") == 2
    assert "User=" not in text
    assert machine.run("startup", "shop").stdout.count("[Install]") == 1
    assert not (machine.directory / "config").exists()
    assert not (machine.directory / "out").exists()


def test_paths_in_a_table_are_relative_to_its_directory(machine: Machine) -> None:
    (machine.directory / "app").mkdir()
    (machine.directory / "app/.env").write_text("A=b\n")
    table = "[shop]\napp = 'shop:app'\ncwd = 'app'\npython = '../venv'\n"
    (machine.directory / "multicore.toml").write_text(f"{table}env_file = '.env'\n")
    assert "run shop:app --name shop --env-file .env\n" in machine.run("startup").stdout
    (machine.directory / "multicore.toml").write_text(f"{table}env_file = 'none.env'\n")
    said = machine.run("startup", code=2).stderr
    assert said == "multicore-server: shop: Invalid value for '--env-file': Path 'none.env' does not exist.\n"
    assert Path.cwd() == machine.directory


def test_a_user_without_a_name_and_a_home(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, say."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    machine.write("shop")
    for verb in ("start", "startup"):
        assert "this user has no home directory; set HOME" in machine.run(verb, code=2).stderr
    assert startup._login() == "4711"


def test_units_of_the_system_are_of_a_user(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("shop")
    monkeypatch.setenv("SUDO_USER", "jane")
    text = machine.run("startup", "--system").stdout
    assert "# /etc/systemd/system/multicore-shop.service\n" in text
    assert "\nUser=jane\n" in text
    assert "\nUser=www\n" in machine.run("startup", "--system", "--run-as", "www").stdout
    assert "User=" not in machine.run("startup", "--system", "--run-as", "root").stdout


class Arbiter:
    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def cmdline(self) -> list[str]:
        return self.words

    def cwd(self) -> str:
        return "/srv/shop"

    def exe(self) -> str:
        return "/usr/bin/python3.11"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["/v/python", "-m", "x", "run", "a:b", "--daemon"], "/v/python -m x run a:b"),
        (["/v/python", "/v/gunicorn", "-D", "-k", "multicore_server.Worker", "a:b"],
         "/v/python /v/gunicorn -k multicore_server.Worker a:b"),
        (["venv/bin/python", "gunicorn", "a:b"], "/srv/shop/venv/bin/python gunicorn a:b"),
        (["no-such-python", "gunicorn", "a:b"], "/usr/bin/python3.11 gunicorn a:b"),
    ],
)  # fmt: skip
def test_units_of_what_runs(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, words: list[str], command: str
) -> None:
    machine.runs("shop", graceful_timeout=60.0, settings={"shutdown_delay": "5s"})
    monkeypatch.setattr(psutil, "Process", lambda *_: Arbiter(*words))
    text = machine.run("startup").stdout
    assert f"\nExecStart={command}\n" in text
    assert "\nWorkingDirectory=/srv/shop\n" in text
    assert "\nTimeoutStopSec=80\n" in text
    assert "Environment" not in text


def test_a_title_in_the_place_of_a_command_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.runs("shop")
    monkeypatch.setattr(psutil, "Process", lambda *_: Arbiter("gunicorn: master [shop]", ""))
    assert "shop: its title hides its command line (setproctitle)" in machine.run("startup", code=2).stderr


def test_nothing_to_make_units_of(machine: Machine) -> None:
    said = "no server of this user is running, and there is no multicore.toml here"
    assert said in machine.run("startup", code=2).stderr


class Systemctl:
    """Notes what it is called with; ``said`` is what it has against it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, said: str = "") -> None:
        self.calls: list[str] = []
        self.said = said
        monkeypatch.setattr(subprocess, "run", self._run)
        monkeypatch.setattr(startup, "which", lambda *_, **__: "/bin/systemctl")

    def _run(self, words: list[str], **_: Any) -> Any:
        self.calls.append(" ".join(words))
        return SimpleNamespace(returncode=bool(self.said), stderr=self.said)


def test_install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("shop", last='log = "out/shop.log"')
    systemctl = Systemctl(monkeypatch)
    monkeypatch.setattr(startup, "LINGER", machine.directory)
    path = machine.directory / "config/systemd/user/multicore-shop.service"
    assert machine.run("startup", "--install").stdout.splitlines() == [
        f"wrote {path}",
        "enabled; to start now what does not run: systemctl --user start multicore-shop.service",
        "they start when you log in; to start them at boot: loginctl enable-linger",
    ]
    assert path.read_text().startswith("[Unit]\n")
    assert (machine.directory / "out").is_dir()
    assert systemctl.calls == [
        "systemctl --user daemon-reload", "systemctl --user enable multicore-shop.service",
    ]  # fmt: skip
    (machine.directory / startup._login()).touch()
    assert "linger" not in machine.run("startup", "--install").stdout


def test_install_for_the_system(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("shop")
    systemctl = Systemctl(monkeypatch)
    monkeypatch.setattr(startup, "SYSTEM", machine.directory / "etc")
    machine.run("startup", "--install", "--system")
    assert (machine.directory / "etc/multicore-shop.service").exists()
    assert systemctl.calls == ["systemctl daemon-reload", "systemctl enable multicore-shop.service"]


def test_install_where_it_cannot_be_done(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.write("shop")
    Systemctl(monkeypatch, "Hint: x\nFailed to connect to bus: No medium found\n")
    said = machine.run("startup", "--install", code=1).stderr
    assert said == (
        "multicore-server: the units are written; systemctl --user daemon-reload: "
        "Failed to connect to bus: No medium found\n"
    )
    (machine.directory / "config/systemd/user/multicore-shop.service").unlink()
    (machine.directory / "config/systemd/user").rmdir()
    (machine.directory / "config/systemd/user").touch()
    assert "user cannot be written: File exists" in machine.run("startup", "--install", code=2).stderr
    monkeypatch.setattr(startup, "which", lambda *_, **__: None)
    assert "there is no systemctl here" in machine.run("startup", "--install", code=2).stderr


def test_a_server_that_does_not_answer_is_no_server_with_a_name() -> None:
    assert start.by_name({ScriptedServer(status()): Trouble("it hangs")}) == {}
