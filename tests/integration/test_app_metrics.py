"""The app's own metrics on /metrics: exact over all that happens to workers, and without pids."""

from __future__ import annotations

import signal

import pytest

from tests.support.app_metrics import DIRECTORY, TELL, counts, gauges, kill, levels, note, start, told
from tests.support.apps import ASK
from tests.support.deploying import deploy, hup, wait_workers
from tests.support.load import load
from tests.support.scraping import Scraped, each_worker
from tests.support.server import MakeServer
from tests.support.waiting import wait_for

AT_IMPORT = 'hits.labels("/import").inc(5)\nlevels["all"].set(7)\nlevels["sum"].set(7)\n'


# --- every type, whatever happens to workers


@pytest.mark.parametrize(
    ("app", "options"),
    [("app", ()), ("wsgi", ()), ("wsgi", ("--threads", "4"))],
    ids=["asgi", "wsgi", "threads"],
)
def test_every_type_from_every_worker(make_server: MakeServer, app: str, options: tuple[str, ...]) -> None:
    scraped = start(make_server, *options, workers=3, app=f"app:{app}")
    note(scraped.server, 20, 0.5, 4)
    values = {0: 20, 1: 0.5, 2: 4}
    shown = {"sum": 24.5, "min": 0.5, "max": 20, "mostrecent": 4}
    scrape = scraped.scrape()
    both = [gauges(live, values, **shown) for live in ("", "live")]
    assert scrape.app == counts([20, 0.5, 4]) | both[0] | both[1]
    kinds = {name: it.type for name, it in scrape.families.items() if "level" not in name}
    assert {name: kinds[name] for name in ("hits", "seconds", "size")} == {
        "hits": "counter", "seconds": "histogram", "size": "summary",
    }  # fmt: skip
    assert not scraped.server.logged("WARNING|ERROR")


def test_killed_workers(make_server: MakeServer) -> None:
    """What they counted stays, their live gauges go, their replacements go on where they were."""
    scraped = start(make_server, workers=2)
    server = scraped.server
    note(server, 3, 20)
    kill(server, 1)
    server.wait_ready(3)
    new = gauges("live", {0: 3, 1: 0}, sum=3, min=0, max=3, mostrecent=3)
    scraped.wait_for(new, "the live gauges of the replacement")
    old = gauges("", {0: 3, 1: 0}, sum=23, min=3, max=20, mostrecent=20)
    assert scraped.app() == counts([3, 20]) | old | new

    note(server, 4, 5)
    for instance in (0, 1):
        kill(server, instance)
    server.wait_ready(5)
    assert scraped.app().items() >= counts([3, 20, 4, 5]).items()


def test_workers_that_stay_away(make_server: MakeServer) -> None:
    """No sample of a live gauge is left of a worker that nobody replaces; the others keep its last value."""
    scraped = start(make_server, workers=2, config=TELL, env={"MULTICORE_AUTORESTART": "false"})
    note(scraped.server, 3, 20)
    scraped.scrape()
    kill(scraped.server, 1)
    live = gauges("live", {0: 3}, sum=3, min=3, max=3, mostrecent=3)

    def only_live() -> bool:
        return levels(scraped.app(), "live") == live

    wait_for(only_live, "the dead worker's live gauges are gone")
    old = gauges("", {0: 3, 1: 20}, sum=23, min=3, max=20, mostrecent=20)
    assert scraped.app() == counts([3, 20]) | old | live
    owners = {file.stem.rpartition("_")[2] for file in told(scraped.server).glob("gauge_live*")}
    assert owners == {"row0"}  # so that prometheus_client's own collector is right as well


def test_reloads(make_server: MakeServer) -> None:
    """Each worker of each generation notes something; files are as many as the rows they take turns at."""
    scraped = start(make_server, workers=2)
    server = scraped.server
    noted: list[float] = []
    for turn in range(3):
        note(server, turn + 1, turn + 10)
        noted += [turn + 1, turn + 10]
        app = scraped.app()
        assert app.items() >= counts(noted).items()
        own = {0: turn + 1.0, 1: turn + 10.0}
        shown = gauges("live", own, sum=sum(own.values()), min=own[0], max=own[1], mostrecent=own[1])
        assert levels(app, "live") == shown
        assert app.items() >= gauges("", own, max=turn + 10, mostrecent=turn + 10).items()
        hup(server)
        wait_workers(server, 2)
    scraped.wait_for(counts(noted), "all that was counted")
    with each_worker(server, 1) as ask:
        files = ask[min(ask)](f"[it.name for it in Path({DIRECTORY}).glob('*.db')]")
    assert len({name.rpartition("_")[2] for name in files}) <= 2 * 4


METRIC = "from prometheus_client import Counter, Gauge, Histogram, Summary\n"
FIRST = METRIC + 'Counter("x", "X.").inc(100)\nGauge("y", "Y.", multiprocess_mode="max").set(111)\n'
FIRST += 'Histogram("z", "Z.").observe(0.5)\n'
SECOND = METRIC + 'Gauge("x", "X.", multiprocess_mode="livesum").set(7)\n'
SECOND += 'Gauge("y", "Y.", multiprocess_mode="mostrecent").set(5)\nSummary("z", "Z.").observe(0.25)\n'


def test_deployments_that_change_types(make_server: MakeServer) -> None:
    """What living workers make is served, also where they have the rows of those that made something else."""
    scraped = Scraped(make_server(ASK + FIRST))
    server = scraped.server
    scraped.start("-w", "2", ready=2)
    scraped.wait_for({"x_total": 200, "y": 111, "z_count": 2}, "the first types")
    for generation in range(1, 4):
        deploy(server, generation, SECOND)
        hup(server)
        wait_workers(server, 2)
        scraped.wait_for({"x": 14, "y": 5, "z_count": 2 * generation}, "the second types")
        assert not {"x_total", "z_bucket"} & {name.partition("{")[0] for name in scraped.app()}
        assert scraped.scrape().by("multicore_app_metrics_left_out", "reason")["collision"] == 0
    deploy(server, 4, FIRST)
    hup(server)
    wait_workers(server, 2)
    scraped.wait_for({"x_total": 400, "y": 111, "z_count": 4}, "what was counted before, and more")
    assert scraped.scrape().by("multicore_app_metrics_left_out", "reason")["collision"] == 0


def test_scale_down_and_up(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=2)
    server = scraped.server
    note(server, 3, 20)
    server.signal(signal.SIGTTOU)
    wait_workers(server, 1)
    alone = gauges("live", {0: 3}, sum=3, min=3, max=3, mostrecent=3)
    wait_for(lambda: levels(scraped.app(), "live") == alone, "the live gauges of one worker")
    assert scraped.app().items() >= counts([3, 20]).items()
    assert scraped.app().items() >= gauges(sum=23, min=3, max=20, mostrecent=20).items()

    for ready in (3, 4):
        server.signal(signal.SIGTTIN)
        server.wait_ready(ready)
    note(server, 4, 5, 6)
    both = gauges("live", {0: 4, 1: 5, 2: 6}, sum=15, min=4, max=6, mostrecent=6)
    assert scraped.app().items() >= (counts([3, 20, 4, 5, 6]) | both | gauges("", {0: 4, 1: 5, 2: 6})).items()


def test_nothing_is_lost_or_counted_twice_under_load(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=2)
    server = scraped.server
    with load(server, "hit()") as requests:
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP):
            before = len(server.logged("ready after"))
            server.signal(number)
            if number is not signal.SIGTTOU:
                server.wait_ready(before + 1)
    assert scraped.app()['hits_total{path="/"}'] == requests.answers[1]


def test_a_kill_under_load_costs_nothing_that_was_answered(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=2)
    answered = 0
    for turn in range(3):
        with each_worker(scraped.server, 2) as ask:
            answered += sum(ask[instance]("hit()") for instance in ask for _ in range(50))
            kill(scraped.server, turn % 2)
        scraped.server.wait_ready(3 + turn)
        assert scraped.app()['hits_total{path="/"}'] == answered


def test_what_multiprocess_mode_cannot_do_is_not_shown(make_server: MakeServer) -> None:
    scraped = start(make_server, workers=1, also="unusual_metrics")
    note(scraped.server, 3)
    scrape = scraped.scrape()
    kinds = {name for name in scrape.app if "_level" not in name}
    assert kinds == {*counts([3]), "traced_total", 'computed{worker="0"}'}
    assert scrape.value("computed", worker="0") == 0
    assert "abc" not in scrape.text


@pytest.mark.parametrize("way", ["forked", "spawned"])
def test_a_child_of_a_worker(make_server: MakeServer, way: str) -> None:
    """What it counts is added; it has no number, so gauges by worker are the worker's alone. The live gauges
    of one that was forked end with it; prometheus_client has no way to know about the others."""
    scraped = start(make_server, workers=1)
    note(scraped.server, 3)
    with each_worker(scraped.server, 1) as ask:
        assert ask[0](f"{way}(20)") == 0
    app = scraped.app()
    assert app.items() >= counts([3, 20]).items()
    assert levels(app, "") == gauges("", {0: 3}, sum=23, min=3, max=20, mostrecent=20)
    alone = gauges("live", {0: 3}, sum=3, min=3, max=3, mostrecent=3)
    both = gauges("live", {0: 3}, sum=23, min=3, max=20, mostrecent=20)
    assert levels(app, "live") == (alone if way == "forked" else both)


def test_a_label_of_the_apps_own_called_worker(make_server: MakeServer) -> None:
    more = 'own = Gauge("own", "O.", ["worker"])\nown.labels("mine").set(1)\n'
    assert start(make_server, workers=1, more=more).app()['own{exported_worker="mine",worker="0"}'] == 1


# --- preloaded


def test_preload(make_server: MakeServer) -> None:
    """The arbiter has made the metrics, and counted: once, whatever becomes of workers."""
    scraped = start(make_server, "--preload", workers=2, more=AT_IMPORT)
    server = scraped.server
    at_import = {'hits_total{path="/import"}': 5, **gauges("", {0: 7, 1: 7}, sum=7)}
    assert scraped.app().items() >= at_import.items()
    note(server, 3, 20)
    shown = (
        counts([3, 20]) | {'hits_total{path="/import"}': 5} | gauges("", {0: 3, 1: 20}, sum=30, min=3, max=20)
    )
    assert scraped.app().items() >= shown.items()
    kill(server, 1)
    server.wait_ready(3)
    hup(server)
    wait_workers(server, 2)
    carried = gauges("", {0: 7, 1: 7}) | gauges("live", {0: 0, 1: 0}, sum=0)
    scraped.wait_for(counts([3, 20]) | carried, "what was counted, and the gauges as they were imported")
    note(server, 4, 5)
    assert scraped.app().items() >= counts([3, 20, 4, 5]).items()
    assert scraped.app()['hits_total{path="/import"}'] == 5
