"""What a reload asks of config files and name servers may take long: the server goes on meanwhile."""

from __future__ import annotations

import os
import signal
import time

import httpx

from multicore_server.arbiter.forked_call import LIMIT
from tests.support.addresses import free_port
from tests.support.asking import ask
from tests.support.deploying import configure, hup
from tests.support.processes import gone
from tests.support.server import Server
from tests.support.waiting import wait_for

TELL_PID = """
import os
print(os.getpid(), file=open("pid.new", "w"), flush=True)
os.rename("pid.new", "pid")
"""
ENDLESS = "\nwhile True: pass\n"


def hup_endlessly(server: Server) -> int:
    """HUP, with a config file that never comes to an end; the pid of the process that loads it."""
    good = configure(server, workers=1)
    server.start("-c", "conf.py", ready=1)
    assert server.monitor()
    server.write("conf.py", good + TELL_PID + ENDLESS)
    server.signal(signal.SIGHUP)
    wait_for((server.directory / "pid").exists, "the config file")
    return int((server.directory / "pid").read_text())


def test_a_config_file_that_never_ends_costs_that_reload_alone(asked: Server) -> None:
    hup_endlessly(asked)
    # A crash meanwhile is mended at once.
    os.kill(asked.workers()[0], signal.SIGKILL)
    asked.wait_ready(2)
    assert not asked.logged("reload failed")
    asked.wait_logged("reload failed: it takes longer than 5 s; everything stays as it was")
    assert ask(asked, "version") == 1
    configure(asked, workers=1)
    hup(asked)


def test_the_end_of_the_server_does_not_wait_for_a_config_file(asked: Server) -> None:
    helper = hup_endlessly(asked)
    began = time.monotonic()
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0
    assert time.monotonic() - began < 4
    wait_for(lambda: gone(helper), "the end of the process that loads")


def test_an_arbiter_that_is_killed_leaves_no_process_that_loads(asked: Server) -> None:
    helper = hup_endlessly(asked)
    os.kill(asked.pid, signal.SIGKILL)
    wait_for(lambda: gone(helper), "the end of the process that loads", 2 * LIMIT)


def test_a_config_file_that_is_slow_is_named(asked: Server) -> None:
    good = configure(asked, workers=1)
    asked.start("-c", "conf.py", ready=1)
    asked.write("conf.py", f"{good}import time\ntime.sleep(1.3)")
    hup(asked)
    assert asked.logged(
        r"WARNING.* the configuration took 1\.\d s to load; the arbiter handled only signals during this time"
    )


def load_slowly_in_the_arbiter(server: Server) -> None:
    """HUP, with a config file that is slow; it has passed its trial, and now the arbiter loads it."""
    good = configure(server, workers=1)
    server.start("-c", "conf.py", ready=1)
    tell = 'import os, time\nprint(os.getpid(), file=open("loads", "a"), flush=True)\ntime.sleep(2.5)\n'
    server.write("conf.py", good + tell)
    server.signal(signal.SIGHUP)
    loads = server.directory / "loads"
    wait_for(lambda: loads.exists() and str(server.pid) in loads.read_text().split(), "the arbiter's load")


def test_a_crash_does_not_wait_for_a_slow_config_file(asked: Server) -> None:
    load_slowly_in_the_arbiter(asked)
    began = time.monotonic()
    os.kill(asked.workers()[0], signal.SIGKILL)
    asked.wait_logged(r"instance=0 gen=2 pid=\d+ started")
    assert ask(asked, "version") == 1
    assert time.monotonic() - began < 1.5
    asked.wait_logged("reload done")
    assert ask(asked, "version") == 1


def test_the_end_of_the_server_does_not_wait_for_a_slow_config_file(asked: Server) -> None:
    load_slowly_in_the_arbiter(asked)
    began = time.monotonic()
    asked.signal(signal.SIGTERM)
    assert asked.wait_exit() == 0
    assert time.monotonic() - began < 1.5
    assert not asked.logged("Traceback")


def test_a_name_is_resolved_by_the_process_that_tries_the_configuration(asked: Server) -> None:
    """The arbiter's own lookups would stop its loop; here it cannot look this name up."""
    port = free_port()
    first = f"127.0.0.1:{asked.port}"
    good = configure(asked, workers=1, bind=[first])
    asked.start("-c", "conf.py", bind="", ready=1)
    found = f"""
import os, socket
if os.getpid() != {asked.pid}:
    socket.getaddrinfo = lambda *_: [(2, 1, 6, "", ("127.0.0.1", 0))]
"""
    asked.write("conf.py", good.replace(first, f"{first}', 'no-such-name.invalid:{port}") + found)
    hup(asked)
    assert httpx.get(f"http://127.0.0.1:{port}/?1").status_code == 200


def test_a_name_for_the_monitors_address_is_looked_up(asked: Server) -> None:
    asked.start("-w", "1", ready=1, env={"MULTICORE_METRICS_BIND": "no-such-name.invalid:9464"})
    asked.wait_logged("metrics_bind: cannot listen on no-such-name.invalid:9464: .*; trying again")
    assert ask(asked, "version") == 1
