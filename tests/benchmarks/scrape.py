"""What a scrape of the app's own metrics costs, ours against prometheus_client's, measured in one run.

    python -m tests.benchmarks.scrape [--workers 8] [--label-sets 200] [--deaths 1000] [--rounds 7]

First both read the same files, of workers that have, for each label set (method, path and code, as a web
app's), a counter, a histogram with the default buckets and two gauges. Then workers die and are replaced,
again and again, each of them with a tenth of the label sets: with prometheus_client's files, one for each
pid, and with ours, one for each row. Figures are medians; rounds alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from multicore_server.ipc.report import Report
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT
from multicore_server.metrics.app import values as app_values
from multicore_server.metrics.app.directory import VARIABLE, Directory
from multicore_server.metrics.app.merge import AppMetrics, Owner, owners
from multicore_server.metrics.exposition import text
from tests.support.reports import report, slot

LABELS = ("method", "path", "code")
SHM = "/dev/shm"


def use_app(label_sets: int) -> None:
    """What a worker does between its start and its end."""
    registry = CollectorRegistry()
    metrics: list[Any] = [
        Counter("shop_requests", "Requests.", LABELS, registry=registry),
        Histogram("shop_request_seconds", "Time per request, in seconds.", LABELS, registry=registry),
        Gauge("shop_in_progress", "Requests.", LABELS, registry=registry, multiprocess_mode="livesum"),
        Gauge("shop_last_size_bytes", "The last answer.", LABELS, registry=registry),
    ]
    for number in range(label_sets):
        place = (("GET", "POST")[number % 2], f"/shop/{number // 4}", ("200", "404")[number // 2 % 2])
        counter, histogram, in_progress, size = (metric.labels(*place) for metric in metrics)
        counter.inc()
        histogram.observe(number / 100)
        in_progress.inc()
        size.set(number)


def run(process: Callable[[], None]) -> int:
    """Let another process do it, and have it killed then. Its pid."""
    pid = os.fork()
    if pid == 0:
        process()
        os.kill(os.getpid(), 9)
    if os.waitpid(pid, 0)[1] != 9:
        sys.exit("benchmark: a worker failed")
    return pid


def our_worker(row: int, label_sets: int) -> None:
    app_values.take_row(row)
    use_app(label_sets)


def stock_worker(label_sets: int) -> None:
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
    use_app(label_sets)


def report_of(workers: int) -> Report:
    return report(slots=[slot(number) for number in range(workers)])


def milliseconds(scrape: Callable[[], bytes]) -> float:
    started = time.perf_counter()
    scrape()
    return (time.perf_counter() - started) * 1000


def stock_scrape(path: Path) -> bytes:
    """As its documentation says: a new registry for each scrape."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(path))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def alternating(rounds: int, *scrapes: Callable[[], bytes]) -> list[list[float]]:
    results: list[list[float]] = [[] for _ in scrapes]
    for _ in range(rounds):
        for scrape, taken in zip(scrapes, results, strict=True):
            taken.append(milliseconds(scrape))
    return results


def cell(taken: list[float]) -> str:
    return f"{statistics.median(taken):,.1f} ({min(taken):,.1f}-{max(taken):,.1f}) ms"


def row(name: str, ours: list[float], stock: list[float], target: str) -> None:
    ratio = statistics.median(stock) / statistics.median(ours)
    print(f"| {name} | {cell(ours)} | {cell(stock)} | {ratio:.1f} | {target} |", flush=True)


def occupied(path: Path) -> str:
    files = list(path.glob("*.db"))
    return f"{len(files):,} files, {sum(file.stat().st_blocks for file in files) * 512 / 2**20:.1f} MiB"


class Ours:
    def __init__(self, path: Path, workers: int) -> None:
        self.path = path
        self.directory = Directory(path, ours=True)
        self.metrics = AppMetrics(path)
        self.owners: Mapping[str, Owner] = owners(report_of(workers), self.directory.identifier)

    def scrape(self) -> bytes:
        return text(self.metrics.collect(self.owners))

    def first_scrape(self) -> bytes:
        """Every key has to be parsed."""
        return text(AppMetrics(self.path).collect(self.owners))


def compare(ours: Ours, stock: Path, args: argparse.Namespace) -> None:
    app_values.install(ours.directory)
    for number in range(args.workers):
        run(lambda number=number: our_worker(number * ROWS_PER_SLOT, args.label_sets))  # type: ignore[misc]
        run(lambda: stock_worker(args.label_sets))
    cached, first, theirs = alternating(
        args.rounds, ours.scrape, ours.first_scrape, lambda: stock_scrape(ours.path)
    )
    size = f"{args.workers} workers x {args.label_sets} label sets"
    row(size, cached, theirs, ">= 4")
    row("the same, the first scrape or with new label sets", first, theirs, "")
    print(f"| files | {occupied(ours.path)} | {occupied(stock)} | | |", flush=True)


def bury(ours: Ours, stock: Path, args: argparse.Namespace) -> None:
    few = max(1, args.label_sets // 10)
    for number in range(args.deaths):
        slot = number % args.workers
        identifier = slot * ROWS_PER_SLOT
        run(lambda identifier=identifier: our_worker(identifier, few))  # type: ignore[misc]
        ours.directory.remove_live(ours.directory.identifier(identifier))
        mark_process_dead(run(lambda: stock_worker(few)), str(stock))  # type: ignore[no-untyped-call]
    # Those that live now are as those that did before.
    for slot in range(args.workers):
        run(lambda slot=slot: our_worker(slot * ROWS_PER_SLOT, args.label_sets))  # type: ignore[misc]
    cached = alternating(args.rounds, ours.scrape)[0]
    theirs = alternating(1, lambda: stock_scrape(stock))[0]
    row(f"after {args.deaths:,} deaths", cached, theirs, "as before")
    print(f"| files | {occupied(ours.path)} | {occupied(stock)} | | as before |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--label-sets", type=int, default=200)
    parser.add_argument("--deaths", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # forks, of a process that has no threads
    with tempfile.TemporaryDirectory(dir=SHM if os.access(SHM, os.W_OK) else None) as scratch:
        stock = Path(scratch, "stock")
        os.environ[VARIABLE] = str(stock)
        for path in (Path(scratch, "ours"), stock):
            path.mkdir()
        ours = Ours(Path(scratch, "ours"), args.workers)
        print(
            "| what | multicore_server | prometheus_client | ratio | target |\n"
            "| --- | --- | --- | --- | --- |",
            flush=True,
        )
        compare(ours, stock, args)
        bury(ours, stock, args)


if __name__ == "__main__":
    main()
