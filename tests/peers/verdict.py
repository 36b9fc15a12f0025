"""What became of other people's tests, held against the differences that are expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["passed", "skipped", "failed"]
WORST: tuple[Outcome, ...] = ("passed", "skipped", "failed")


@dataclass(frozen=True, slots=True)
class Result:
    """``text`` is the last line of what a failure says."""

    suite: str
    test: str
    outcome: Outcome
    text: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """Tests that are expected to fail: ``suite`` and ``test`` are patterns, in which ``*`` is any text.

    Not ``always``: a quiet machine may pass them.
    """

    suite: str
    test: str
    reason: str
    always: bool = True

    def covers(self, result: Result) -> bool:
        return matches(self.suite, result.suite) and matches(self.test, result.test)


@dataclass(slots=True)
class Verdict:
    passed: int = 0
    skipped: int = 0
    unexpected: list[Result] = field(default_factory=list)
    expected: list[tuple[Result, Difference]] = field(default_factory=list)
    # Expected differences, and tests that they cover and that passed; none where it covers no test at all.
    gone: list[tuple[Difference, list[Result]]] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.unexpected and not self.gone


def matches(pattern: str, text: str) -> bool:
    """As fnmatch, but brackets are themselves: the names of tests are full of them."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None


def merged(results: Iterable[Result]) -> list[Result]:
    """One result for each test: of what is said of its set-up, call and end the worst counts."""
    worst: dict[tuple[str, str], Result] = {}
    for result in results:
        known = worst.setdefault((result.suite, result.test), result)
        if WORST.index(result.outcome) > WORST.index(known.outcome):
            worst[result.suite, result.test] = result
    return list(worst.values())


def judge(results: Iterable[Result], differences: Sequence[Difference], *, whole: bool) -> Verdict:
    """``whole``: all tests were run, so that a difference that covers none of them is out of date."""
    verdict = Verdict()
    covered: dict[Difference, list[Result]] = {difference: [] for difference in differences}
    for result in merged(results):
        difference = next((it for it in differences if it.covers(result)), None)
        if difference is not None:
            covered[difference].append(result)
        _count(verdict, result, difference)
    if whole and not verdict.passed:
        verdict.unexpected.append(Result("*", "*", "failed", "not one test has passed"))
    for difference, found in covered.items():
        passed = [result for result in found if result.outcome == "passed"]
        if (passed and difference.always) or (whole and not found):
            verdict.gone.append((difference, passed))
    return verdict


def _count(verdict: Verdict, result: Result, difference: Difference | None) -> None:
    if result.outcome == "passed":
        verdict.passed += 1
    elif result.outcome == "skipped":
        verdict.skipped += 1
    elif difference is None:
        verdict.unexpected.append(result)
    else:
        verdict.expected.append((result, difference))


def described(verdict: Verdict) -> str:
    """For people to read; the differences of one reason together."""
    lines = []
    by_reason: dict[str, int] = {}
    for _, difference in verdict.expected:
        by_reason[difference.reason] = by_reason.get(difference.reason, 0) + 1
    lines += [f"differs, as expected ({count}): {reason}" for reason, count in by_reason.items()]
    for difference, passed in verdict.gone:
        what = f"passes: {passed[0].test}" if passed else "covers no test"
        lines.append(f"NO LONGER DIFFERS: {difference.suite} {difference.test}: {what}")
    lines += [f"FAILED: {it.suite}: {it.test}: {it.text}" for it in verdict.unexpected]
    lines.append(
        f"{verdict.passed} passed, {len(verdict.unexpected)} failed, {len(verdict.expected)} expected "
        f"differences, {len(verdict.gone)} that no longer differ, {verdict.skipped} skipped"
    )
    return "\n".join(lines)
