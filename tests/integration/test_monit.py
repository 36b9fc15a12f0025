"""monit in a pseudo-terminal, against real servers: what it shows, its keys, and the terminal afterwards."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.support.apps import HELLO
from tests.support.command_line import Operator
from tests.support.server import Server
from tests.support.terminal import Terminal
from tests.support.waiting import wait_for

pytest.importorskip("rich")

ESCAPES = r"'\x1b]0;owned\x07 [blink]'"  # as Python source
LEAVE = b"\x1b[?1049l"  # the alternate screen
SHOW = b"\x1b[?25h"  # the cursor


@pytest.fixture
def server(operator: Operator) -> Server:
    return operator.start()


@pytest.fixture
def monit(operator: Operator, server: Server) -> Terminal:
    return opened(operator)


def opened(operator: Operator, columns: int = 100, lines: int = 24) -> Terminal:
    terminal = operator.terminal("monit", "--interval", "200ms", columns=columns, lines=lines)
    terminal.wait_shown("q quit")
    return terminal


def assert_restored(terminal: Terminal) -> None:
    assert terminal.modes() == terminal.before
    assert terminal.raw.count(LEAVE) == 1
    assert terminal.raw.rindex(SHOW) > terminal.raw.rindex(b"\x1b[?25l")


def test_it_shows_the_workers_and_the_requests(operator: Operator, monit: Terminal, server: Server) -> None:
    monit.wait_shown(rf"^app:app  pid {server.pid}  {server.url}")
    for instance in (0, 1):
        monit.wait_shown(rf"^ {instance}  {server.worker_of(instance)} +ready +\d+s +0 +\d+% +[\d.]+mb +0")
    monit.wait_shown(rf"instance=1 gen=1 pid={server.worker_of(1)} ready after")

    def busy() -> bool:
        server.get()
        return " p50 -" not in monit.shown and " req/s" in monit.shown

    wait_for(busy, "durations")
    monit.wait_shown(r"[1-9][\d.]* req/s  5xx 0  p50 \d+\.\dms  p99 \d+")
    monit.wait_shown(r"p99 \d+\.\dms  queue \d+\.\dms ")
    assert monit.modes() != monit.before  # keys come one by one
    monit.press("q")
    assert monit.wait_exit() == 0
    assert_restored(monit)


def test_memory_is_shown_against_its_limit(operator: Operator) -> None:
    operator.start("--env", "MULTICORE_MAX_MEMORY_RESTART=2G", workers=1)
    opened(operator).wait_shown(r"[\d.]+mb/2\.0gb \d+%")


def test_a_crash_is_seen(monit: Terminal, server: Server) -> None:
    os.kill(server.worker_of(0), signal.SIGKILL)
    monit.wait_shown(r"instance=0 gen=1 .*SIGKILL")
    monit.wait_shown(r"^ 0 +\d+ +ready +\d+s +1 ")


def test_the_keys(monit: Terminal, server: Server) -> None:
    monit.press("+")
    monit.wait_shown("scaling from 2 to 3")
    monit.wait_shown("^3/3 ready")
    monit.press("\x1b[B\x1b[B\x1b[A")  # down, down, up: instance 1
    monit.press("R")
    monit.wait_shown("^restarting 1$")
    monit.wait_shown(r"^ 1 +\d+ +ready +\d+s +1 ")
    assert b"\x1b[7m" in monit.raw  # the selected one is in reverse
    monit.press("-")
    monit.wait_shown("^2/2 ready")
    monit.press("r")
    monit.wait_shown("reload done: 2 workers replaced")
    monit.press("--")
    monit.wait_shown("0 workers: 1 to 64 are possible")  # refused; it goes on
    monit.wait_shown("^1/1 ready")
    monit.press("xyz\x1b[5~\x1b")  # nothing
    monit.press("q")
    assert monit.wait_exit() == 0
    assert server.logged("reload done")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_after_a_signal(monit: Terminal, number: signal.Signals) -> None:
    monit.process.send_signal(number)
    assert monit.wait_exit() == 128 + number
    assert_restored(monit)


def test_the_terminal_is_restored_after_a_mistake(operator: Operator, server: Server) -> None:
    script = (
        "from multicore_server.cli import monit, monit_view\n"
        "from multicore_server.cli.servers import choose\n"
        "def draw(*_, right=monit_view.draw, calls=[]):\n"
        "    calls.append(1)\n"
        "    return right(*_) if len(calls) < 3 else 1 / 0\n"
        "monit_view.draw = draw\n"
        "monit.watch(choose(None), 0.1)\n"
    )
    operator.runtime.joinpath("mistake.py").write_text(script)
    mistaken = Terminal([sys.executable, "mistake.py"], operator.runtime, operator.env)
    try:
        assert mistaken.wait_exit() == 1
        assert "ZeroDivisionError" in mistaken.shown
        assert_restored(mistaken)
    finally:
        mistaken.end()


def test_the_end_of_the_server(monit: Terminal, server: Server) -> None:
    server.signal(signal.SIGTERM)
    assert monit.wait_exit() == 0
    assert_restored(monit)
    said = monit.raw.split(LEAVE)[1].decode()
    assert said.strip() == f"the server with pid {server.pid} has exited"


def test_a_monitor_that_is_replaced(monit: Terminal, server: Server) -> None:
    os.kill(server.monitor(), signal.SIGKILL)
    os.kill(server.worker_of(0), signal.SIGKILL)
    monit.wait_shown(r"^ 0 +\d+ +ready +\d+s +1 ")
    assert monit.process.poll() is None


def test_other_sizes(operator: Operator, server: Server) -> None:
    terminal = opened(operator, columns=40, lines=10)
    assert "conns" not in terminal.wait_shown(r"^id .*")[0]
    terminal.resize(124, 30)
    terminal.wait_shown(r"^id .* conns +queue +lag")


def test_what_an_app_says_does_nothing_to_the_terminal(operator: Operator) -> None:
    app = HELLO + f"\nif os.environ.get('MULTICORE_INSTANCE') == '1':\n    raise RuntimeError({ESCAPES})\n"
    hostile = "\x1b[2J[bold]:bomb:"
    operator.start("-n", hostile, workers=1, app=app)
    terminal = opened(operator, columns=200)
    terminal.press("+")
    terminal.wait_shown(r"\\x1b\]0;owned\\x07 \[blink\]")
    terminal.wait_shown(r"\\x1b\[2J\[bold\]:bomb:  pid")
    assert b"\x1b[2J" not in terminal.raw
    assert b"\x1b]0;owned" not in terminal.raw


# --- what is no good ---


def test_without_a_terminal(operator: Operator, server: Server) -> None:
    assert operator.refused("monit").startswith("monit needs a terminal; ")


def test_on_a_terminal_that_is_dumb(operator: Operator, server: Server) -> None:
    terminal = operator.terminal("monit", TERM="dumb")
    assert terminal.wait_exit() == 2
    assert b"monit needs a terminal that moves its cursor, not TERM=dumb" in terminal.raw
    assert b"\x1b" not in terminal.raw


def test_without_rich(operator: Operator) -> None:
    blocked = operator.runtime / "rich"
    blocked.mkdir()
    (blocked / "__init__.py").write_text("raise ModuleNotFoundError('No module', name='rich')\n")
    operator.env["PYTHONPATH"] = str(operator.runtime)
    message = operator.refused("monit")
    assert message == "monit needs rich: pip install 'multicore-server[monit]'"


def test_an_interval_that_is_none(operator: Operator) -> None:
    assert operator.refused("monit", "--interval", "often") == "--interval: 'often' is not a duration"
    assert operator.refused("monit", "--interval", "0") == "--interval: '0' is not from 0.1 to 60 seconds"


def test_no_server_leaves_the_screen_alone(operator: Operator) -> None:
    terminal = operator.terminal("monit")
    assert terminal.wait_exit() == 2
    assert "no server of this user is running" in terminal.shown.replace("\n", "")
    assert b"\x1b" not in terminal.raw
