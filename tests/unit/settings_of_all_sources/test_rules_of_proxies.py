"""What the settings say about the fields of proxies, and about names with a ``_``."""

from __future__ import annotations

from typing import Any

import pytest

from multicore_server.application import Application
from multicore_server.worker.proxied import Rules
from tests.unit.settings_of_all_sources.loading import Load

GUNICORNS = {b"x-forwarded-protocol": b"ssl", b"x-forwarded-proto": b"https", b"x-forwarded-ssl": b"on"}
NAMES = frozenset({b"script_name", b"path_info"})


def header_map(cfg: Any, *, wsgi: bool = False) -> str:
    return Rules.of(cfg, wsgi=wsgi).header_map


@pytest.mark.parametrize("value", ["drop", "refuse", "dangerous"])
def test_header_map_counts_where_it_is_set(
    gunicorn: Load, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    cfg = gunicorn("--header-map", value)
    assert header_map(cfg) == value
    assert header_map(cfg, wsgi=True) == "dangerous"  # the bridge's
    assert header_map(gunicorn(f"--header-map={value}")) == value
    assert header_map(gunicorn(config=f"header_map = {value!r}")) == value
    monkeypatch.setenv("GUNICORN_CMD_ARGS", f"--header-map {value}")
    assert header_map(gunicorn(config="")) == value
    monkeypatch.delenv("GUNICORN_CMD_ARGS")
    assert header_map(gunicorn(config="")) == "dangerous"
    assert header_map(Application("app:app", {"header_map": value}).cfg) == value


def test_where_it_is_not_set_every_name_passes(gunicorn: Load) -> None:
    assert header_map(gunicorn()) == "dangerous"
    assert header_map(Application("app:app", {}).cfg) == "dangerous"


@pytest.mark.parametrize("wsgi", [False, True])
def test_with_gunicorn_its_defaults_count(gunicorn: Load, wsgi: bool) -> None:
    assert Rules.of(gunicorn(), wsgi=wsgi) == Rules(GUNICORNS, NAMES, of_bridge=wsgi)


def test_with_uvicorns_options_only_what_is_set_counts() -> None:
    assert Rules.of(Application("app:app", {}).cfg, wsgi=False) == Rules()
    cfg = Application("app:app", {"secure_scheme_headers": {"X-Tls": "1"}, "forwarder_headers": "A_B,*"}).cfg
    assert Rules.of(cfg, wsgi=False) == Rules({b"x-tls": b"1"}, frozenset({b"a_b", b"*"}))


def test_with_uvicorns_options_a_default_that_is_set_counts() -> None:
    cfg = Application("app:app", {"forwarder_headers": "SCRIPT_NAME,PATH_INFO"}).cfg
    assert Rules.of(cfg, wsgi=True) == Rules(None, NAMES, of_bridge=True)
