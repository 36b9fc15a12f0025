"""RestartPolicy by tables of histories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from multicore_server.fleet.policy import Decision, End, History, RestartPolicy, Verdict, delay, judge

POLICY = RestartPolicy()
NEVER = None  # ready: the boot failed
CRASH, KILLED = 1, None  # exit codes: a death by signal has none


def replay(policy: RestartPolicy, ends: Sequence[End], jitter: float = 0.0) -> list[Verdict]:
    """One slot's life: every end is judged by the history that the ones before have left."""
    history, verdicts = History(), []
    for end in ends:
        verdicts.append(judge(policy, history, end, jitter))
        history = verdicts[-1].history
    return verdicts


def delays(policy: RestartPolicy, uptimes: Sequence[float | None], jitter: float = 0.0) -> list[float]:
    verdicts = replay(policy, [End(CRASH, uptime) for uptime in uptimes], jitter)
    assert {verdict.decision for verdict in verdicts} == {Decision.RESTART}
    return [round(verdict.delay, 4) for verdict in verdicts]


HISTORIES = {
    "a first crash restarts at once": (POLICY, [5.0], [0]),
    "a first failed boot restarts at once": (POLICY, [NEVER], [0]),
    "then times 1.5": (POLICY, [0.5] * 5, [0, 0.1, 0.15, 0.225, 0.3375]),
    "failed boots count as crashes": (POLICY, [0.5, NEVER, 0.5], [0, 0.1, 0.15]),
    "stable workers always restart at once": (POLICY, [30.0] * 4, [0, 0, 0, 0]),
    "a stable worker clears all": (POLICY, [1.1, 1.1, 1.1, 30.0, 1.1, 1.1], [0, 0.1, 0.15, 0, 0, 0.1]),
    "just short of stable clears nothing": (POLICY, [1.1, 1.1, 29.9, 1.1], [0, 0.1, 0.15, 0.225]),
    "backoff_reset is a setting": (replace(POLICY, backoff_reset=5.0), [1.0, 1.0, 5.0, 1.0], [0, 0.1, 0, 0]),
    "the first wait is a setting": (replace(POLICY, exp_backoff_restart_delay=2.0), [1.1] * 3, [0, 2, 3]),
    "the cap is a setting": (
        replace(POLICY, exp_backoff_restart_delay=2.0, max_restart_delay=4.0),
        [1.1] * 5,
        [0, 2, 3, 4, 4],
    ),
    "no backoff": (replace(POLICY, exp_backoff_restart_delay=0.0), [1.1] * 4, [0, 0, 0, 0]),
    "a fixed wait, also the first time and when stable": (
        replace(POLICY, restart_delay=3.0, exp_backoff_restart_delay=0.0),
        [1.1, 1.1, 60.0],
        [3, 3, 3],
    ),
    "the longer wait of both": (
        replace(POLICY, restart_delay=0.12, backoff_reset=9.0),
        [1.1] * 4,
        [0.12, 0.12, 0.15, 0.225],
    ),
    "a fixed wait above the cap of the other": (
        replace(POLICY, restart_delay=20.0),
        [1.1] * 3,
        [20, 20, 20],
    ),
}


@pytest.mark.parametrize(("policy", "uptimes", "expected"), HISTORIES.values(), ids=HISTORIES)
def test_delays(policy: RestartPolicy, uptimes: list[float | None], expected: list[float]) -> None:
    assert delays(policy, uptimes) == expected


def test_up_and_down_cycles_slow_down_to_the_cap() -> None:
    waits = delays(POLICY, [1.1] * 1000)
    assert waits == sorted(waits)
    assert waits[15:] == [15.0] * 985


def test_ten_thousand_exits_do_not_overflow() -> None:
    assert delays(POLICY, [1.1] * 10_000)[-1] == 15.0


def test_without_backoff_ten_thousand_exits_stay_without_it() -> None:
    policy = replace(POLICY, exp_backoff_restart_delay=0.0)
    assert delay(policy, History(early=10_000), 0.0) == 0.0


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 15.0), (0.5, 13.125), (0.9999, 11.25)])
def test_jitter_shortens_by_up_to_a_quarter(jitter: float, expected: float) -> None:
    assert delay(POLICY, History(early=50), jitter) == pytest.approx(expected, abs=0.001)


def test_jitter_leaves_restart_delay_alone() -> None:
    assert delay(replace(POLICY, restart_delay=15.0), History(early=50), 0.9) == 15.0


RESTART, STOP, GIVE_UP = Decision.RESTART, Decision.STOP, Decision.GIVE_UP
ON_FAILURE = replace(POLICY, autorestart="on-failure")
NO_RESTART = replace(POLICY, autorestart="false")
STOP_CODES = replace(POLICY, stop_exit_codes=frozenset({0, 3}))

DECISIONS = {
    "exit 0 restarts": (POLICY, End(0, 60.0), RESTART),
    "a crash restarts": (POLICY, End(CRASH, 60.0), RESTART),
    "a signal restarts": (POLICY, End(KILLED, 60.0), RESTART),
    "on-failure: exit 0 stops": (ON_FAILURE, End(0, 60.0), STOP),
    "on-failure: a boot that ends with 0 stops": (ON_FAILURE, End(0, NEVER), STOP),
    "on-failure: a crash restarts": (ON_FAILURE, End(CRASH, 60.0), RESTART),
    "on-failure: a signal restarts": (ON_FAILURE, End(KILLED, 60.0), RESTART),
    "false: exit 0 stops": (NO_RESTART, End(0, 60.0), STOP),
    "false: a crash stops": (NO_RESTART, End(CRASH, 60.0), STOP),
    "false: a signal stops": (NO_RESTART, End(KILLED, 60.0), STOP),
    "a stop code stops": (STOP_CODES, End(3, 60.0), STOP),
    "a stop code stops also at boot": (STOP_CODES, End(3, NEVER), STOP),
    "stop code 0 stops": (STOP_CODES, End(0, 60.0), STOP),
    "another code restarts": (STOP_CODES, End(CRASH, 60.0), RESTART),
    "a signal is no stop code": (STOP_CODES, End(KILLED, 60.0), RESTART),
}


@pytest.mark.parametrize(("policy", "end", "decision"), DECISIONS.values(), ids=DECISIONS)
def test_decisions(policy: RestartPolicy, end: End, decision: Decision) -> None:
    verdict = replay(policy, [end])[0]
    assert verdict.decision is decision
    assert verdict.delay == 0.0


UNSTABLE, UP = 0.9, 1.1  # of min_uptime 1 s

GIVING_UP = {
    "max_restarts unstable exits": (3, [UNSTABLE] * 3, GIVE_UP),
    "one fewer": (3, [UNSTABLE] * 2, RESTART),
    "failed boots are unstable": (3, [NEVER, UNSTABLE, NEVER], GIVE_UP),
    "exits after min_uptime are not": (3, [UP] * 50, RESTART),
    "nor do they forgive": (3, [UNSTABLE, UP, UNSTABLE, UP, UNSTABLE], GIVE_UP),
    "min_uptime itself is stable": (1, [1.0], RESTART),
    "a stable worker forgives": (3, [UNSTABLE, UNSTABLE, 30.0, UNSTABLE, UNSTABLE], RESTART),
    "one is the first": (1, [UNSTABLE], GIVE_UP),
    "none is the first as well": (0, [UNSTABLE], GIVE_UP),
    "one, with a crash that was not unstable": (1, [UP], RESTART),
    "none, with a crash that was not unstable": (0, [UP, UP, UP], RESTART),
}


@pytest.mark.parametrize(("most", "uptimes", "decision"), GIVING_UP.values(), ids=GIVING_UP)
def test_giving_up(most: int, uptimes: list[float | None], decision: Decision) -> None:
    policy = replace(POLICY, max_restarts=most)
    assert replay(policy, [End(CRASH, uptime) for uptime in uptimes])[-1].decision is decision


def test_min_uptime_is_a_setting() -> None:
    policy = replace(POLICY, max_restarts=2, min_uptime=10.0)
    assert [verdict.decision for verdict in replay(policy, [End(CRASH, 9.0)] * 2)] == [RESTART, GIVE_UP]


def test_a_stable_exit_after_many_unstable_ones_does_not_give_up() -> None:
    verdict = judge(replace(POLICY, max_restarts=3), History(early=9, unstable=9), End(CRASH, UP), 0.0)
    assert verdict.decision is RESTART


def test_a_stop_code_wins_over_giving_up() -> None:
    policy = replace(STOP_CODES, max_restarts=1)
    assert judge(policy, History(), End(3, NEVER), 0.0).decision is STOP
