"""HUP and --reload: new code and new settings without a failed request; broken ones change nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.apps import ASK
from tests.support.asking import ask, ask_over
from tests.support.deploying import configure, deploy, hup, wait_workers
from tests.support.load import Load, load
from tests.support.server import Server
from tests.support.waiting import wait_for

BOOT_HANGS = "\nasync def start():\n    await asyncio.sleep(60)\n"
LIFESPAN_FAILS = "\nasync def start():\n    raise RuntimeError('no database')\n"


# --- HUP: new code


def test_new_code_under_load(asked: Server) -> None:
    asked.start("-w", "2", ready=2)
    with load(asked, "version") as requests:
        for version in (2, 3):
            deploy(asked, version)
            hup(asked, "reload done: 2 workers replaced")
            requests.wait_for(version)
    assert set(requests.answers) == {1, 2, 3}
    assert ask(asked, "version") == 3
    wait_workers(asked, 2)
    assert asked.logged("ERROR") == []


def test_a_request_in_hand_is_finished(asked: Server) -> None:
    asked.start("-w", "1", ready=1)
    with Load((LOCAL, asked.port), "time.sleep(1) or version") as requests:
        asked.wait_logged("ready")
        deploy(asked, 2)
        hup(asked)
        requests.wait_for(2)
    assert requests.answers[1] >= 1


def replacements(server: Server) -> list[str]:
    return re.findall("started to replace|ready after", server.log)


def test_one_after_the_other_or_several_at_once(asked: Server) -> None:
    asked.start("-w", "3", ready=3)
    hup(asked)
    assert replacements(asked)[3:] == ["started to replace", "ready after"] * 3

    asked.write("gunicorn.conf.py", "reload_surge = 3")
    hup(asked)  # in force as soon as the first replacement is ready
    hup(asked)
    assert replacements(asked)[-6:] == ["started to replace"] * 3 + ["ready after"] * 3


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("import nowhere", "app:app could not be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        (LIFESPAN_FAILS, "the app's lifespan startup failed"),
        (BOOT_HANGS, "not ready within 1 s"),
        ("import os; os._exit(0)", "exited with code 0"),
    ],
    ids=["import", "lifespan", "hang", "exit"],
)
def test_broken_code_is_rolled_back(asked: Server, broken: str, said: str) -> None:
    asked.start("-w", "2", ready=2, env={"MULTICORE_LISTEN_TIMEOUT": "1s"})
    old = asked.workers()
    with load(asked) as requests:
        deploy(asked, 2, broken)
        line = hup(asked, "reload rolled back")
    assert re.search(f"reload rolled back: .*({said}).*; the old workers keep serving", line)
    wait_for(lambda: asked.workers() == old, "only the old workers")
    assert set(requests.answers) <= set(old)

    deploy(asked, 3)
    hup(asked)
    assert ask(asked, "version") == 3


def test_a_crash_during_the_trial(asked: Server) -> None:
    """The slot comes back with what is in force, and is replaced with the others after the trial."""
    asked.write(
        "app.py",
        f"{ASK}\nasync def start():\n"
        "    while 'TRIAL' in os.environ and not os.path.exists('go'): await asyncio.sleep(0.01)\n",
    )
    configure(asked, workers=2)
    asked.start("-c", "conf.py", ready=2)
    configure(asked, workers=2, raw_env=["TRIAL=1"])
    asked.signal(signal.SIGHUP)
    asked.wait_logged("gen=2 pid=[0-9]+ started to replace")
    os.kill(asked.worker_of(1), signal.SIGKILL)
    asked.wait_ready(3)
    assert not asked.logged("rolled back|reload done")
    asked.write("go", "")
    asked.wait_logged("reload done: 2 workers replaced")
    wait_workers(asked, 2)
    assert {ask(asked, "os.environ.get('TRIAL')") for _ in range(10)} == {"1"}


def test_hups_during_a_reload_bring_exactly_one_more(asked: Server) -> None:
    asked.start("-w", "2", ready=2)
    deploy(asked, 2, "\nasync def start(): await asyncio.sleep(0.3)\n")
    asked.signal(signal.SIGHUP)
    for count in (1, 2, 3):
        asked.wait_logged(r"started to replace")
        asked.signal(signal.SIGHUP)
        asked.wait_logged("a reload is in progress; one more follows it", count)
    asked.wait_logged("reload done", 2)
    wait_workers(asked, 2)
    assert len(asked.logged(r"started to replace")) == 4
    assert not asked.logged("gen=4")


def test_preloaded_code_stays_and_the_line_names_usr2(asked: Server) -> None:
    asked.start("-w", "1", "--preload", ready=1)
    deploy(asked, 2)
    asked.write("gunicorn.conf.py", "raw_env = ['COLOUR=blue']\npreload_app = False")
    hup(asked)
    assert asked.logged("WARNING.* preload_app: a reload does not load new app code; USR2 does")
    assert ask(asked, "[version, os.environ['COLOUR']]") == [1, "blue"]


# --- HUP: new settings


BAD_CONFIGURATIONS = {
    "(": "SyntaxError: '(' was never closed",
    "import nowhere": "ModuleNotFoundError: No module named 'nowhere'",
    "raise SystemExit(9)": "the config file ended the process (sys.exit(9))",
    "timeout = 'soon'": "Invalid value for timeout: soon",
    "max_restarts = 'often'": "max_restarts: 'often' (from the config file, ",
    "certfile = 'nowhere.pem'": "certfile: 'nowhere.pem' does not exist",
    "worker_tmp_dir = 'nowhere'": "worker_tmp_dir: 'nowhere' is not a directory",
    "worker_class = 'sync'": "worker_class: 'sync' needs a restart of the server",
    "worker_class = 'nowhere.Worker'": "worker_class: class uri 'nowhere.Worker' invalid or not found",
    "chdir = 'nowhere'": "chdir",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "os._exit(0)": "the process that tries it has exited",
    "os.kill(os.getpid(), 11)": "the process that tries it has exited",
    "bind = []": "bind: there is no address to listen on",
    "bind = ''": "bind: there is no address to listen on",
    f"bind = '{LOCAL}:99999'": "cannot listen on 127.0.0.1:99999",
}


def test_bad_configurations_change_nothing(asked: Server) -> None:
    good = configure(asked, worker_class="multicore_server.Worker", workers=1, bind=f"{LOCAL}:{asked.port}")
    asked.start("-c", "conf.py", bind="", command=[sys.executable, "-m", "gunicorn"], ready=1)
    assert asked.monitor()  # which takes a descriptor of the arbiter's
    workers, before = asked.workers(), process_state(asked.pid)
    for count, (bad, said) in enumerate(BAD_CONFIGURATIONS.items(), 1):
        asked.write("conf.py", f"{good}import os\nos.environ['LEFT'] = 'behind'\nos.chdir('/')\n{bad}")
        line = hup(asked, "reload failed")
        assert said in line
        assert line.endswith("; everything stays as it was")
        assert len(asked.logged("ERROR|WARNING")) == count
        assert asked.workers() == workers
        with contextlib.suppress(AssertionError):
            wait_for(lambda: process_state(asked.pid) == before, timeout=5)
        assert process_state(asked.pid) == before, "nothing is left behind"
    os.kill(workers[0], signal.SIGKILL)
    asked.wait_ready(2)
    expected = [None, str(asked.directory)]
    assert ask(asked, "[os.environ.get('LEFT'), os.getcwd()]") == expected
    asked.write("conf.py", good)
    hup(asked)
    assert ask(asked, "[os.environ.get('LEFT'), os.getcwd()]") == expected


def process_state(pid: int) -> tuple[str, Counter[str]]:
    """Where it runs, and what it has open."""
    opened: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            opened[re.sub(r"\[\d+\]", "", str(descriptor.readlink()))] += 1
    return psutil.Process(pid).cwd(), opened


def test_a_changed_address(asked: Server) -> None:
    new = free_port()
    configure(asked, workers=2, bind=f"{LOCAL}:{asked.port}")
    asked.start("-c", "conf.py", bind="", ready=2)
    configure(asked, workers=2, bind=[f"{LOCAL}:{new}", "unix:s.sock"])
    hup(asked)
    assert asked.logged(f"Listening at: http://{LOCAL}:{new},unix:s.sock")
    wait_for(lambda: refuses(asked.port), "the old address closed")
    assert ask_over(asked.directory / "s.sock", "version") == 1
    asked.port = new
    assert ask(asked, "version") == 1

    configure(asked, workers=2, bind=f"{LOCAL}:{new}")
    with load(asked) as requests:  # the address that stays loses nothing
        hup(asked)
        wait_for(lambda: len(requests.answers) > 1, "an answer of a new worker")
    assert not (asked.directory / "s.sock").exists()


def test_a_taken_address_fails_at_once(asked: Server) -> None:
    configure(asked, workers=2, bind=f"{LOCAL}:{asked.port}")
    asked.start("-c", "conf.py", bind="", ready=2)
    old = asked.workers()
    with socket.create_server((LOCAL, 0)) as other, load(asked):
        taken = other.getsockname()[1]
        configure(asked, workers=2, bind=["unix:s.sock", f"{LOCAL}:{taken}"])
        started = time.monotonic()
        line = hup(asked, "reload failed")
        assert time.monotonic() - started < 2  # the start would wait for 5 s
    assert f"cannot listen on {LOCAL}:{taken}: the address is in use" in line
    assert asked.workers() == old
    assert not (asked.directory / "s.sock").exists()


def test_new_addresses_of_a_broken_deploy_are_given_up(asked: Server) -> None:
    configure(asked, workers=1, bind=f"{LOCAL}:{asked.port}")
    asked.start("-c", "conf.py", bind="", ready=1)
    new = free_port()
    configure(asked, workers=1, bind=[f"{LOCAL}:{new}", "unix:s.sock"])
    deploy(asked, 2, "import nowhere")
    hup(asked, "reload rolled back")
    assert refuses(new)
    assert not (asked.directory / "s.sock").exists()
    os.kill(asked.worker_of(0), signal.SIGKILL)  # its replacement is not to have them either
    deploy(asked, 3)
    asked.wait_ready(2)
    assert ask(asked, "version") == 3
    assert refuses(new)


def test_the_number_of_workers(asked: Server) -> None:
    configure(asked, workers=1)
    asked.start("-c", "conf.py", ready=1)
    for workers in (3, 2):
        configure(asked, workers=workers)
        hup(asked)
        wait_workers(asked, workers)


def test_other_settings(asked: Server) -> None:
    log = asked.directory / "access.log"
    configure(asked, workers=1, accesslog="access.log", raw_env=["COLOUR=red", "SHAPE=round"])
    asked.start("-c", "conf.py", ready=1, env={"COLOUR": "of the start"})
    assert ask(asked, "[os.environ['COLOUR'], os.environ['SHAPE']]") == ["red", "round"]
    configure(
        asked, workers=1, accesslog="access.log", access_log_format="new %(s)s", raw_env=["TASTE=sweet"],
        max_requests=3,
    )  # fmt: skip
    hup(asked)
    expected = ["of the start", None, "sweet"]
    assert ask(asked, "[os.environ.get(name) for name in ('COLOUR', 'SHAPE', 'TASTE')]") == expected
    wait_for(lambda: log.read_text().splitlines()[-1] == "new 200", "the access in the new format")
    for _ in range(2):
        ask(asked, "1")
    asked.wait_logged(r"gen=3 pid=\d+ started to replace pid=\d+ \(max_requests\)")
    asked.wait_ready(3)
    assert ask(asked, "os.environ.get('TASTE')") == "sweet"


def test_the_directory_of_a_broken_deploy_is_left_again(asked: Server) -> None:
    for name in ("one", "two"):
        (asked.directory / name).mkdir()
        asked.write(f"{name}/app.py", ASK + f"\nhere = {name!r}")
    asked.write("two/app.py", "import nowhere")
    (asked.directory / "app.py").unlink()
    configure(asked, workers=1, chdir="one", raw_env=["COLOUR=red"])
    asked.start("-c", "conf.py", ready=1)
    configure(asked, workers=1, chdir="two", raw_env=["COLOUR=blue"])
    hup(asked, "reload rolled back")
    os.kill(asked.worker_of(0), signal.SIGKILL)
    asked.wait_ready(2)
    assert ask(asked, "[here, os.environ['COLOUR']]") == ["one", "red"]

    asked.write("two/app.py", ASK + "\nhere = 'two'")
    hup(asked)
    assert ask(asked, "[here, os.environ['COLOUR'], os.path.basename(os.getcwd())]") == ["two", "blue", "two"]


def test_a_moved_pidfile(asked: Server) -> None:
    configure(asked, workers=1, pidfile="one.pid")
    asked.start("-c", "conf.py", ready=1)
    configure(asked, workers=1, pidfile="two.pid")
    hup(asked)
    assert (asked.directory / "two.pid").read_text() == f"{asked.pid}\n"
    assert not (asked.directory / "one.pid").exists()

    configure(asked, workers=1, pidfile="nowhere/three.pid")
    hup(asked)
    assert asked.logged("pidfile nowhere/three.pid: .*; keeping two.pid")
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0
    assert not (asked.directory / "two.pid").exists()


def test_a_configuration_that_is_a_module(asked: Server) -> None:
    configure(asked, workers=1, max_restarts=3)
    asked.start("-c", "python:conf", ready=1)
    configure(asked, workers=2, max_restarts=4)
    hup(asked)
    wait_workers(asked, 2)
    configure(asked, workers=2, max_restarts="often")
    assert "max_restarts: 'often' (from the config file, python:conf)" in hup(asked, "reload failed")


# --- --reload


def test_reload_of_a_changed_file(asked: Server) -> None:
    asked.start("-w", "1", "--reload", ready=1)
    with load(asked, "version") as requests:
        for version in (2, 3):
            deploy(asked, version)
            requests.wait_for(version)
            asked.wait_logged(
                "exited with code 0 after draining", version - 1
            )  # its successor watches by then
    assert len(asked.logged(r"started to replace pid=\d+ \(reload\)")) == 2
    assert not asked.logged("unstable|errored|ERROR")


@pytest.mark.parametrize("broken", ["def (:", "import nowhere"])
def test_reload_of_broken_code(asked: Server, broken: str) -> None:
    asked.start("-w", "1", "--reload", ready=1, env={"MULTICORE_MAX_RESTARTS": "0"})
    deploy(asked, 2, broken)
    asked.wait_logged("could not be loaded: .*the old worker keeps serving")
    assert ask(asked, "version") == 1
    deploy(asked, 3)
    wait_for(lambda: ask(asked, "version") == 3, "the repaired code")
