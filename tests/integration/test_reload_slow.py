"""What a reload asks of config files and name servers may take long: the server goes on meanwhile."""

from __future__ import annotations

import os
import signal
import time

from multicore_server.arbiter.forked_call import LIMIT
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
        r"WARNING.* the configuration took 1\.\d s to load; the arbiter does nothing else meanwhile"
    )


def test_a_name_for_the_monitors_address_is_looked_up(asked: Server) -> None:
    asked.start("-w", "1", ready=1, env={"MULTICORE_METRICS_BIND": "no-such-name.invalid:9464"})
    asked.wait_logged("metrics_bind: cannot listen on no-such-name.invalid:9464: .*; trying again")
    assert ask(asked, "version") == 1
