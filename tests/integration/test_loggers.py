"""Logs as apps and users set them up: uvicorn's loggers, Django's LOGGING, queues."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support.apps import TROUBLED, source
from tests.support.server import MakeServer, Server

pytestmark = pytest.mark.integration

RUN = [sys.executable, "-m", "multicore_server", "run"]
ACCESS = r'"GET (\S+) HTTP/1.1"'


def start(server: Server, how: str, **env: str) -> None:
    if how == "run":
        options = ("--workers", "1", "--port", str(server.port))
        server.start(*options, command=RUN, bind="", env=env, ready=1)
    else:
        server.start("-w", "1", "--access-logfile", "-", env=env, ready=1)


def asked(server: Server, *paths: str) -> list[str]:
    """Those of the paths that are in the access log, when the last one is: it always is."""
    for path in (*paths, "/last"):
        server.get(path)
    server.wait_logged('"GET /last')
    return [found[1] for line in server.logged(ACCESS) if (found := re.search(ACCESS, line))][:-1]


@pytest.mark.parametrize("how", ["gunicorn", "run"])
def test_what_an_app_logs_with_uvicorns_loggers(make_server: MakeServer, how: str) -> None:
    server = make_server(source("uvicorn_loggers"))
    start(server, how)
    server.get()
    server.ends_within(10)
    for text in ("at import", "in lifespan.startup", "in a request", "in lifespan.shutdown"):
        assert len(server.logged(rf"^\[.*\] \[INFO\] MINE {text}$")) == 1
    assert not server.logged("(?i)application|server process|Uvicorn running|Shutting down$")


@pytest.mark.parametrize("how", ["gunicorn", "run"])
def test_a_filter_for_health_checks(make_server: MakeServer, how: str) -> None:
    server = make_server(source("uvicorn_loggers"))
    start(server, how, CHANGE="access.addFilter(Health())")
    assert asked(server, "/health", "/x", "/health") == ["/x"]


def test_a_form_of_its_own(make_server: MakeServer) -> None:
    server = make_server(source("uvicorn_loggers"))
    start(server, "run", CHANGE="access.handlers[0].setFormatter(logging.Formatter('FORM %(message)s'))")
    server.get("/x")
    assert server.wait_logged(r'^FORM 127.0.0.1:\d+ - "GET /x HTTP/1.1" 200$')


def test_statsd_counts_what_is_filtered(make_server: MakeServer) -> None:
    """gunicorn's logger for statsd does more than write the line."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        server = make_server(source("uvicorn_loggers"))
        options = ("--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", "--access-logfile", "-")
        server.start("-w", "1", *options, env={"CHANGE": "access.addFilter(Health())"}, ready=1)
        server.get("/health")
        while not statsd.recv(1000).startswith(b"gunicorn.requests"):
            pass
        assert asked(server) == []


@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_djangos_logging_silences_nobody(make_server: MakeServer, preload: list[str]) -> None:
    server = make_server(source("django_logging"))
    server.start("-w", "1", "--access-logfile", "-", *preload, ready=1)
    assert asked(server, "/") == ["/"]
    assert server.logged("^DJANGO app asked")
    server.ends_within(10)
    assert server.logged("exited with code 0 after draining")


def test_stacks_reach_a_log_that_an_app_has_closed(make_server: MakeServer) -> None:
    """As logging does with all handlers at a configuration."""
    closing = "import logging.config; logging.config.dictConfig({'version': 1})"
    server = make_server(f"{TROUBLED}\n{closing}\nstuck()")
    server.start("-w", "1", "--error-logfile", "err", env={"MULTICORE_LISTEN_TIMEOUT": "1s"})
    assert server.wait_exit() == 3
    assert "in stuck" in (server.directory / "err").read_text()


QUEUE = '''
import logging, logging.handlers, queue

class Queued(logging.handlers.QueueHandler):
    """As people write it: the thread that empties the queue starts with the handler."""

    def __init__(self):
        super().__init__(queue.Queue(-1))
        target = logging.StreamHandler()
        target.setFormatter(logging.Formatter("QUEUED %(message)s"))
        logging.handlers.QueueListener(self.queue, target).start()

handler = {"queue": {"()": Queued}}
logconfig_dict = {
    "version": 1,
    "handlers": handler,
    "root": {"handlers": ["queue"], "level": "INFO"},
    "loggers": {"gunicorn.error": {"handlers": ["queue"], "level": "INFO", "propagate": False}},
}
'''


def test_a_queue_of_the_configuration_works_in_workers(make_server: MakeServer) -> None:
    server = make_server(source("uvicorn_loggers") + "\nlogging.getLogger('app').info('MINE by the root')")
    server.write("conf.py", QUEUE)
    server.start("-w", "1", "-c", "conf.py", ready=1)
    server.get()
    assert server.wait_logged("^QUEUED MINE in a request")
    assert server.wait_logged("^QUEUED MINE by the root")
