"""Where the app's own metrics are kept: private or the user's, full or broken; and what stays of it."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.app_metrics import APP, DIRECTORY, TELL, VARIABLE, counts, gauges, kill, note, start, told
from tests.support.apps import source
from tests.support.asking import ask
from tests.support.deploying import usr2s_arbiter
from tests.support.privileges import readable_by_all
from tests.support.processes import wait_gone
from tests.support.scraping import each_worker
from tests.support.server import MakeServer
from tests.support.waiting import wait_for

SHARED_MEMORY = Path("/dev/shm")


def directories(arbiter: int) -> list[Path]:
    """The private directories that this arbiter has: those whose lock it holds."""
    inodes = {
        fields[5].rpartition(":")[2]
        for line in Path("/proc/locks").read_text().splitlines()
        if (fields := line.split())[4] == str(arbiter)
    }
    found = []
    for lock in SHARED_MEMORY.glob("multicore-server-*/server.lock"):
        with contextlib.suppress(FileNotFoundError):  # other servers come and go
            if str(lock.stat().st_ino) in inodes:
                found.append(lock.parent)
    return found


# --- not wanted


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
@pytest.mark.parametrize("source", ["environment", "config"])
def test_app_metrics_switched_off(make_server: MakeServer, source: str, preload: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"config": "app_metrics = False"}
    if source == "environment":
        options = {"env": {"MULTICORE_APP_METRICS": "false"}}
    scraped = start(make_server, *preload, workers=2, **options)
    note(scraped.server, 3, 20)  # makes the labels' metric, behind the fork
    assert scraped.app() == {}
    with each_worker(scraped.server, 2) as asks:
        for instance, value in enumerate((3, 20)):
            own = asks[instance]("generate_latest().decode().splitlines()")
            expected = ('hits_total{path="/"}', "seconds_sum", "all_level")
            assert {f"{name} {value}.0" for name in expected} <= {*own}
            assert asks[instance](f"os.environ.get('{VARIABLE}')") is None
    assert directories(scraped.server.pid) == []
    assert not scraped.server.logged("WARNING|ERROR")


def test_a_server_with_app_metrics_has_one_directory(make_server: MakeServer) -> None:
    """Or the test above would prove nothing."""
    scraped = start(make_server, workers=1)
    [directory] = directories(scraped.server.pid)
    assert ask(scraped.server, DIRECTORY) == str(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


# --- the user's own


def test_a_directory_of_the_users(make_server: MakeServer, tmp_path: Path) -> None:
    """What servers have left in it counts with the next ones, and nobody wipes it."""
    directory = tmp_path / "metrics"
    env = {VARIABLE: str(directory)}
    first = start(make_server, workers=2, env=env)
    note(first.server, 3, 20)
    assert first.app().items() >= (counts([3, 20]) | gauges("", {0: 3, 1: 20}, sum=23)).items()
    second = start(make_server, workers=2, env=env)
    note(second.server, 4, 5)
    both = counts([3, 20, 4, 5]) | gauges(sum=32)
    assert (
        second.app().items()
        >= (both | gauges("", {0: 4, 1: 5}) | gauges("live", {0: 4, 1: 5}, sum=32)).items()
    )
    assert first.app().items() >= (both | gauges("", {0: 3, 1: 20})).items()

    first.server.signal(signal.SIGTERM)
    assert first.server.wait_exit() == 0
    second.wait_for(both | gauges("live", sum=9, max=5), "the counts of both, the live gauges of one")
    second.server.end()
    files = sorted(it.name for it in directory.iterdir())
    third = start(make_server, workers=1, env=env)
    assert third.app().items() >= both.items()
    assert ask(third.server, DIRECTORY) == str(directory)
    third.server.end()
    assert {*files} <= {it.name for it in directory.iterdir()}
    assert not any(it.server.logged("WARNING|ERROR") for it in (first, second, third))


def test_a_directory_of_the_users_by_gunicorns_env(make_server: MakeServer, tmp_path: Path) -> None:
    """An endpoint of the app's own looks there too."""
    scraped = start(make_server, "--env", f"{VARIABLE}={tmp_path}/metrics", workers=1, also="own_endpoint")
    note(scraped.server, 3)
    assert scraped.app().items() >= counts([3]).items()
    own = ask(scraped.server, "own()")
    assert 'hits_total{path="/"} 3.0' in own
    assert 'all_level{pid="' in own  # prometheus_client's label
    assert ask(scraped.server, DIRECTORY) == f"{tmp_path}/metrics"
    assert directories(scraped.server.pid) == []


def test_a_directory_of_the_users_that_cannot_be(make_server: MakeServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    scraped = start(make_server, workers=1, env={VARIABLE: str(tmp_path / "file" / "metrics")})
    note(scraped.server, 3)
    assert scraped.app() == {}
    [line] = scraped.server.logged("WARNING|ERROR")
    assert f"the app's own metrics are not collected: {VARIABLE}={tmp_path}/file/metrics: " in line


# --- another user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_as_another_user(make_server: MakeServer, tmp_path: Path, preload: tuple[str, ...]) -> None:
    for directory in [tmp_path, *tmp_path.parents[:-1]]:
        if directory.owner() == "root" and not directory.stat().st_mode & stat.S_IXOTH:
            directory.chmod(0o755)
    keep = [] if readable_by_all(sys.base_prefix) else ["setpriv", "--securebits", "+no_setuid_fixup"]
    run = [*keep, sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    options = ("-u", "65534", "-g", "65534", "--umask", "0o077", *preload)
    more = 'hits.labels("/import").inc()\n'
    scraped = start(
        make_server,
        *options,
        workers=2,
        more=more,
        config=source("tell_directory", "drop_capabilities"),
        command=run,
    )
    server = scraped.server
    note(server, 3, 20)
    kill(server, 0)
    server.wait_ready(3)
    note(server, 4, 5)
    imports = 1 if preload else 3
    assert scraped.app().items() >= (counts([3, 20, 4, 5]) | {'hits_total{path="/import"}': imports}).items()
    owners = {it.name: it.stat().st_uid for it in told(server).iterdir() if "arbiter" not in it.name}
    assert owners.pop("server.lock") == 0
    assert {*owners.values()} == {65534}
    assert not server.logged("WARNING|ERROR.*metrics")
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not told(server).exists()


# --- the server's end


def test_the_end_leaves_no_directory(make_server: MakeServer) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        scraped = start(make_server, workers=1, config=TELL)
        note(scraped.server, 3)
        assert list(told(scraped.server).glob("*.db"))
        scraped.server.signal(number)
        assert scraped.server.wait_exit() == 0
        assert not told(scraped.server).exists()


@pytest.mark.parametrize(
    ("app", "options", "status"),
    [
        ("import nowhere", (), 3),
        ("import nowhere", ("--preload",), 3),
        (APP, ("--env", "MULTICORE_MIN_UPTIME=soon"), 1),
        (APP, ("--preload", "--env", "MULTICORE_MIN_UPTIME=soon"), 1),
        (APP, ("-b", "256.0.0.1:80"), 1),
    ],
    ids=["boot", "boot preload", "setting", "setting preload", "address"],
)
def test_a_start_that_fails_leaves_no_directory(
    make_server: MakeServer, app: str, options: tuple[str, ...], status: int
) -> None:
    server = make_server(app)
    server.write("gunicorn.conf.py", TELL)
    server.start("-w", "1", *options)
    assert server.wait_exit() == status
    assert not told(server).exists()


def test_a_killed_arbiters_directory_goes_with_the_next_start(make_server: MakeServer) -> None:
    killed, other = (start(make_server, workers=1, config=TELL) for _ in range(2))
    note(other.server, 3)
    killed.server.signal(signal.SIGKILL)
    killed.server.wait_exit()
    start(make_server, workers=1)
    assert not told(killed.server).exists()
    note(other.server, 4)
    assert other.app().items() >= counts([3, 4]).items()


def test_usr2(make_server: MakeServer, ending: list[int]) -> None:
    """The new arbiter counts from zero in a directory of its own, and takes the address over."""
    scraped = start(make_server, "--keep-alive", "0", workers=1, config=TELL)
    server = scraped.server
    note(server, 3)
    old = told(server)
    server.signal(signal.SIGUSR2)
    new = usr2s_arbiter(server)
    ending.append(new)
    server.wait_ready(2)
    assert told(server) != old
    assert scraped.app().items() >= counts([3]).items()
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    assert not old.exists()
    assert ask(server, f"[os.getppid(), {DIRECTORY}]") == [new, str(told(server))]
    note(server, 20)
    wait_for(lambda: server.logged("listening on .* now") or scraped.reachable(), "the address taken over")
    assert scraped.app().items() >= (counts([20]) | gauges("live", {0: 20}, sum=20)).items()
    os.kill(new, signal.SIGTERM)
    wait_gone(new)
    assert not told(server).exists()
