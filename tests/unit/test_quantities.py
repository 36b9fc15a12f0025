"""How values are written: good and bad forms of every kind."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime

import pytest

from multicore_server.settings import quantities as read
from multicore_server.settings.quantities import Jitter, Size

MB = 2**20
GOOD: dict[Callable[[object], object], list[tuple[object, object]]] = {
    read.duration: [
        (0, 0.0), (5, 5.0), (0.25, 0.25), ("0", 0.0), ("5", 5.0), (".5", 0.5), ("1.", 1.0), (" 2 s ", 2.0),
        ("500ms", 0.5), ("2s", 2.0), ("10m", 600.0), ("24h", 86400.0), ("1d", 86400.0), ("1.5h", 5400.0),
    ],
    read.above_zero: [("1ms", 0.001), (3, 3.0)],
    read.size: [
        (300, Size(300)), ("300", Size(300)), (1e6, Size(1000000)), ("1K", Size(1024)),
        ("300M", Size(300 * MB)),
        ("300mb", Size(300 * MB)), ("300 MiB", Size(300 * MB)), ("1.5G", Size(1536 * MB)), ("10B", Size(10)),
        ("80%", Size(80, percent=True)), ("0.5 %", Size(0.5, percent=True)),
        ("100%", Size(100, percent=True)),
    ],
    read.jitter: [
        ("10%", Jitter(10, percent=True)), ("0%", Jitter(0, percent=True)), (0, Jitter(0)),
        ("5m", Jitter(300)),
    ],
    read.boolean: [
        *((text, True) for text in ("true", "1", "yes", "on", "TRUE", " On ", True, 1)),
        *((text, False) for text in ("false", "0", "no", "off", "No", False, 0)),
    ],
    read.restart_rule: [
        ("true", "true"), (True, "true"), ("off", "false"), (False, "false"), ("On-Failure", "on-failure"),
    ],
    read.whole(1): [(1, 1), ("7", 7), (" 007 ", 7), ("+2", 2)],
    read.one_of("rss", "uss"): [("rss", "rss"), ("USS ", "uss")],
    read.optional(read.size): [
        (None, None), ("", None), ("none", None), (" None ", None), ("1K", Size(1024)),
    ],
    read.worker_count: [("max", 0), ("MAX", 0), (0, 0), ("0", 0), (-1, -1), ("-1", -1), (4, 4), ("4", 4)],
    read.exit_codes: [
        (None, frozenset()), ("", frozenset()), ("none", frozenset()), ([], frozenset()), ((), frozenset()),
        ("0,143", {0, 143}), ([0, 143], {0, 143}), (("0", 1), {0, 1}), ({255}, {255}), (0, {0}), (" 3 ", {3}),
    ],
    read.cron_expression: [
        ("0 4 * * *", "0 4 * * *"), (" */5  * * *  MON-FRI ", "*/5 * * * MON-FRI"),
        ("0 0 29 2 *", "0 0 29 2 *"), ("30 0 4 * * *", "30 0 4 * * *"),
    ],
    read.address: [
        ("127.0.0.1:9464", "127.0.0.1:9464"), (" localhost:0 ", "localhost:0"), ("[::1]:9464", "[::1]:9464"),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:1"), ("unix:/run/m.sock", "unix:/run/m.sock"), ("", ""),
        ("none", ""), (None, ""), ("my-host.example:65535", "my-host.example:65535"),
    ],
    read.path: [("/", "/"), ("/metrics", "/metrics"), (" /a/b ", "/a/b")],
    read.variable: [("NODE_APP_INSTANCE", "NODE_APP_INSTANCE"), ("_x1", "_x1")],
}  # fmt: skip
NO_NUMBERS = (
    True,
    False,
    None,
    "",
    "none",
    "x",
    "1x",
    "1 2",
    "1e3",
    "nan",
    "inf",
    "٣",
    math.nan,
    math.inf,
    [1],
    b"1",
)
BAD: dict[Callable[[object], object], tuple[object, ...]] = {
    read.duration: (*NO_NUMBERS, "5M", "5S", "-1", "-1s", -1, -0.1, -math.inf, "10%", 10**400, "9" * 400),
    read.above_zero: (*NO_NUMBERS, 0, "0", "0ms", -1),
    read.size: (
        *NO_NUMBERS, "300X", "300T", 0, "0", "0.5", -1, "-1M", "0%", "100.1%", "-5%", "%", "9" * 400 + "G",
    ),
    read.jitter: (*NO_NUMBERS, "101%", "-1%", -1, "5M"),
    read.boolean: (None, "", "2", 2, 1.5, "maybe", "none", []),
    read.restart_rule: (None, "", "always", "on_failure", 2),
    read.whole(1): (*NO_NUMBERS, 0, "0", -1, "-1", 1.0, "1.0", "1_0"),
    read.one_of("rss", "uss"): (None, "", "pss", 1, True),
    read.optional(read.above_zero): (0, "nil", True),
    read.worker_count: (*NO_NUMBERS, -2, "-2", "min", "auto", 1.5, 2.0),
    read.exit_codes: (256, -1, "0,,1", "0;1", "x", True, [True], [None], 1.0, {"0": 1}, "0,256"),
    read.cron_expression: (
        None, "", "none", 5, "* * * *", "60 * * * *", "@daily", "0 0 30 2 *", "* * * * * * *",
        "0 0 LW 2 MON#9",
    ),
    read.address: (
        "9464", 9464, ":9464", "localhost", "localhost:", "localhost:65536", "::1:9464", "[::1]", "[x]:1",
        "unix:", "unix:/a\0b",
        "a b:1", "http://localhost:1", "localhost:1/metrics", "localhost:-1", True, "/run/m.sock",
    ),
    read.path: (None, "", "metrics", "/a b", "/a?b", "/a#b", 1),
    read.variable: (None, "", "1A", "A-B", "A B", "A=B", "É", 1),
}  # fmt: skip


def label(parse: object) -> str:
    return getattr(parse, "__qualname__", "")


@pytest.mark.parametrize("parse", GOOD, ids=label)
def test_reads(parse: Callable[[object], object]) -> None:
    for value, expected in GOOD[parse]:
        found = parse(value)
        assert (value, found) == (value, expected)
        assert type(found) is type(expected) or isinstance(expected, set), repr(value)


def refusal(parse: Callable[[object], object], value: object) -> str:
    try:
        return f"read as {parse(value)!r}"
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("parse", BAD, ids=label)
def test_refuses(parse: Callable[[object], object]) -> None:
    for value in BAD[parse]:
        words = refusal(parse, value)
        assert re.match(r"is (no|above|below|not|neither|unknown|outside|a time)\b", words), repr(value)


def test_a_percentage_is_shared_by_the_workers() -> None:
    assert Size(80, percent=True).bytes(total=1000 * MB, workers=4) == 200 * MB
    assert Size(300 * MB).bytes(total=1000 * MB, workers=4) == 300 * MB


def test_only_sizes_of_one_kind_compare() -> None:
    assert Size(1).below(Size(2))
    assert not Size(2).below(Size(2))
    assert Size(40, percent=True).below(Size(80, percent=True))
    assert not Size(40, percent=True).below(Size(10**9))
    assert not Size(1).below(Size(80, percent=True))


def test_jitter_is_added_to_a_lifetime() -> None:
    assert Jitter(10, percent=True).seconds(lifetime=600, random=0.5) == 30
    assert Jitter(60).seconds(lifetime=600, random=0.25) == 15
    assert Jitter(0).seconds(lifetime=600, random=0.99) == 0


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 4 * * *", "2024-05-01T03:59:59.500", "2024-05-01T04:00"),
        ("0 4 * * *", "2024-05-01T04:00:00", "2024-05-02T04:00"),
        ("0 4 * * *", "2024-05-01T04:00:00.500", "2024-05-02T04:00"),
        ("0 0 29 2 *", "2024-03-01T00:00", "2028-02-29T00:00"),
        ("*/20 * * * * *", "2024-05-01T00:00:01", "2024-05-01T00:00:20"),
    ],
)
def test_the_next_time_is_after_the_given_one(expression: str, after: str, expected: str) -> None:
    assert read.next_cron(expression, datetime.fromisoformat(after)) == datetime.fromisoformat(expected)
