"""prometheus_client's metrics in our files: exact over forks and kills, and never an error in the app."""

from __future__ import annotations

import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from multicore_server.metrics.app import values as app_values
from multicore_server.metrics.app.directory import VARIABLE, Directory
from multicore_server.metrics.app.merge import ROUNDING, Owner
from tests.unit.app_process import (
    PLAIN,
    as_worker,
    forked,
    hit,
    in_one_process,
    living,
    run_and_kill,
    shown,
    started,
)

# --- whose the values are


def workers(path: str) -> None:
    metrics = started(path)
    for row in (0, 4, 5):
        run_and_kill(lambda row=row: hit(row, 10))  # type: ignore[misc]
    assert shown(metrics) == {"hits_total": 30}
    assert {it.name for it in Path(path).iterdir()} == {f"counter_row{row}.db" for row in (0, 4, 5)}
    assert "prometheus_client" not in sys.modules


def test_what_killed_workers_have_counted_counts(tmp_path: Path) -> None:
    in_one_process(workers, tmp_path)


def every_type(path: str) -> None:
    metrics = started(path)

    def act() -> None:
        client = as_worker(0)
        client.Counter("c", "C.", ["a"]).labels("x").inc(2.5)
        client.Summary("s", "S.").observe(3)
        client.Histogram("h", "H.", buckets=(1, 2)).observe(1.5)
        gauge = client.Gauge("g", "G.")
        gauge.set(7)
        gauge.dec(2)
        assert gauge._value.get() == 5
        client.Gauge("r", "R.", multiprocess_mode="mostrecent").set(9)

    run_and_kill(act)
    assert shown(metrics, living(0)) == {
        'c_total{a="x"}': 2.5,
        "s_count": 1,
        "s_sum": 3,
        'h_bucket{le="1.0"}': 0,
        'h_bucket{le="2.0"}': 1,
        'h_bucket{le="+Inf"}': 1,
        "h_sum": 1.5,
        "h_count": 1,
        'g{worker="0"}': 5,
        "r": 9,
    }


def test_every_type_of_metric(tmp_path: Path) -> None:
    in_one_process(every_type, tmp_path)


def preloaded(path: str) -> None:
    metrics = started(path)
    from prometheus_client import Counter, Gauge

    counter = Counter("hits", "Hits.")
    version = Gauge("version", "V.")
    version.set(3)
    lowest = Gauge("lowest", "L.", multiprocess_mode="min")
    counter.inc(100)

    def act(row: int) -> None:
        app_values.take_row(row)
        assert counter._value.get() == 0
        counter.inc()
        lowest.set(5 + row)

    for row in (0, 4):
        run_and_kill(lambda row=row: act(row))  # type: ignore[misc]
    counter.inc()
    expected = {"hits_total": 103, 'version{worker="0"}': 3, 'version{worker="1"}': 3, "lowest": 5}
    assert shown(metrics, living(0, 4)) == expected


def test_metrics_that_were_made_before_the_fork(tmp_path: Path) -> None:
    in_one_process(preloaded, tmp_path)


def children(path: str) -> None:
    metrics = started(path)

    def act() -> None:
        counter = as_worker(0).Counter("hits", "Hits.")
        counter.inc()
        for _ in range(20):
            assert forked(counter.inc) == 0
        both = [lambda: forked(counter.inc) and None, counter.inc]  # a child of a child, and itself
        assert forked(lambda: [it() for it in both]) == 0
        assert shown(metrics) == {"hits_total": 23}

    assert forked(act) == 0
    names = {it.name for it in Path(path).glob("*.db")}
    assert names == {"counter_row0.db", "counter_row0-0.db", "counter_row0-1.db"} or names == {
        "counter_row0.db",
        "counter_row0-0.db",
    }


def test_children_of_a_worker_have_files_of_their_own_and_few(tmp_path: Path) -> None:
    in_one_process(children, tmp_path)


def live_children(path: str) -> None:
    metrics = started(path)
    reader, writer = os.pipe()

    def act() -> None:
        gauge = as_worker(0).Gauge("busy", "B.", multiprocess_mode="livesum")
        gauge.set(1)
        pid = os.fork()
        if pid == 0:
            gauge.set(10)
            os.write(writer, b".")
            signal.pause()
        os.read(reader, 1)
        assert shown(metrics, living(0)) == {"busy": 11}
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        assert shown(metrics, living(0)) == {"busy": 1}

    assert forked(act) == 0


def test_a_live_gauge_of_a_child_counts_while_it_lives(tmp_path: Path) -> None:
    in_one_process(live_children, tmp_path)


def locked(path: str) -> None:
    started(path)
    counter = as_worker(0).Counter("hits", "Hits.")
    counter.inc()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with type(counter._value).book.lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert forked(counter.inc) == 0  # or it waits for ever
    release.set()
    thread.join()


def test_a_fork_while_another_thread_counts(tmp_path: Path) -> None:
    in_one_process(locked, tmp_path)


def threads(path: str) -> None:
    metrics = started(path)
    counter = as_worker(0).Counter("hits", "Hits.", ["n"])

    def act() -> None:
        for number in range(5000):
            counter.labels(str(number % 100)).inc()

    running = [threading.Thread(target=act) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert sum(shown(metrics).values()) == 20_000


def test_threads_lose_nothing(tmp_path: Path) -> None:
    in_one_process(threads, tmp_path)


def generations(path: str) -> None:
    metrics = started(path)
    directory = Directory(Path(path), ours=True)
    import prometheus_client  # noqa: F401 - once for all of them

    def act(row: int) -> None:
        client = as_worker(row)
        client.Counter("hits", "Hits.").inc()
        client.Gauge("busy", "B.", multiprocess_mode="livesum").set(1)
        client.Gauge("size", "S.").set(1)

    files, total = set(), 0.0
    for number in range(200):
        row = number % 4
        run_and_kill(lambda row=row: act(row))  # type: ignore[misc]
        assert shown(metrics, living(row))["busy"] == 1
        directory.remove_live(f"row{row}")
        after = shown(metrics)["hits_total"]
        assert after == total + 1
        total = after
        files.add(len(list(Path(path).iterdir())))
    assert max(files) == 2 * 4  # counters, and gauges that are not live


def test_200_generations_leave_as_many_files_as_there_are_rows(tmp_path: Path) -> None:
    in_one_process(generations, tmp_path)


def coming_and_going(path: str) -> None:
    metrics = started(path)
    import prometheus_client  # noqa: F401 - once for all of them

    def arbiter() -> None:
        for number in range(60):
            run_and_kill(lambda number=number: hit(number % 3, 50))  # type: ignore[misc]

    pid = os.fork()
    if pid == 0:
        arbiter()
        os._exit(0)
    totals = [0.0]
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        totals.append(shown(metrics).get("hits_total", 0.0))
    assert totals == sorted(totals)
    assert len(set(totals)) > 10  # there was something to see
    assert shown(metrics) == {"hits_total": 3000}


def test_sums_never_fall_while_workers_come_and_go(tmp_path: Path) -> None:
    in_one_process(coming_and_going, tmp_path)


def changed_types(path: str) -> None:
    """Three workers with the same row; the type changes with the second one."""
    metrics = started(path)
    import prometheus_client  # noqa: F401 - once for all of them

    def counted() -> None:
        as_worker(0).Counter("level", "L.").inc(3)

    def gauged() -> None:
        as_worker(0).Gauge("level", "L.", multiprocess_mode="sum").set(7)

    def next_worker(act: Callable[[], None]) -> dict[str, float]:
        owner = Owner("0", alive=True, shown=True, started=time.time())
        run_and_kill(act)
        found = shown(metrics, {"row0": owner})
        time.sleep(2 * ROUNDING)
        assert metrics.collisions == 0
        return found

    assert next_worker(counted) == {"level_total": 3}
    assert next_worker(gauged) == {"level": 7}
    assert next_worker(gauged) == {"level": 7}
    assert next_worker(counted) == {"level_total": 6}


def test_a_metric_has_the_type_that_the_rows_owner_gives_it(tmp_path: Path) -> None:
    in_one_process(changed_types, tmp_path)


# --- prometheus_client


def lazily(path: str) -> None:
    started(path)
    assert "prometheus_client" not in sys.modules
    from prometheus_client import values

    assert issubclass(values.ValueClass, app_values.Value)
    assert inspect.getsource(values).startswith("import os")
    assert not [it for it in sys.meta_path if "app_values" in type(it).__module__]


def test_prometheus_client_is_not_imported_for_an_app_that_does_not(tmp_path: Path) -> None:
    in_one_process(lazily, tmp_path)


def prior(path: str) -> None:
    from prometheus_client import REGISTRY, Counter

    early = Counter("early", "E.")
    early.inc()
    metrics = started(path)
    early.inc()
    late = Counter("hits", "Hits.")
    late.inc()
    assert REGISTRY.get_sample_value("early_total") == 2
    assert shown(metrics) == PLAIN
    app_values.uninstall()
    late.inc()
    assert REGISTRY.get_sample_value("hits_total") == 1  # in memory, from 0
    del os.environ[VARIABLE]


def test_metrics_from_before_go_on(tmp_path: Path) -> None:
    in_one_process(prior, tmp_path)


def uninstalled(path: str) -> None:
    started(path)
    app_values.uninstall()
    del os.environ[VARIABLE]
    from prometheus_client import values

    assert values.ValueClass is values.MutexValue
    app_values.take_row(0)


def test_it_can_be_uninstalled(tmp_path: Path) -> None:
    in_one_process(uninstalled, tmp_path)


def endpoint(path: str) -> None:
    started(path)
    for row in (0, 4):
        run_and_kill(lambda row=row: hit(row))  # type: ignore[misc]
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    assert b"hits_total 2.0" in generate_latest(registry)
    mark_process_dead(0)  # type: ignore[no-untyped-call]  # a hook of the user's, with a pid


def test_an_endpoint_of_the_apps_own_still_works(tmp_path: Path) -> None:
    in_one_process(endpoint, tmp_path)
