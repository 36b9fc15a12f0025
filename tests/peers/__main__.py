"""Other people's tests against this server: uvicorn's and gunicorn's own, of the installed versions.

    python -m tests.peers [uvicorn|gunicorn] [--suite NAME] [--loop uvloop] [-k EXPRESSION]

multicore_server has to be installed, with the dependency group `peers`: `tox -e peers` sees to that.

The tests are taken from the package index when they are first asked for, and kept in the user's cache. What
is expected to fail stands in `differences.py`. The exit status is 1 for anything else that fails, and where
an expected difference is none any more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tests.peers.differences import DIFFERENCES
from tests.peers.sources import copy_of
from tests.peers.suites import SUITES, Suite
from tests.peers.verdict import Result, Verdict, described, judge, matches

LOOPS = ("uvloop", "asyncio")
PATIENCE = 60  # seconds for one test
PASSED, FAILED, NONE = 0, 1, 5  # pytest's exit statuses; `-k` may choose none
ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests"  # they are called `peers` there: `tests` is the name of uvicorn's own


def main() -> int:
    args = parsed()
    good = True
    for suite in SUITES:
        if args.peer in (None, suite.peer) and matches(args.suite, suite.name):
            for loop in args.loop or LOOPS:
                verdict = carried_out(suite, loop, args)
                print(f"{suite.name}, {suite.peer} {version(suite.peer)}, {loop}")
                print(described(verdict), flush=True)
                good = good and verdict.is_good
    return int(not good)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("peer", nargs="?", choices=("uvicorn", "gunicorn"))
    parser.add_argument("--suite", default="*", help="a name or a pattern: 'uvicorn server'")
    parser.add_argument("--loop", action="append", choices=LOOPS)
    parser.add_argument("-k", default="", metavar="EXPRESSION", help="of pytest: a part of the tests")
    parser.add_argument("-n", default="2", help="processes that run tests at once")
    parser.add_argument("-v", action="store_true", help="show what pytest says")
    return parser.parse_args()


def carried_out(suite: Suite, loop: str, args: argparse.Namespace) -> Verdict:
    name = f"{suite.name} {loop}"
    with tempfile.TemporaryDirectory(prefix="mcs-") as directory:
        sources = copy_of(suite.peer, Path(directory))
        folder = ROOT if suite.is_ours else sources / suite.folder
        report = Path(directory) / "report"
        with suite.services(folder, loop) as services:
            ours = {"PEERS_REPORT": str(report), "PEERS_LOOP": loop, "PEERS_SOURCES": str(sources)}
            status = pytest(suite, args, folder, {**environment(), **services, **ours})
        results = list(read(report, name))
    if status not in (PASSED, FAILED, NONE):
        results.append(Result(name, "all tests", "failed", f"pytest has ended with status {status}"))
    known = [difference for difference in DIFFERENCES if matches(difference.suite, name)]
    return judge(results, known, whole=not args.k)


def environment() -> dict[str, str]:
    path = [str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def pytest(suite: Suite, args: argparse.Namespace, folder: Path, environment: dict[str, str]) -> int:
    plugins = [part for name in ("report", *suite.plugins) for part in ("-p", f"peers.plugins.{name}")]
    at_once = ["-n", args.n] if suite.at_once else ["-p", "no:xdist"]
    own = ["-o", "addopts=", "--timeout", str(PATIENCE), "-q"]
    command = [sys.executable, "-m", "pytest", *plugins, *at_once, *own, *suite.options, *suite.paths]
    output = None if args.v else subprocess.DEVNULL
    some = ["-k", args.k] if args.k else []
    ended = subprocess.run([*command, *some], check=False, cwd=folder, env=environment, stdout=output)
    return ended.returncode


def read(report: Path, suite: str) -> Iterator[Result]:
    for line in report.read_text().splitlines() if report.exists() else ():
        yield Result(suite, **json.loads(line))


if __name__ == "__main__":
    sys.exit(main())
