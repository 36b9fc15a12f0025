"""Fixtures of the tests that run real servers. A server's log is shown where its test has failed."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import trustme

from tests.support import proxies
from tests.support.addresses import LOCAL
from tests.support.apps import ASK, HELLO, source
from tests.support.command_line import Operator
from tests.support.draining import LOOPS, PROTOCOLS
from tests.support.monitor_process import MakeMonitor, Monitor
from tests.support.monitored_server import MakeMonitored, MonitoredServer
from tests.support.processes import gone
from tests.support.proxies import MakeProxy, Proxy
from tests.support.raw_client import Connect, Connection
from tests.support.server import MakeServer, Server

if TYPE_CHECKING:  # loading Playwright takes a while: only the tests of the page do
    from playwright.sync_api import Browser

    from tests.support.browser import OpenTab, Tab


# In these files it does not matter which versions of gunicorn and uvicorn there are: they are about processes
# and their ends, the monitor and its page, the command line, tools of others. `tox -e full` runs them all.
OURS = frozenset(
    {
        "test_app_metrics_directory", "test_bad_input", "test_blocked_worker", "test_chaos",
        "test_cluster_examples", "test_other_systems", "test_requests_in_hand",
        "test_cluster_messages", "test_cluster_primary", "test_container", "test_ecosystem",
        "test_forked_children", "test_health", "test_hostile_children", "test_memory_limits",
        "test_monit", "test_monitor_address", "test_monitor_clients", "test_monitor_commands",
        "test_monitor_trouble", "test_orphans", "test_page", "test_page_health", "test_page_states",
        "test_placement", "test_prometheus_examples", "test_restart_metrics", "test_trigger",
        "test_verbs", "test_worker_number", "test_cluster", "test_log_rotation", "test_long_requests",
        "test_memory_shared", "test_paused_worker", "test_queue_metrics",
        "test_deployment_examples", "test_in_front", "test_kubernetes", "test_systemd",
    }
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    assert all((here / f"{name}.py").exists() for name in OURS)
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.path.stem in OURS:
                item.add_marker(pytest.mark.ours)


@pytest.fixture
def make_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MakeServer]:
    """Make servers, each in a directory of its own; they are ended, and shown where the test failed."""
    made: list[Server] = []

    def make(app: str = HELLO, **options: Any) -> Server:
        directory = tmp_path / f"server{len(made)}"
        directory.mkdir()
        made.append(Server(directory, app, **options))
        return made[-1]

    yield make
    for server in made:
        server.end()
        print(f"--- {server.log_path} ---\n{server.log}")  # pytest shows it on failure only


@pytest.fixture
def server(make_server: MakeServer) -> Server:
    """A server with the hello app, not started."""
    return make_server()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make raw connections; they are closed at the end."""
    made: list[Connection] = []

    def make(address: int | str, **options: Any) -> Connection:
        made.append(Connection(address, **options))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    """An authority whose certificate for localhost is beside the servers' directories."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    """For clients that trust it."""
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.fixture
def asked(make_server: MakeServer) -> Server:
    """A server with the app that answers questions (`tests.support.asking`), not started."""
    from tests.support.apps import ASK

    return make_server(ASK)


@pytest.fixture
def start(make_server: MakeServer) -> MakeServer:
    """Start one worker with the app ``connections``, on this protocol and this loop."""

    def start(*options: str, http: str = "httptools", loop: str = "uvloop", **env: str) -> Server:
        server = make_server(source("connections"))
        environment = {**PROTOCOLS[http], **LOOPS[loop], **env}
        return server.start("-w", "1", "--keep-alive", "20", *options, env=environment, ready=1)

    return start


@pytest.fixture
def ending() -> Iterator[list[int]]:
    """Arbiters that are no children of the test: they are ended after it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if not gone(pid):
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                process.kill()


# --- proxies


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[MakeProxy]:
    """Make proxies by what stands in their servers; they are ended."""
    made: list[Proxy] = []

    def make(inside: str) -> Proxy:
        made.append(proxies.nginx(tmp_path, inside))
        return made[-1]

    with proxies.ended(made):
        yield make


@pytest.fixture
def make_haproxy(tmp_path: Path) -> Iterator[MakeProxy]:
    """Make proxies before one address each; they are ended."""
    made: list[Proxy] = []

    def make(*args: Any, **options: Any) -> Proxy:
        made.append(proxies.haproxy(tmp_path, *args, **options))
        return made[-1]

    with proxies.ended(made):
        yield make


# --- the monitor


@pytest.fixture
def make_monitored(make_server: MakeServer) -> Iterator[MakeMonitored]:
    """Make monitored servers, each with an app of its own; they are ended with the servers."""
    made: list[MonitoredServer] = []

    def make(*app: str) -> MonitoredServer:
        made.append(MonitoredServer(make_server(*app)))
        return made[-1]

    yield make
    for monitored in made:
        monitored.server.end()
        monitored.close()


@pytest.fixture
def monitored(make_monitored: MakeMonitored) -> MonitoredServer:
    """One with the app that answers questions, not started."""
    return make_monitored(ASK)


@pytest.fixture
def configured(make_monitored: MakeMonitored) -> MonitoredServer:
    """Its address is in conf.py alone."""
    monitored = make_monitored(ASK)
    monitored.server.listens_for_scrapers = True
    return monitored


@pytest.fixture
def counted(make_monitored: MakeMonitored) -> MonitoredServer:
    """One with the app whose requests end in every way, not started."""
    return make_monitored(source("endings"))


@pytest.fixture
def make_monitor(tmp_path: Path) -> Iterator[MakeMonitor]:
    """Make monitors by themselves, each in a process of its own."""
    made: list[Monitor] = []

    def make(**options: Any) -> Monitor:
        directory = tmp_path / str(len(made))
        directory.mkdir(mode=0o700)
        made.append(Monitor(directory, **options))
        return made[-1]

    yield make
    for monitor in made:
        monitor.end()
        print(f"--- {monitor.log_path} ---\n{monitor.log}")


@pytest.fixture
def monitor(make_monitor: MakeMonitor) -> Monitor:
    """One whose arbiter has published a report."""
    monitor = make_monitor()
    monitor.publish()
    return monitor


# --- the command line


@pytest.fixture
def operator(make_server: MakeServer) -> Iterator[Operator]:
    """A user whose servers no other test sees."""
    # In /tmp: the path of a unix socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mcs") as runtime:
        found = Operator(make_server, Path(runtime))
        yield found
        found.end()


# --- the live page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from tests.support.browser import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def open_tab(chromium: Browser) -> Iterator[OpenTab]:
    """Open pages, each in a browser profile of its own; the options are the profile's."""
    from tests.support.browser import tabs

    with tabs(chromium) as make:
        yield make


@pytest.fixture
def open_page(monitor: Monitor, open_tab: OpenTab) -> Callable[..., Tab]:
    """Open the page of the monitor by itself; the options are a browser profile's."""

    def opened(**options: Any) -> Tab:
        return open_tab(f"http://{LOCAL}:{monitor.port}/", **options)

    return opened
