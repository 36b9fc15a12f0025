"""The monitor's address: taken, moved, given up, and taken over by USR2's monitor."""

from __future__ import annotations

import os
import signal
import socket
import threading

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.apps import TROUBLED
from tests.support.asking import ask
from tests.support.deploying import configure, deploy, hup, usr2s_arbiter
from tests.support.monitored_server import (
    MakeMonitored,
    MonitoredServer,
    by,
    left_behind,
    over,
    over_command_socket,
    requests,
    start_configured,
)
from tests.support.processes import wait_gone
from tests.support.waiting import wait_for

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
    server, first, second = configured.server, configured.port, free_port()
    start_configured(configured)

    def move(metrics_bind: str) -> None:
        configure(server, workers=1, metrics_bind=metrics_bind)
        hup(server)

    move(f"{LOCAL}:{second}")
    wait_for(lambda: configured.answers("/healthz", second), "the second address")
    assert refuses(first)
    move("none")
    wait_for(lambda: refuses(second), "no address")
    wait_for(lambda: over_command_socket(configured) == 200, "the command socket")
    move("unix:m.sock")
    path = server.directory / "m.sock"
    wait_for(lambda: path.exists() and over(path, "/healthz").status_code == 200, "the unix socket")
    assert refuses(first)
    move(f"{LOCAL}:{first}")
    wait_for(lambda: configured.answers("/healthz"), "the first address again")
    assert not path.exists()
    assert by(configured.metrics(), "multicore_reloads_total")["ok"] == 4
    assert not server.logged("WARNING|ERROR")


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
    server.ends_within(5)
    assert not path.exists()
    assert not (server.directory / "below" / "m.sock").exists()
    assert left_behind(configured) == []


def test_hup_to_an_address_that_is_taken(configured: MonitoredServer) -> None:
    """The reload is done, as the app is none of the monitor's business; the old address is given up."""
    start_configured(configured)
    other = free_port()
    with socket.create_server((LOCAL, other)):
        configure(configured.server, workers=1, metrics_bind=f"{LOCAL}:{other}")
        hup(configured.server)
        configured.server.wait_logged(f"metrics_bind: cannot listen on {LOCAL}:{other}")
        wait_for(lambda: over_command_socket(configured) == 200, "the command socket")
        assert refuses(configured.port)
    wait_for(lambda: configured.answers("/readyz", other), "the address", 3)
    assert len(configured.server.logged("cannot listen")) == 1


def test_a_rolled_back_reload_leaves_it_where_it_was(configured: MonitoredServer) -> None:
    start_configured(configured)
    before = configured.server.monitor()
    configure(configured.server, workers=1, metrics_bind=f"{LOCAL}:{free_port()}")
    deploy(configured.server, 2, "import nowhere")
    hup(configured.server, "reload rolled back")
    assert configured.answers("/readyz")
    assert configured.server.monitor() == before


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
    monitored.server.ends_within(10)
    wait_for(lambda: monitored.answers("/readyz"), "the address taken over", 3)
    assert monitored.status()["arbiter"]["pid"] == new
    assert left_behind(monitored) == [str(new_socket)]
    assert not monitored.server.logged("metrics_bind: cannot listen")
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert left_behind(monitored) == []


def test_usr2s_monitor_answers_while_the_old_server_drains(
    make_monitored: MakeMonitored, ending: list[int]
) -> None:
    """A load balancer that asks it took the server for dead as long as a request lasted."""
    monitored = make_monitored(TROUBLED)
    server = monitored.server
    monitored.start("-w", "1", ready=1)
    slow = threading.Thread(target=server.get, args=["/slow?3"])
    slow.start()
    server.wait_logged("SLOW")
    server.signal(signal.SIGUSR2)
    ending.append(usr2s_arbiter(server))
    server.wait_ready(2)
    server.signal(signal.SIGTERM)
    server.wait_logged("draining")
    wait_for(lambda: monitored.answers("/readyz"), "the address taken over", 2)
    assert monitored.status()["arbiter"]["pid"] == ending[0]
    assert server.process is not None
    assert server.process.poll() is None
    slow.join()
    assert server.wait_exit() == 0


def test_usr2s_arbiter_says_so_where_its_address_is_still_taken_after_the_old_one(
    configured: MonitoredServer, ending: list[int]
) -> None:
    start_configured(configured)
    server, other = configured.server, free_port()
    with socket.create_server((LOCAL, other)):
        configure(server, workers=1, metrics_bind=f"{LOCAL}:{other}")
        server.signal(signal.SIGUSR2)
        ending.append(usr2s_arbiter(server))
        server.wait_ready(2)
        server.ends_within(10)
        server.wait_logged(f"metrics_bind: cannot listen on {LOCAL}:{other}")
    wait_for(lambda: configured.answers("/readyz", other), "the address taken over", 3)
