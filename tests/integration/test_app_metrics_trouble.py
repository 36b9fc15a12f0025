"""What is wrong with the app's own metrics is left out, said once and counted; serving goes on."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.app_metrics import TELL, VARIABLE, counts, kill, note, start, told
from tests.support.asking import ask
from tests.support.programs import program
from tests.support.scraping import each_worker
from tests.support.server import MakeServer

MANY = 3000
LEFT_OUT = "multicore_app_metrics_left_out"


def test_names_that_collide(make_server: MakeServer) -> None:
    """They are served once, said once, and counted."""
    scraped = start(make_server, workers=2, also="colliding_metrics")
    note(scraped.server, 3, 4)
    for _ in range(3):
        scrape = scraped.scrape()
    assert scrape.by(LEFT_OUT, "reason") == {"file": 0, "collision": 3}
    assert scrape.by("multicore_workers", "state")["ready"] == 2
    assert scrape.value("seconds_count") == 2
    assert scrape.value("multicore_mine_total") == 198
    assert 0 < (scrape.value("process_cpu_seconds_total") or 0) < 99
    said = scraped.server.logged("WARNING")
    assert [line.partition("the app's ")[2] for line in said] == [
        "gauge (all) multicore_workers is not shown: the server has that name",
        "counter process_cpu_seconds is not shown: the server has that name",
        "gauge (all) seconds_count is not shown: the app's histogram seconds has that name",
    ]


def test_promtool_has_nothing_to_say(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=2)
    note(scraped.server, 3, 4)
    text = scraped.scrape().text
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_file_that_is_broken(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=2, config=TELL)
    note(scraped.server, 3, 4)
    broken = told(scraped.server) / "counter_row9.db"
    broken.write_bytes(b"\xff" * 4096)
    for _ in range(3):
        scrape = scraped.scrape()
    assert scrape.by(LEFT_OUT, "reason") == {"file": 1, "collision": 0}
    assert scrape.app.items() >= counts([3, 4]).items()
    [line] = scraped.server.logged("WARNING|ERROR")
    assert "counter_row9.db of the app's metrics cannot be read" in line
    broken.unlink()
    assert scraped.scrape().by(LEFT_OUT, "reason") == {"file": 0, "collision": 0}


def test_a_directory_that_is_removed(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=1, config=TELL)
    note(scraped.server, 3)
    subprocess.run(["rm", "-r", told(scraped.server)], check=True)
    assert scraped.app() == {}
    note(scraped.server, 4)
    assert ask(scraped.server, "Counter('late', 'L.').inc()") is None
    kill(scraped.server, 0)
    scraped.server.wait_ready(2)
    note(scraped.server, 4)
    assert scraped.scrape().value("multicore_workers", state="ready") == 1


@contextlib.contextmanager
def small_tmpfs(path: Path) -> Iterator[bool]:
    """Whether there is one: that takes root and a kernel that allows it."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_file_system(make_server: MakeServer, tmp_path: Path) -> None:
    """The app counts on, answers, and is scraped; what had no room is not shown."""
    with small_tmpfs(tmp_path / "small") as mounted:
        if not mounted:
            pytest.skip("no tmpfs can be mounted here")
        scraped = start(make_server, workers=1, env={VARIABLE: str(tmp_path / "small")})
        server = scraped.server
        with each_worker(server, 1) as asks:
            for _ in range(2):
                asks[0](f"[hits.labels('n' + str(number)).inc() for number in range({MANY})]")
            values = asks[0](f"[hits.labels('n' + str(number))._value.get() for number in range({MANY})]")
            assert values == [2.0] * MANY
            shown = scraped.scrape().by("hits_total", "path")
            assert {*shown.values()} == {2.0}
            assert 100 < len(shown) < MANY
            [line] = server.logged("WARNING|ERROR")
            assert "the app's metrics have no room in" in line
            assert "No space left on device" in line
            kill(server, 0)
        server.wait_ready(2)
        assert scraped.scrape().by("hits_total", "path").keys() >= shown.keys()
        assert server.get("/?1").status_code == 200
        server.end()
