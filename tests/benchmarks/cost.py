"""CPU time a request, ours and the peers', interleaved in one run.

    python -m tests.benchmarks.cost [--apps hello,large] [--servers ours,uvicorn-worker] [--workers 1,2]
                                    [--connections 1,8,32,128] [--rounds 5] [--seconds 1] [--json FILE]
                                    [--new-heads]
    python -m tests.benchmarks.cost --instructions [--apps hello,wsgi] [--servers ours,uvicorn-worker]
                                    [--baseline FILE] [--update]

Needs ``wrk`` and, in the same environment, the dependency group ``benchmark``. Before a change to a hot path,
and after it: the ratios carry over from machine to machine, the times do not. The client has the last CPU to
itself; two workers share the machine with it. CPU time is user and system time of all the server's
processes. Each cell has the median of the rounds' ratios to the first peer, and in brackets its spread.

With ``--new-heads``, no two requests have the same head: a worker recognises heads that come again.

With ``--instructions`` it is another run, compared with a baseline: see ``instructions.py`` beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.benchmarks import instructions
from tests.benchmarks.common import LOCAL, Process, cpu_seconds_of, provide, serving
from tests.benchmarks.servers import APPS, SERVERS

CPUS = sorted(os.sched_getaffinity(0))
CLOSE = ["-H", "Connection: close"]
WARM_UP = 1  # seconds
NEW_HEADS = """\
local number = 0
request = function()
  number = number + 1
  return wrk.format("GET", "/?" .. number)
end
"""


class Sample(NamedTuple):
    cost: float  # microseconds of CPU a request
    rate: float  # requests a second
    p99: float  # milliseconds


def cpu_seconds(server: Process) -> float:
    """Of the server and all its children."""
    process = psutil.Process(server.process.pid)
    return sum(cpu_seconds_of(each.pid) for each in (process, *process.children(recursive=True)))


def load(server: Process, seconds: int, connections: int, options: list[str]) -> tuple[int, float, float]:
    command = ["taskset", "-c", str(CPUS[-1]), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += ["--latency", *options, f"http://{LOCAL}:{server.port}/"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        sys.exit(f"benchmark: failed requests\n{said}")
    match = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    assert match is not None, said
    p99 = float(match[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[match[2]]
    requests = int(re.findall(r"(\d+) requests in", said)[0])
    return requests, float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0]), p99


def sample(server: Process, seconds: int, connections: int, options: list[str]) -> Sample:
    before = cpu_seconds(server)
    requests, rate, p99 = load(server, seconds, connections, options)
    return Sample((cpu_seconds(server) - before) / max(requests, 1) * 1e6, rate, p99)


@contextlib.contextmanager
def all_serving(directory: Path, app: str, names: list[str], workers: int) -> Iterator[dict[str, Process]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for name in names:
            found[name] = stack.enter_context(serving(directory, SERVERS[name](app, workers)))
        yield found


def measure(args: argparse.Namespace, directory: Path) -> Iterator[tuple[str, dict[str, list[Sample]]]]:
    """Each cell's name, and its samples by server."""
    for name, workers in itertools.product(args.apps, args.workers):
        app, known = APPS[name]
        os.sched_setaffinity(0, CPUS[:1] if workers == 1 else CPUS)
        names = [server for server in known if server in args.servers]
        heads = ["-s", str(directory / "heads.lua")] if args.new_heads else []
        with all_serving(directory, app, names, workers) as servers:
            modes = [("kept alive", heads), ("close", [*heads, *CLOSE])]
            for (mode, options), connections in itertools.product(modes, args.connections):
                for server in servers.values():
                    load(server, WARM_UP, connections, options)
                samples: dict[str, list[Sample]] = {name: [] for name in servers}
                for number in range(args.rounds):
                    order = list(servers) if number % 2 else list(servers)[::-1]
                    for each in order:
                        samples[each].append(sample(servers[each], args.seconds, connections, options))
                yield f"{name}, {workers} w, {mode}, c={connections}", samples


def cell(samples: list[Sample], base: list[Sample]) -> str:
    ratios = [mine.cost / theirs.cost for mine, theirs in zip(samples, base, strict=True)]
    cost, rate = (
        statistics.median(values) for values in zip(*((it.cost, it.rate) for it in samples), strict=True)
    )
    p99 = statistics.median(it.p99 for it in samples)
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return f"**{statistics.median(ratios):.2f}** ({spread}) {cost:.1f} us, {rate:,.0f}/s, p99 {p99:.1f} ms"


def names_of(text: str) -> list[str]:
    return text.split(",")


def numbers_of(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--apps", type=names_of, default=list(APPS))
    parser.add_argument("--servers", type=names_of, default=list(SERVERS))
    parser.add_argument("--workers", type=numbers_of, default=[1])
    parser.add_argument("--connections", type=numbers_of, default=[32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--new-heads", action="store_true", help="no two requests have the same head")
    parser.add_argument("--json", type=Path, help="write the samples there")
    parser.add_argument("--instructions", action="store_true", help="compare them with the baseline")
    parser.add_argument("--baseline", type=Path, default=instructions.BASELINE)
    parser.add_argument("--update", action="store_true", help="write the baseline")
    args = parser.parse_args()
    if args.instructions:
        sys.exit(instructions.run(args.apps, args.servers, args.baseline, update=args.update))
    if shutil.which("wrk") is None:
        sys.exit("benchmark: wrk is not installed (apt-get install wrk)")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "costs")
        (directory / "heads.lua").write_text(NEW_HEADS)
        print(f"| cell | {' | '.join(args.servers)} |\n| --- |{' --- |' * len(args.servers)}", flush=True)
        for name, samples in measure(args, directory):
            base = next((it for it in samples if it != "ours"), "ours")
            cells = [cell(samples[it], samples[base]) if it in samples else "" for it in args.servers]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            found[name] = samples
    if args.json:
        args.json.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
