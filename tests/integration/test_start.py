"""Ways to start a server, and what the app then finds around it."""

from __future__ import annotations

import gc
import grp
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.support.apps import ASK, source
from tests.support.asking import ask, ask_over
from tests.support.deploying import change_over, usr2s_arbiter
from tests.support.privileges import readable_by_all
from tests.support.processes import wait_gone, workers_of
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

# --- what surrounds the app


def test_preload_shares_memory(asked: Server) -> None:
    asked.start("-w", "1", "--preload", ready=1)
    assert ask(asked, "imported_by") == asked.pid
    assert ask(asked, "gc.get_freeze_count()") > 10_000


FROZEN = "all(found is not app for found in gc.get_objects())"


@pytest.mark.parametrize(
    ("hook", "options", "threshold"),
    [
        ("", {}, 10_000),
        ("", {"MULTICORE_GC_THRESHOLD": "none"}, gc.get_threshold()[0]),
        ("", {"MULTICORE_GC_THRESHOLD": "3000"}, 3000),
        ("import gc\ndef post_fork(server, worker):\n    gc.set_threshold(1234)\n", {}, 1234),
    ],
    ids=["default", "none", "setting", "hook"],
)
def test_the_collector_looks_less_often_and_not_at_the_app(
    asked: Server, hook: str, options: dict[str, str], threshold: int
) -> None:
    asked.write("gunicorn.conf.py", hook)
    asked.start("-w", "1", ready=1, env=options)
    assert ask(asked, "gc.get_threshold()[0]") == threshold
    assert ask(asked, FROZEN)


def test_environment_and_directories(asked: Server) -> None:
    for name in ("below", "library"):
        (asked.directory / name).mkdir()
    asked.write("library/found_by_path.py", "")
    shutil.move(asked.directory / "app.py", asked.directory / "below")
    options = [
        "--chdir",
        "below",
        "--pythonpath",
        "../library",
        "-e",
        "COLOUR=blue",
        "-e",
        "MULTICORE_WORKERS=1",
    ]
    asked.start(*options, ready=1, env={"COLOUR": "red"})
    assert ask(asked, "os.environ['COLOUR']") == "blue"
    assert ask(asked, "os.environ['MULTICORE_INSTANCE']") == "0"
    assert ask(asked, "os.getcwd()") == str(asked.directory / "below")
    assert ask(asked, "bool(__import__('found_by_path'))")
    assert len(asked.workers()) == 1


def test_umask(asked: Server) -> None:
    path = asked.directory / "s.sock"
    asked.start("-w", "1", "--umask", "0o027", bind=f"unix:{path}", ready=1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_user_and_group(asked: Server) -> None:
    # Where nobody may not read Python itself (one in /root, say), the workers keep root's capabilities.
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    command = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    path, log = asked.directory / "s.sock", asked.directory / "error.log"
    log.touch()
    for directory in [asked.directory, *asked.directory.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    options = ["-w", "1", "--user", "nobody", "--group", group, "--error-logfile", str(log)]
    asked.start(*options, bind=f"unix:{path}", command=command)
    wait_for(lambda: "ready after" in log.read_text(), "a worker ready")
    assert ask_over(path, "os.getuid()") == pwd.getpwnam("nobody").pw_uid
    assert path.owner() == log.owner() == "nobody"

    log.rename(asked.directory / "old.log")
    asked.signal(signal.SIGUSR1)
    wait_for(log.exists, "the reopened log")
    assert log.owner() == "nobody"
    worker = asked.workers()[0]
    os.kill(worker, signal.SIGABRT)  # dumps its stacks to the log as nobody
    wait_for(lambda: "was killed" in log.read_text() or "exited with code" in log.read_text(), "its end")
    assert "Current thread" in log.read_text()
    wait_for(lambda: "ready after" in log.read_text(), "its replacement")


# --- ways to start


def test_daemon_with_pidfile_and_log(asked: Server, ending: list[int]) -> None:
    pidfile, log = asked.directory / "server.pid", asked.directory / "error.log"
    asked.start("-w", "2", "--daemon", "-p", "server.pid", "--error-logfile", "error.log")
    assert asked.wait_exit() == 0
    wait_for(pidfile.exists, "the pidfile")
    arbiter = int(pidfile.read_text())
    ending.append(arbiter)
    wait_for(lambda: log.read_text().count("ready after") == 2, "two workers ready")
    assert ask(asked, "os.getppid()") == arbiter
    assert os.getsid(arbiter) != os.getsid(0)

    os.kill(arbiter, signal.SIGWINCH)  # ends the workers, not the arbiter
    wait_for(lambda: not workers_of(arbiter), "no workers")
    os.kill(arbiter, signal.SIGHUP)
    wait_for(lambda: len(workers_of(arbiter)) == 2, "two workers again")

    os.kill(arbiter, signal.SIGTERM)
    wait_gone(arbiter)
    assert not pidfile.exists()
    assert asked.log == ""  # nothing went to the terminal


def test_no_process_leaves_a_socket_to_the_collector(make_server: MakeServer) -> None:
    command = [sys.executable, "-X", "dev", "-m", "gunicorn", "-k", "multicore_server.Worker"]
    server = make_server().start("-w", "2", command=command, ready=2)
    server.get()
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    server.ends_within(10)
    assert server.logged("ResourceWarning") == []


def test_check_config_and_print_config(asked: Server) -> None:
    asked.start("--check-config", "-p", "server.pid")
    assert asked.wait_exit() == 0
    assert asked.log == ""
    asked.start("--print-config", "-w", "5")
    assert asked.wait_exit() == 0
    assert asked.logged(r"^workers += 5$")
    asked.start("--check-config", app="nowhere:app")
    assert asked.wait_exit() == 1
    assert not (asked.directory / "server.pid").exists()


def test_gunicorn_cmd_args(asked: Server) -> None:
    asked.start(env={"GUNICORN_CMD_ARGS": "-w 3 --name from-the-environment"}, ready=3)
    assert len(asked.workers()) == 3


def test_winch_in_the_foreground_does_nothing(asked: Server) -> None:
    asked.start("-w", "1", ready=1)
    asked.signal(signal.SIGWINCH)
    asked.signal(signal.SIGTTIN)
    asked.wait_ready(2)
    assert len(asked.workers()) == 2


# --- systemd


def test_socket_activation(asked: Server, ending: list[int]) -> None:
    path = asked.directory / "systemd.sock"
    activate = [sys.executable, str(asked.write("activate.py", source("activate"))), str(path)]
    asked.start("-w", "1", command=[*activate, "-m", "gunicorn", "-k", "multicore_server.Worker"], ready=1)
    assert ask_over(path, "'LISTEN_FDS' in os.environ") is False
    with pytest.raises(httpx.ConnectError):
        asked.get()  # the addresses of the configuration are not listened on

    asked.signal(signal.SIGHUP)
    asked.wait_logged("reload done")
    assert ask_over(path, "os.getpid()") == asked.worker_of(0)

    new = change_over(asked, ending, ready=3)
    assert ask_over(path, "os.getppid()") == new
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert path.exists()  # it is systemd's


class Systemd:
    """systemd's end of NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\\0{name}".encode().decode("unicode_escape"))
        self.socket.setblocking(False)
        self.told: list[str] = []

    def heard(self, state: str, count: int = 1) -> bool:
        try:
            while True:
                self.told.append(self.socket.recv(4096).decode())
        except BlockingIOError:
            return sum(state in message.splitlines() for message in self.told) >= count


@pytest.fixture
def systemd() -> Iterator[Systemd]:
    systemd = Systemd(f"multicore-test-{os.getpid()}")
    yield systemd
    systemd.socket.close()


START_SLOWLY = "\nasync def start():\n    while not os.path.exists('go'): await asyncio.sleep(0.01)\n"


def test_notify(make_server: MakeServer, systemd: Systemd, ending: list[int]) -> None:
    server = make_server(ASK + START_SLOWLY)
    server.start("-w", "2", env={"NOTIFY_SOCKET": f"@multicore-test-{os.getpid()}"})
    server.wait_logged(r"instance=1 .* started")
    assert not systemd.heard("READY=1")
    server.write("go", "")
    server.wait_ready(2)
    wait_for(lambda: systemd.heard("READY=1"), "READY")
    assert ask(server, "'NOTIFY_SOCKET' in os.environ") is False

    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    wait_for(lambda: systemd.heard("READY=1", 2), "READY after the reload")
    said = [message.splitlines()[0] for message in systemd.told if not message.startswith("STATUS=")]
    assert said == ["READY=1", "RELOADING=1", "READY=1"]
    wait_for(lambda: systemd.heard("STATUS=2 of 2 workers ready", 2), "the status")

    server.signal(signal.SIGUSR2)
    ending.append(usr2s_arbiter(server))
    server.wait_ready(6)
    assert systemd.heard("READY=1", 2)
    assert not systemd.heard("READY=1", 3)  # it is not the main process yet
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    wait_for(lambda: systemd.heard("READY=1", 3), "READY of the new arbiter")
    wait_for(lambda: systemd.heard(f"MAINPID={ending[0]}", 2), "its predecessor's word, and its own")
    assert not systemd.heard("STOPPING=1")


# --- run()


def start_from_python(server: Server, call: str) -> Server:
    script = server.write("serve.py", f"import multicore_server\n{call}\n")
    command = [sys.executable, script.name, "-w", "7"]  # a command line that is not gunicorn's
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(command, cwd=server.directory, stdout=log, stderr=log)
    return server


def test_run(asked: Server) -> None:
    asked.write("gunicorn.conf.py", "raise RuntimeError('it was not named')")
    call = f"multicore_server.run('app:app', workers=2, bind='127.0.0.1:{asked.port}', reload_surge=2)"
    start_from_python(asked, call).wait_ready(2)
    assert len(asked.workers()) == 2
    assert ask(asked, "os.getppid()") == asked.pid

    asked.write("app.py", ASK + "\nversion = 2")
    asked.signal(signal.SIGHUP)
    asked.wait_logged("reload done: 2 workers replaced")
    assert ask(asked, "version") == 2
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0


def test_run_with_an_object_and_a_config_file(asked: Server, ending: list[int]) -> None:
    asked.write("conf.py", f"workers = 7\nbind = '127.0.0.1:{asked.port}'\nmax_restarts = 3")
    call = "from app import app\nmulticore_server.run(app, workers='1', config='conf.py')"
    start_from_python(asked, call).wait_ready(1)
    assert ask(asked, "imported_by") == asked.pid

    asked.signal(signal.SIGHUP)
    asked.wait_logged("run\\(\\) got the app as an object: .*USR2 does")
    asked.wait_logged("reload done: 1 worker replaced")

    new = change_over(asked, ending, ready=3)
    assert ask(asked, "imported_by") == new


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("workres=2", "TypeError: run() got an unknown option 'workres'; did you mean workers?"),
        ("max_memory_restrat=2", "unknown option 'max_memory_restrat'; did you mean max_memory_restart?"),
        ("workers='many'", "workers: 'many' (from run's options"),
        ("timeout='soon'", "Error: timeout: 'soon' (from run's options) is not a duration; give "),
        ("check_config=True, max_restarts='often'", "Error: max_restarts: 'often' (from run's options"),
        ("config='nowhere.py'", "Error: 'nowhere.py' doesn't exist"),
        ("errorlog='none/log'", "Error: errorlog: 'none/log' cannot be written: No such file or directory"),
        ("worker_class='sync'", "Error: worker_class: 'sync' is not multicore_server.Worker"),
        ("worker_class='multicore_server.Wrker'", "worker_class: 'multicore_server.Wrker' is not a class"),
    ],
)
def test_run_with_bad_options(server: Server, options: str, said: str) -> None:
    start_from_python(
        server, f"multicore_server.run('app:app', bind='unix:s.sock', pidfile='pid', {options})"
    )
    assert server.wait_exit() == 1
    assert said in [line for line in server.log.splitlines() if line][-1]
    assert ("Traceback" in server.log) == said.startswith(("TypeError", "unknown"))
    assert not {"pid", "s.sock"} & {path.name for path in server.directory.iterdir()}
