"""What becomes of other people's tests is judged by the table of expected differences."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from tests.peers.differences import DIFFERENCES
from tests.peers.plugins.gunicorn_worker import OURS, with_our_worker
from tests.peers.sources import unpack
from tests.peers.suites import SUITES
from tests.peers.verdict import Difference, Outcome, Result, described, judge, matches, merged

ROOT = Path(__file__).parents[2]
LOOPS = ("asyncio", "uvloop")
KNOWN = Difference("http *", "test_a[*-1]", "it has to be so")


def result(test: str, outcome: Outcome, suite: str = "http uvloop") -> Result:
    return Result(suite, test, outcome)


@pytest.mark.parametrize(
    ("pattern", "text", "does"),
    [
        ("test_a[b-1]", "test_a[b-1]", True),
        ("test_a[b-1]", "test_a[b-2]", False),
        ("test_a[*]", "test_a[b-1]", True),
        ("test_a[*]", "test_ab", False),
        ("test_a", "test_a[b-1]", False),
        ("*::test_a*", "tests/test_x.py::test_a[b\nc]", True),
        ("test.a", "test_a", False),
        ("uvicorn * uvloop", "uvicorn server uvloop", True),
        ("uvicorn * uvloop", "uvicorn server asyncio", False),
    ],
)
def test_only_a_star_is_any_text(pattern: str, text: str, does: bool) -> None:
    assert matches(pattern, text) is does


def test_a_test_is_one_whatever_is_said_of_its_parts() -> None:
    said = [result("test_a", "passed"), result("test_a", "failed"), result("test_b", "passed")]
    other = result("test_a", "passed", "http asyncio")
    assert merged([*said, other]) == [said[1], said[2], other]


def test_what_fails_as_expected_is_no_failure() -> None:
    verdict = judge([result("test_a[b-1]", "failed"), result("test_b", "passed")], [KNOWN], whole=True)
    assert verdict.is_good
    assert (verdict.passed, verdict.skipped) == (1, 0)
    assert [it.reason for _, it in verdict.expected] == [KNOWN.reason]


@pytest.mark.parametrize(
    "failed", [result("test_a[b-2]", "failed"), result("test_a[b-1]", "failed", "ws uvloop")]
)
def test_what_no_difference_covers_is_a_failure(failed: Result) -> None:
    fine = [result("test_a[c-1]", "failed"), result("test_b", "passed")]
    verdict = judge([*fine, failed], [KNOWN], whole=True)
    assert verdict.unexpected == [failed]
    assert not verdict.is_good


def test_an_expected_difference_that_is_none_is_an_error() -> None:
    passed = result("test_a[b-1]", "passed")
    verdict = judge([passed, result("test_a[c-1]", "failed")], [KNOWN], whole=True)
    assert verdict.gone == [(KNOWN, [passed])]
    assert not verdict.is_good


def test_a_difference_that_is_there_sometimes_may_be_none() -> None:
    sometimes = Difference("http *", "test_a[*", "the machine is busy", always=False)
    assert judge([result("test_a[b-1]", "passed")], [sometimes], whole=True).is_good
    assert judge([result("test_a[b-1]", "failed")], [sometimes], whole=False).is_good


def test_an_expected_difference_that_covers_no_test_is_an_error_where_all_were_run() -> None:
    results = [result("test_b", "passed")]
    assert judge(results, [KNOWN], whole=True).gone == [(KNOWN, [])]
    assert judge(results, [KNOWN], whole=False).is_good


def test_what_is_skipped_says_nothing_of_a_difference() -> None:
    results = [result("test_a[b-1]", "skipped"), result("test_b", "passed")]
    verdict = judge(results, [KNOWN], whole=True)
    assert verdict.is_good
    assert verdict.skipped == 1


def test_no_test_at_all_is_not_good() -> None:
    assert not judge([], [], whole=True).is_good
    assert judge([], [], whole=False).is_good  # a choice of tests may choose none of a suite


def test_the_report_names_each_kind() -> None:
    results = [
        result("test_a[b-1]", "failed"),
        result("test_a[c-1]", "passed"),
        Result("http uvloop", "test_c", "failed", "assert 1 == 2"),
        result("test_d", "skipped"),
    ]
    assert described(judge(results, [KNOWN], whole=True)).splitlines() == [
        "differs, as expected (1): it has to be so",
        "NO LONGER DIFFERS: http * test_a[*-1]: passes: test_a[c-1]",
        "FAILED: http uvloop: test_c: assert 1 == 2",
        "1 passed, 1 failed, 1 expected differences, 1 that no longer differ, 1 skipped",
    ]


# --- the tables ---


def test_each_difference_is_of_a_suite_that_is_run() -> None:
    runs = [f"{suite.name} {loop}" for suite in SUITES for loop in LOOPS]
    assert [it for it in DIFFERENCES if not any(matches(it.suite, run) for run in runs)] == []


def test_no_difference_is_listed_twice() -> None:
    assert len({(it.suite, it.test) for it in DIFFERENCES}) == len(DIFFERENCES)


def test_the_docs_name_each_suite() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \|", (ROOT / "docs/testing.md").read_text(), re.MULTILINE)
    assert rows[rows.index("suite") + 1 :] == [suite.name for suite in SUITES]


# --- what is put in the place of what ---


def test_a_server_that_a_test_starts_has_our_worker() -> None:
    command = ["python", "-m", "gunicorn", "--worker-class", "sync", "app:app"]
    assert with_our_worker(command) == ["python", "-m", "gunicorn", "--worker-class", OURS, "app:app"]


@pytest.mark.parametrize("command", ["gunicorn --worker-class sync", ["nginx", "-g", "daemon off;"]])
def test_other_commands_are_left_alone(command: object) -> None:
    assert with_our_worker(command) is command


def test_an_archive_gives_its_tests_and_not_its_package(tmp_path: Path) -> None:
    archive = tmp_path / "peer-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("pyproject.toml", "peer/__init__.py", "tests/test_a.py", "README.md"):
            tar.addfile(tarfile.TarInfo(f"peer-1.0/{name}"), io.BytesIO())
    root = unpack(archive, tmp_path)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == [
        "pyproject.toml",
        "tests/test_a.py",
    ]
