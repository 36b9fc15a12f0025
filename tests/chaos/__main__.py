"""Random faults and clients against real servers, replayable by their seed.

    python -m tests.chaos [--seed N] [--minutes 1] [--seconds 20] [--kind wsgi] [--transport tls] [--only 3,7]

Runs follow each other until the minutes are over, the first with this seed, each one with the next. Each has
a plan of so many seconds. A run that breaks a promise prints its plan; the log is kept in ``--logs``.
``--only`` carries out a part of the plan, by the numbers of its faults; ``--without emfile`` leaves some out.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.plan import KINDS, LOOPS, PROTOCOLS, TRANSPORTS, Plan, make_plan
from tests.chaos.run import Outcome, carry_out

FIXED = {"kind": KINDS, "transport": TRANSPORTS, "loop": LOOPS, "http": PROTOCOLS}


def main() -> int:
    args = parsed()
    until = time.monotonic() + args.minutes * 60
    seed: int = args.seed
    failed = 0
    while True:
        plan = planned(seed, args)
        with tempfile.TemporaryDirectory(prefix="mcs-") as directory:
            outcome = carry_out(plan, Path(directory))
        failed += bool(outcome.broken)
        report(outcome, args.logs)
        seed += 1
        if time.monotonic() >= until:
            return int(failed > 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        prog="python -m tests.chaos",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the first run")
    parser.add_argument("--minutes", type=float, default=0.0, help="one run, where this is not given")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--only", type=lambda text: [int(part) for part in text.split(",") if part])
    parser.add_argument("--without", type=lambda text: text.split(","), default=[], help="faults left out")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where logs are kept")
    for name, values in FIXED.items():
        parser.add_argument(f"--{name}", choices=values)
    return parser.parse_args()


def planned(seed: int, args: argparse.Namespace) -> Plan:
    fixed = {name: getattr(args, name) for name in FIXED if getattr(args, name)}
    plan = make_plan(seed, args.seconds, **fixed)
    only = range(len(plan.actions)) if args.only is None else args.only
    actions = (plan.actions[number] for number in only)
    return dataclasses.replace(plan, actions=tuple(it for it in actions if it.fault not in args.without))


def report(outcome: Outcome, logs: Path) -> None:
    setup = " ".join(str(value) for value in dataclasses.astuple(outcome.plan.setup))
    print(f"seed {outcome.plan.seed} ({setup}): {outcome.record.summary()}", flush=True)
    if outcome.broken:
        path = logs / f"chaos-{outcome.plan.seed}.log"
        path.write_text(outcome.log)
        print(f"{outcome}\nlog: {path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
