"""What can be used and is perhaps not meant; gunicorn's settings from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from multicore_server.application import Application
from multicore_server.settings.doubts import milliseconds, not_rotated, unknown_names
from multicore_server.settings.gunicorn import from_environment, variables
from multicore_server.settings.sources import given_values
from multicore_server.settings.table import SettingError
from tests.unit.settings_of_all_sources.loading import Load

# --- PM2's milliseconds


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_uptime", 1000), ("listen_timeout", "3000"), ("restart_delay", 5000.0), ("shutdown_delay", 1600)],
)
def test_numbers_that_look_like_milliseconds(gunicorn: Load, name: str, value: Any) -> None:
    (line,) = milliseconds(given_values(gunicorn(config=f"{name} = {value!r}"), environ={}))
    assert line.startswith(f"{name}: {value!r} (from the config file, ")
    number = f"{float(value):g}"
    assert line.endswith(f"if these are PM2's milliseconds, give {number}ms, otherwise {number}s")


def test_numbers_that_are_seconds(gunicorn: Load) -> None:
    options = {"min_uptime": "1000s", "listen_timeout": 600, "restart_delay": "1000ms", "max_lifetime": 86400}
    assert list(milliseconds(given_values(gunicorn(), options, environ={}))) == []


# --- what has no effect


@pytest.mark.parametrize(
    ("size", "args", "said"),
    [
        (None, (), False),
        (1000, (), True),
        (1000, ("--access-logfile", "-"), True),
        (1000, ("--access-logfile", "access.log"), False),
        (1000, ("--error-logfile", "error.log"), False),
    ],
)
def test_a_size_of_logs_that_are_no_files(
    gunicorn: Load, size: int | None, args: tuple[str, ...], said: bool
) -> None:
    assert len(list(not_rotated(gunicorn(*args), size))) == said


# --- the config file

CONFIG = """
import os
from multiprocessing import cpu_count
from os.path import join as post_forc
timeot = 3
MAX_MEMORY_RESTRAT = "300M"
def post_frok(server, worker): ...
def on_mesage(server, worker, message): ...
graceful_timeout_str = "20"
graceful_timeout = int(graceful_timeout_str)
cores = cpu_count()
_timeot = 3
port = 80
"""


def test_names_that_are_nearly_settings(gunicorn: Load, tmp_path: Path) -> None:
    assert list(unknown_names(gunicorn(config=CONFIG))) == [
        f"{name} (in the config file, {tmp_path}/conf.py) is not a setting: did you mean {meant}?"
        for name, meant in [
            ("timeot", "timeout"),
            ("MAX_MEMORY_RESTRAT", "max_memory_restart"),
            ("post_frok", "post_fork"),
            ("on_mesage", "on_message"),
        ]
    ]


def test_no_config_file_has_no_names(gunicorn: Load) -> None:
    assert list(unknown_names(gunicorn())) == []


# --- the environment


def test_values_of_all_kinds() -> None:
    environ = {
        "MULTICORE_TIMEOUT": "2m",
        "MULTICORE_BIND": "127.0.0.1:80, unix:a.sock",
        "MULTICORE_PRELOAD_APP": "yes",
        "MULTICORE_ACCESSLOG": "",
        "MULTICORE_POST_FORK": "no hook comes from here",
        "MULTICORE_WORKERS": "ours",
    }
    assert {name: given.value for name, given in from_environment(environ).items()} == {
        "timeout": "2m",
        "bind": ["127.0.0.1:80", "unix:a.sock"],
        "preload_app": True,
        "accesslog": None,
    }


def test_a_bad_boolean_is_one_line() -> None:
    with pytest.raises(SettingError) as caught:
        from_environment({"MULTICORE_DAEMON": "perhaps"})
    assert str(caught.value) == (
        "daemon: 'perhaps' (from the environment, MULTICORE_DAEMON) is neither true nor false; "
        "give true or false"
    )


def test_every_setting_of_gunicorns_with_an_option_has_a_variable() -> None:
    found = variables()
    assert {"MULTICORE_KEEPALIVE", "MULTICORE_CERTFILE", "MULTICORE_STATSD_HOST"} <= found.keys()
    assert found["MULTICORE_PIDFILE"] == "pidfile"
    assert "MULTICORE_WORKERS" not in found


def application(**options: Any) -> Any:
    return Application("app:app", options).cfg


def test_which_source_is_stronger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("timeout = '1m'\ngraceful_timeout = '7s'\nkeepalive = 3\n")
    monkeypatch.setenv("MULTICORE_GRACEFUL_TIMEOUT", "8s")
    monkeypatch.setenv("MULTICORE_KEEPALIVE", "4")
    cfg = application(config=str(tmp_path / "conf.py"), keepalive="5s")
    assert (cfg.timeout, cfg.graceful_timeout, cfg.keepalive) == (60, 8, 5)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        (
            "MULTICORE_TIMEOUT",
            "timeout: 'soon' (from the environment, MULTICORE_TIMEOUT) is not a duration; give whole seconds",
        ),
        (
            "MULTICORE_DAEMON",
            "daemon: 'soon' (from the environment, MULTICORE_DAEMON) is neither true nor false",
        ),
    ],
)
def test_a_bad_variable_ends_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "soon")
    with pytest.raises(SystemExit):
        application()
    err = capsys.readouterr().err.strip()
    assert err.startswith(f"Error: {said}")
    assert "\n" not in err


def test_a_bad_duration_in_the_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "conf.py").write_text("timeout = 'soon'\n")
    with pytest.raises(SystemExit):
        application(config=str(tmp_path / "conf.py"), keepalive="5s")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        "Error: timeout: 'soon' (in the config file) is not a duration; give whole seconds"
    )
