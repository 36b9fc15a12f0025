"""Every setting from every source."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from multicore_server.settings import table as module
from multicore_server.settings.quantities import Size
from multicore_server.settings.sources import resolve, unknown_environment
from multicore_server.settings.table import TABLE, SettingError, Settings
from tests.unit.settings_of_all_sources.loading import (
    CPUS,
    DEFAULTS,
    DOCS,
    EXAMPLES,
    MB,
    Load,
    settings,
)

# --- the table


def test_the_examples_cover_the_table() -> None:
    assert list(EXAMPLES) == list(TABLE)


def test_defaults_are_the_designs() -> None:
    assert settings() == DEFAULTS
    assert Settings(workers=CPUS) == DEFAULTS


def test_gunicorn_has_no_other_setting_of_our_names() -> None:
    assert set(TABLE) & set(Config().settings) == {"workers"}


def test_names_follow_from_the_table() -> None:
    assert TABLE["max_memory_restart"].environment == "MULTICORE_MAX_MEMORY_RESTART"
    assert TABLE["max_memory_restart"].flag == "--max-memory-restart"


# --- sources


def test_every_setting_from_every_source(gunicorn: Load) -> None:
    values = {name: value for name, (_, value, _, _) in EXAMPLES.items()}
    environ = {TABLE[name].environment: text for name, (text, *_) in EXAMPLES.items()}
    config = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    expected = Settings(**{name: found for name, (_, _, found, _) in EXAMPLES.items()})  # type: ignore[arg-type]
    assert expected == settings(options=values)
    assert expected == settings(environ=environ)
    assert expected == settings(gunicorn(config=config))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_setting_alone_leaves_the_others_as_they_are(name: str) -> None:
    _, value, expected, _ = EXAMPLES[name]
    assert settings(options={name: value}) == replace(DEFAULTS, **{name: expected})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_bad_value_is_one_line_that_names_setting_source_and_value(name: str) -> None:
    for value in EXAMPLES[name][3]:
        with pytest.raises(SettingError) as caught:
            settings(options={name: value})
        line = str(caught.value)
        assert line.startswith(f"{name}: {value!r} (from run's options, {TABLE[name].flag}) is ")
        assert "; give " in line
        assert "\n" not in line


def test_the_message_of_a_bad_variable() -> None:
    with pytest.raises(SettingError) as caught:
        settings(environ={"MULTICORE_MAX_MEMORY_RESTART": "300X"})
    assert str(caught.value) == (
        "max_memory_restart: '300X' (from the environment, MULTICORE_MAX_MEMORY_RESTART) is not a size; "
        "give bytes, 300M, 1.5G or 80%, or none"
    )


def test_the_message_of_a_bad_config_file(gunicorn: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        settings(gunicorn(config="reload_surge = 0"))
    assert str(caught.value) == (
        f"reload_surge: 0 (from the config file, {tmp_path}/conf.py) is below 1; give a whole number from 1"
    )


def test_precedence(gunicorn: Load) -> None:
    environ = {"MULTICORE_RESTART_DELAY": "3"}
    config = "restart_delay = 1"
    flagged = gunicorn("--env", "MULTICORE_RESTART_DELAY=4", config=config)
    assert settings(flagged, {"restart_delay": 5}, environ=environ).restart_delay == 5
    assert settings(flagged, environ=environ).restart_delay == 4
    assert settings(gunicorn(config=config), environ=environ).restart_delay == 3
    assert settings(gunicorn(config=config)).restart_delay == 1


def test_a_stronger_none_overrides_a_value(gunicorn: Load) -> None:
    cfg = gunicorn(config="max_memory_restart = '300M'\nmetrics_bind = 'localhost:1'")
    environ = {"MULTICORE_MAX_MEMORY_RESTART": "", "MULTICORE_METRICS_BIND": "none"}
    found = settings(cfg, environ=environ)
    assert (found.max_memory_restart, found.metrics_bind) == (None, "")
    assert settings(cfg, {"max_memory_restart": None}).max_memory_restart is None


def test_environment_and_argv_are_the_process_s_unless_given(
    monkeypatch: pytest.MonkeyPatch, gunicorn: Load
) -> None:
    monkeypatch.setenv("MULTICORE_MAX_RESTARTS", "7")
    found = resolve(gunicorn("-w", "1"), cpus=lambda: CPUS)
    assert (found.max_restarts, found.workers) == (7, 1)


def test_a_config_module(monkeypatch: pytest.MonkeyPatch, gunicorn: Load) -> None:
    conf = types.ModuleType("multicore_conf")
    vars(conf).update(restart_delay="2s", workers=4)
    monkeypatch.setitem(sys.modules, "multicore_conf", conf)
    stale = types.ModuleType("__config__")
    vars(stale).update(restart_delay="9s")
    monkeypatch.setitem(sys.modules, "__config__", stale)
    found = settings(gunicorn("-c", "python:multicore_conf"))
    assert (found.restart_delay, found.workers) == (2.0, 4)


def test_a_removed_default_config_file_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    conf = types.ModuleType("__config__")
    vars(conf).update(restart_delay="9s", __file__=str(tmp_path / "gunicorn.conf.py"))
    monkeypatch.setitem(sys.modules, "__config__", conf)
    assert settings().restart_delay == 0
    (tmp_path / "gunicorn.conf.py").touch()
    assert settings().restart_delay == 9


def test_an_option_that_is_no_setting() -> None:
    with pytest.raises(
        SettingError, match=r"^max_restart: 3 \(.*\) is not a setting: did you mean max_restarts\?$"
    ):
        settings(options={"max_restart": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_memory_restart": "300M", "max_memory_kill": "200M"},
            (
                "max_memory_kill: '200M' (from run's options, --max-memory-kill) is below "
                "max_memory_restart: '300M' (from run's options, --max-memory-restart); give at least as much"
            ),
        ),
        (
            {"exp_backoff_restart_delay": 100},
            (
                "exp_backoff_restart_delay: 100 (from run's options, --exp-backoff-restart-delay) is above "
                "max_restart_delay: '15s' (the default); give at most as much; a bare number is seconds, not "
                "PM2's milliseconds"
            ),
        ),
        (
            {"exp_backoff_restart_delay": "20s"},
            (
                "exp_backoff_restart_delay: '20s' (from run's options, --exp-backoff-restart-delay) is above "
                "max_restart_delay: '15s' (the default); give at most as much"
            ),
        ),
    ],
)
def test_values_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings(options=options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("timeout", "options", "expected"),
    [
        (5, {}, 60.0),
        (600, {}, 600.0),
        (0, {}, 0.0),
        (600, {"listen_timeout": "9s"}, 9.0),
        (30, {"listen_timeout": 0}, 0.0),
    ],
)
def test_a_boot_has_the_time_of_gunicorns_timeout(
    gunicorn: Load, timeout: int, options: dict[str, Any], expected: float
) -> None:
    assert settings(gunicorn("--timeout", str(timeout)), options).listen_timeout == expected


def test_limits_of_two_kinds_are_compared_by_no_one() -> None:
    found = settings(options={"max_memory_restart": "80%", "max_memory_kill": "200M"})
    assert found.max_memory_kill == Size(200 * MB)


# --- warnings, docs, imports


def test_unknown_variables_are_named_with_the_nearest() -> None:
    environ = {
        "MULTICORE_MAX_RESTART": "1",
        "MULTICORE_QQQ": "1",
        "MULTICORE_WORKERS": "2",
        "MULTICORE_INSTANCE": "0",
        "PATH": "/bin",
    }
    lines = [
        "MULTICORE_MAX_RESTART is not a setting and is ignored: did you mean MULTICORE_MAX_RESTARTS?",
        "MULTICORE_QQQ is not a setting and is ignored",
    ]
    assert unknown_environment(environ, DEFAULTS, {}, run=True) == lines
    gunicorns = {"MULTICORE_TIMEOUT": "timeout"}
    of_gunicorn = environ | {"MULTICORE_TIMEOUT": "3"}
    assert unknown_environment(of_gunicorn, DEFAULTS, gunicorns, run=True) == lines
    assert unknown_environment(of_gunicorn, DEFAULTS, gunicorns, run=False) == [
        *lines,
        "only multicore-server run reads MULTICORE_TIMEOUT; it is ignored here: use gunicorn's own option",
    ]
    # The flag has another name than the setting.
    log_level = {"MULTICORE_LOGLEVEL": "loglevel"}
    assert unknown_environment({"MULTICORE_LOG_LEVEL": "debug"}, DEFAULTS, log_level, run=True) == [
        "MULTICORE_LOG_LEVEL is not a setting and is ignored: did you mean MULTICORE_LOGLEVEL?"
    ]
    # gunicorn has it without an option.
    assert unknown_environment({"MULTICORE_TMP_UPLOAD_DIR": "/tmp"}, DEFAULTS, {}, run=True) == [
        "MULTICORE_TMP_UPLOAD_DIR is not read: set tmp_upload_dir in the config file"
    ]


def test_the_docs_hold_the_table() -> None:
    before, _, rest = DOCS.read_text().partition(
        "<!-- settings: multicore_server.settings.table.reference() -->\n"
    )
    block, _, _ = rest.partition("\n<!-- end of settings -->")
    assert before
    assert block == module.reference()


def test_each_setting_has_one_topic() -> None:
    for name in module.TABLE:
        assert sum(name.startswith(names) for names in module.TOPICS.values()) == 1, name


def test_importing_settings_imports_neither_gunicorn_nor_uvicorn() -> None:
    code = (
        "import sys, multicore_server.settings; print(*{'gunicorn', 'uvicorn', 'cronsim'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
