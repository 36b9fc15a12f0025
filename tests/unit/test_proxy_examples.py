"""examples/nginx and examples/haproxy: timeouts that fit each other, the server's settings and the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gunicorn.config import Config

from multicore_server.settings.quantities import duration
from multicore_server.settings.table import TABLE

ROOT = Path(__file__).parents[2]
NGINX = (ROOT / "examples/nginx/api.conf").read_text()
HAPROXY = (ROOT / "examples/haproxy/haproxy.cfg").read_text()
PAGE = (ROOT / "docs/proxies.md").read_text()


def value(text: str, pattern: str) -> float:
    """The duration that stands behind a name."""
    found = re.search(rf"^\s*(?:#.* )?{pattern} (\w+)", text, re.MULTILINE)
    assert found is not None, pattern
    return float(duration(found[1]))


def test_the_proxy_closes_idle_connections_first() -> None:
    kept = value(NGINX, "--keep-alive")
    assert kept > value(NGINX, "keepalive_timeout")
    assert kept == value(HAPROXY, "--keep-alive")


def test_the_server_answers_before_the_proxy_gives_up() -> None:
    (limit,) = set(re.findall(r"request_timeout = (\w+)", NGINX + HAPROXY))
    for text, name in ((NGINX, "proxy_read_timeout"), (HAPROXY, "timeout server")):
        assert value(text, name) > duration(limit)
    body = duration(TABLE["body_timeout"].default)
    assert value(NGINX, "proxy_send_timeout") > body
    assert value(HAPROXY, "timeout client") > body


def test_the_table_has_a_longer_keep_alive_for_each_load_balancer() -> None:
    table = PAGE.partition("| in front | ")[2].partition("\n\n")[0]
    rows = [row.split("|")[2:4] for row in table.split("\n")[2:]]
    assert len(rows) >= 6
    for idle, kept in rows:
        numbers = [re.search(r"\d+", cell) for cell in (idle, kept)]
        if numbers[1] is not None:
            assert numbers[0] is not None
            assert int(numbers[1][0]) > int(numbers[0][0]), (idle, kept)


def test_supervisord_gives_it_time_to_stop() -> None:
    text = (ROOT / "examples/supervisord/api.conf").read_text()
    found = re.search(r"^stopwaitsecs=(\d+)$", text, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > Config().graceful_timeout


@pytest.mark.parametrize("text", [NGINX, HAPROXY])
def test_the_time_in_the_queue_is_passed_on(text: str) -> None:
    assert re.search(r"X-Request-Start \"?t=", text)
