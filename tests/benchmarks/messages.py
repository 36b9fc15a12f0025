"""Messages between workers: how many a second, how long one takes, and a broadcast to many.

    python -m tests.benchmarks.messages [--rounds 5] [--messages 100000] [--workers 33]

Two workers for rate and latency, 33 for the broadcast (one sends to 32). A message is 100 bytes of JSON; the
handler is a plain function. The medians of the rounds, with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.common import LOCAL, OURS, Process, gunicorn, poll, provide, serving

PATIENCE = 120.0  # seconds


@contextmanager
def talking(directory: Path, workers: int) -> Iterator[Process]:
    with serving(directory, gunicorn(OURS, workers, "flooding:app", "--pythonpath", str(directory))) as it:
        poll(lambda: it.logged("ready after") == workers)
        yield it


def ask(process: Process, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{LOCAL}:{process.port}{path}", timeout=PATIENCE) as response:
        found: dict[str, Any] = json.load(response)
    return found


def row(title: str, values: list[float], unit: str) -> str:
    return f"| {title} | {statistics.median(values):,.0f} {unit} | {min(values):,.0f} to {max(values):,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=33)
    chosen = parser.parse_args()
    rates, medians, slow, broadcasts = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "flooding")
        with talking(directory, 2) as process:
            for _ in range(chosen.rounds):
                rates.append(ask(process, f"/rate?{chosen.messages}")["rate"])
                latency = ask(process, "/latency")
                medians.append(latency["median"] * 1e6)
                slow.append(latency["p99"] * 1e6)
        with talking(directory, chosen.workers) as process:
            for _ in range(chosen.rounds):
                found = ask(process, "/broadcast")
                assert found["took"] == chosen.workers - 1, found
                broadcasts.append(found["median"] * 1e6)
    print("| messages of 100 bytes | median | spread |")
    print("| --- | --- | --- |")
    print(row("from one worker to another, a second", rates, ""))
    print(row("one way, median", medians, "µs"))
    print(row("one way, p99", slow, "µs"))
    print(row(f"broadcast to {chosen.workers - 1} workers", broadcasts, "µs"))


if __name__ == "__main__":
    main()
