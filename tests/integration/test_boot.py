"""Boots: those that fail, those that hang, and those that are ready when the app says so."""

from __future__ import annotations

import re
import signal

import pytest

from tests.support.apps import TROUBLED
from tests.support.command_line import Operator
from tests.support.server import Server
from tests.support.waiting import wait_for


@pytest.mark.parametrize(
    ("app", "cause"),
    [
        pytest.param(
            TROUBLED + "\nraise RuntimeError('no database')",
            "app:app could not be loaded: RuntimeError: no database",
            id="import",
        ),
        pytest.param(
            TROUBLED + "\nsys.exit('no licence')",
            re.escape("app:app ended the process (sys.exit('no licence')) while it was loaded"),
            id="sys.exit",
        ),
        pytest.param(
            TROUBLED + "\nasync def startup(): raise RuntimeError",
            "lifespan startup failed",
            id="lifespan",
        ),
        pytest.param(TROUBLED + "\nos._exit(0)", "exited with code 0", id="os._exit"),
    ],
)
def test_when_no_worker_can_boot_the_server_says_why_and_ends(server: Server, app: str, cause: str) -> None:
    server.write("app.py", app)
    server.start("-w", "2", "-p", "server.pid")
    assert server.wait_exit() == 3
    assert len(server.logged(f"Reason: no worker could boot: .*{cause}")) == 1
    assert not server.logged("restarting")
    assert not (server.directory / "server.pid").exists()


def test_a_boot_that_hangs_is_ended_and_shows_where(server: Server) -> None:
    server.write("app.py", TROUBLED + "\nstuck()")
    server.start("-w", "1", env={"MULTICORE_LISTEN_TIMEOUT": "500ms"})
    assert server.wait_exit() == 3
    assert server.logged(r"instance=0 .* not ready within 0.5 s \(listen_timeout\); aborting it")
    assert server.logged(r"Reason: .*: not ready within 0.5 s \(listen_timeout\)$")
    assert server.logged(r'File ".*/app.py", line \d+ in stuck')


@pytest.mark.parametrize(("timeout", "in_force"), [("600", "600"), ("0", "0"), ("5", "60")])
def test_the_timeout_covers_a_slow_boot(operator: Operator, timeout: str, in_force: str) -> None:
    operator.start("--timeout", timeout, workers=1)
    assert operator.json("show")["settings"]["listen_timeout"] == in_force


def test_one_that_cannot_boot_costs_the_others_nothing(server: Server) -> None:
    ill = "if cluster.instance == 1 and not os.path.exists('healthy'): raise RuntimeError('not yet')"
    server.write("app.py", f"{TROUBLED}\n{ill}")
    server.start("-w", "2", ready=1)
    server.wait_logged(r"instance=1 .* before it was ready: .*RuntimeError: not yet; restarting in")
    assert int(server.get().text) == server.worker_of(0)
    server.write("healthy", "")
    server.wait_logged(r"instance=1 gen=\d+ .* ready")
    assert not server.logged("instance=0 .* (draining|exited)")


# --- wait_ready ---


@pytest.mark.parametrize(
    ("at_import", "startup"),
    [
        pytest.param("threading.Thread(target=gate_in_a_thread).start()", "pass", id="from a thread"),
        pytest.param("", "asyncio.create_task(gate())", id="from a task"),
        pytest.param("", "await gate()", id="from startup"),
    ],
)
def test_with_wait_ready_the_app_says_when(server: Server, at_import: str, startup: str) -> None:
    startup = f"async def startup(): print('STARTUP', flush=True); {startup}"
    server.write("app.py", f"{TROUBLED}\n{at_import}\n{startup}")
    server.start("-w", "1", env={"MULTICORE_WAIT_READY": "true"})
    server.wait_logged("STARTUP")
    server.signal(signal.SIGTTIN)  # any sign that the arbiter's loop has turned since
    server.wait_logged("STARTUP", 2)
    assert not server.logged("ready after")
    server.write("open", "")
    server.wait_ready(2)
    assert server.get().status_code == 200


def test_with_wait_ready_no_request_comes_before(server: Server) -> None:
    server.write("app.py", TROUBLED + "\nif cluster.instance == 0: cluster.ready()")
    server.start("-w", "2", env={"MULTICORE_WAIT_READY": "true"}, ready=1)
    answers = {int(server.get().text) for _ in range(15)}
    assert answers == {server.worker_of(0)}


def test_an_app_that_never_says_so_has_failed_to_boot(server: Server) -> None:
    env = {"MULTICORE_WAIT_READY": "true", "MULTICORE_LISTEN_TIMEOUT": "700ms"}
    server.start("-w", "1", env=env)
    assert server.wait_exit() == 3
    assert server.logged(r"not ready within 0.7 s \(listen_timeout\)")


def test_term_reaches_a_worker_that_waits_to_be_ready(server: Server) -> None:
    server.write("app.py", TROUBLED + "\nasync def startup(): print('STARTUP', flush=True)")
    server.start("-w", "1", env={"MULTICORE_WAIT_READY": "true"})
    server.wait_logged("STARTUP")
    server.signal(signal.SIGTERM)
    wait_for(lambda: server.process is not None and server.process.poll() == 0, "the end", 2.0)
