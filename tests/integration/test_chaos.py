"""Seeded faults and clients against real servers (`tests.chaos`): these seeds in each run, others by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.plan import Plan, make_plan
from tests.chaos.run import carry_out

SECONDS = 20.0
PLANS = [
    make_plan(1, SECONDS, kind="asgi", transport="plain"),
    make_plan(2, SECONDS, kind="wsgi", transport="tls"),
    make_plan(3, SECONDS, kind="threads", transport="unix"),
]


# A client that gives up in the middle of a connect or a handshake leaves its transport to the collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.seed}-{plan.setup.kind}")
def test_no_promise_is_broken(plan: Plan, tmp_path: Path) -> None:
    outcome = carry_out(plan, tmp_path)
    print(outcome, outcome.log, sep="\n")  # pytest shows it on failure only
    assert outcome.broken == []
    assert sum(outcome.record.answered.values()) > 300
