"""Every setting from every source, and the many ways to say how many workers."""

from __future__ import annotations

import math
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gunicorn.app.base import BaseApplication
from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.config import Config

from multicore_server.settings import table as module
from multicore_server.settings.quantities import Jitter, Size
from multicore_server.settings.sources import resolve, unknown_environment
from multicore_server.settings.table import TABLE, SettingError, Settings

Load = Callable[..., Any]
CPUS = 6
MB = 2**20
DOCS = Path(__file__).parents[2] / "docs" / "settings.md"
DEFAULTS = Settings(
    workers=CPUS, autorestart="true", min_uptime=1.0, max_restarts=16, restart_delay=0.0,
    exp_backoff_restart_delay=0.1, max_restart_delay=15.0, backoff_reset=30.0, stop_exit_codes=frozenset(),
    max_memory_restart=None, max_memory_kill=None, memory_metric="uss", memory_check_interval=1.0,
    max_lifetime=None, max_lifetime_jitter=Jitter(10, percent=True), cron_restart=None, listen_timeout=60.0,
    wait_ready=False, reload_surge=1, draining_limit=3, shutdown_delay=0.0, scheduling="least",
    metrics_bind="127.0.0.1:9464", metrics_hosts=frozenset(),
    metrics_path=None, instance_var="MULTICORE_INSTANCE",
    limit_request_body=None, header_timeout=30.0, body_timeout=60.0, send_timeout=60.0, app_metrics=True,
)  # fmt: skip
# Text as the environment has it, the same for a config file or run(), what comes of both; then bad values.
EXAMPLES: dict[str, tuple[str, object, object, tuple[object, ...]]] = {
    "workers": ("3", 3, 3, ("many", "-2", "1.5")),
    "autorestart": ("on-failure", "on-failure", "on-failure", ("always", 2)),
    "min_uptime": ("500ms", 0.5, 0.5, ("-1", True, "soon", None)),
    "max_restarts": ("0", 0, 0, ("-1", 1.5, True)),
    "restart_delay": ("2s", 2, 2.0, ("-2s", math.nan)),
    "exp_backoff_restart_delay": ("250ms", 0.25, 0.25, ("none", "1x")),
    "max_restart_delay": ("1m", 60, 60.0, ("inf", math.inf)),
    "backoff_reset": ("10m", 600, 600.0, ("10 minutes", False)),
    "stop_exit_codes": ("0,143", [0, 143], frozenset({0, 143}), ("256", "a", [-1])),
    "max_memory_restart": ("300M", 300 * MB, Size(300 * MB), ("300X", "0", "101%")),
    "max_memory_kill": ("80%", "80%", Size(80, percent=True), ("-1", "0%", True)),
    "memory_metric": ("rss", "rss", "rss", ("pss", None)),
    "memory_check_interval": ("2s", 2.0, 2.0, ("0", "none")),
    "max_lifetime": ("24h", 86400, 86400.0, ("0", "-1h")),
    "max_lifetime_jitter": ("5%", "5%", Jitter(5, percent=True), ("101%", "x")),
    "cron_restart": ("0 4 * * *", "0 4 * * *", "0 4 * * *", ("daily", "0 0 30 2 *")),
    "listen_timeout": ("90", 90, 90.0, ("0", 0, "none", None)),
    "wait_ready": ("yes", True, True, ("perhaps", None, 2)),
    "reload_surge": ("2", 2, 2, ("0", -1)),
    "draining_limit": ("2", 2, 2, ("0", 4, -1)),
    "shutdown_delay": ("5s", 5, 5.0, ("-5s", "x")),
    "scheduling": ("shared", "shared", "shared", ("random", True)),
    "metrics_bind": ("unix:/run/m", "unix:/run/m", "unix:/run/m", ("9464", 9464, "localhost:99999")),
    "metrics_hosts": (
        "Metrics.example.com, *.example.org", ["metrics.example.com", "*.example.org"],
        frozenset({"metrics.example.com", "*.example.org"}), ("a b", "http://x", "x:1", "**", "a.*", ",", 7),
    ),
    "metrics_path": ("/metrics", "/metrics", "/metrics", ("metrics", "/a b")),
    "instance_var": ("APP_ID", "APP_ID", "APP_ID", ("", "A-B", "MULTICORE_WORKERS")),
    "limit_request_body": ("10M", 10 * 2**20, 10 * 2**20, ("50%", "0", "big")),
    "header_timeout": ("10s", 10.0, 10, ("soon", -1)),
    "body_timeout": ("2m", 120.0, 120, ("soon", -1)),
    "send_timeout": ("0", 0.0, 0, ("soon", -1)),
    "app_metrics": ("off", False, False, ("", 3)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this process: no arguments, no config file loaded before, no gunicorn variables."""
    monkeypatch.setattr(sys, "argv", ["app"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Set before it is deleted, so that one which the test loads is removed too.
    monkeypatch.setitem(sys.modules, "__config__", sys)
    monkeypatch.delitem(sys.modules, "__config__")
    # gunicorn read WEB_CONCURRENCY when it was imported.
    monkeypatch.setattr("gunicorn.config.Workers.default", 1)
    for name in ("GUNICORN_CMD_ARGS", "WEB_CONCURRENCY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gunicorn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """The Config of a real ``gunicorn ARGS app:app``, with the text of its config file if there is one."""

    def load(*args: str, config: str | None = None) -> Any:
        if config is not None:
            path = tmp_path / "conf.py"
            path.write_text(config)
            args = ("-c", str(path), *args)
        monkeypatch.setattr(sys, "argv", ["gunicorn", *args, "app:app"])
        return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn").cfg

    return load


class Embedded(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    """An application that sets gunicorn up from code and parses no argv."""

    def __init__(self, **options: object) -> None:
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        for name, value in self.options.items():
            self.cfg.set(name, value)


def settings(
    cfg: Any = None,
    options: dict[str, Any] | None = None,
    *,
    environ: dict[str, str] | None = None,
    argv: list[str] | None = None,
) -> Settings:
    return resolve(
        Embedded().cfg if cfg is None else cfg, options, cpus=lambda: CPUS, environ=environ or {}, argv=argv
    )


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


# -- sources


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


def test_limits_of_two_kinds_are_compared_by_no_one() -> None:
    found = settings(options={"max_memory_restart": "80%", "max_memory_kill": "200M"})
    assert found.max_memory_kill == Size(200 * MB)


# -- workers


@pytest.mark.parametrize(
    ("value", "expected"), [("max", CPUS), (0, CPUS), ("-1", CPUS - 1), (1, 1), ("12", 12)]
)
def test_forms_of_workers(value: object, expected: int) -> None:
    assert settings(options={"workers": value}).workers == expected


def test_one_fewer_than_one_cpu_is_one() -> None:
    assert resolve(Embedded().cfg, {"workers": -1}, cpus=lambda: 1, environ={}).workers == 1


def test_cpus_are_counted_only_when_asked_for() -> None:
    resolve(Embedded().cfg, {"workers": 2}, cpus=lambda: pytest.fail("counted"), environ={})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-w", "1"], 1),
        (["-w1"], 1),
        (["--workers=1"], 1),
        (["--workers", "3"], 3),
        (["-w", "3", "-w", "1"], 1),
        (["-w", "0"], CPUS),
        ([], CPUS),
    ],
)
def test_workers_on_gunicorns_command_line(
    flags: list[str], expected: int, gunicorn: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings(gunicorn(*flags)).workers == expected
    monkeypatch.setenv("GUNICORN_CMD_ARGS", " ".join(flags))
    assert settings(gunicorn()).workers == expected


def test_precedence_of_workers(gunicorn: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, web = {"MULTICORE_WORKERS": "30"}, {"WEB_CONCURRENCY": "50"}
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "-w 1")
    config = "workers = 40"
    assert settings(gunicorn("-w", "20", config=config), {"workers": 10}, environ=ours | web).workers == 10
    assert settings(gunicorn("-w", "20", config=config), environ=ours | web).workers == 20
    assert settings(gunicorn(config=config), environ=ours | web).workers == 30
    assert settings(gunicorn(config=config), environ=web).workers == 1
    monkeypatch.delenv("GUNICORN_CMD_ARGS")
    assert settings(gunicorn(config=config), environ=web).workers == 40
    monkeypatch.delitem(sys.modules, "__config__")
    assert settings(gunicorn(), environ=web).workers == 50
    assert settings(gunicorn(), environ={"WEB_CONCURRENCY": ""}).workers == CPUS


def test_a_config_file_s_one_worker_is_obeyed(gunicorn: Load) -> None:
    assert settings(gunicorn(config="workers = 1"), environ={"WEB_CONCURRENCY": "50"}).workers == 1


def test_gunicorns_default_from_web_concurrency_is_no_ones_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if gunicorn had been imported with WEB_CONCURRENCY=4.
    monkeypatch.setattr("gunicorn.config.Workers.default", 4)
    assert settings(environ={"WEB_CONCURRENCY": "4"}).workers == 4
    assert settings(environ={"WEB_CONCURRENCY": "4", "MULTICORE_WORKERS": "2"}).workers == 2
    assert settings(Embedded(workers=1).cfg, environ={"WEB_CONCURRENCY": "4"}).workers == 1


@pytest.mark.parametrize(
    "argv",
    [["-w", "3"], ["-w", "x"], ["--help"], ["-v"], ["-w", "1", "--own-flag"], ["--bogus"], ["-w"]],
)
def test_an_embedding_applications_own_argv_is_ignored(
    argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert settings(argv=argv).workers == CPUS
    assert settings(Embedded(workers=2).cfg, argv=argv).workers == 2
    assert capfd.readouterr() == ("", "")


def test_an_embedding_applications_workers() -> None:
    cfg = Embedded(workers=2).cfg
    assert settings(cfg, environ={"WEB_CONCURRENCY": "50"}).workers == 2
    assert settings(cfg, environ={"MULTICORE_WORKERS": "max"}).workers == CPUS


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"MULTICORE_WORKERS": "many"}, "MULTICORE_WORKERS"),
        ({"WEB_CONCURRENCY": "many"}, "WEB_CONCURRENCY"),
    ],
)
def test_bad_workers_name_their_source(environ: dict[str, str], source: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings(environ=environ)
    assert str(caught.value) == (
        f"workers: 'many' (from the environment, {source}) is not a whole number; "
        "give N, max or 0 (one per usable CPU), or -1 (one fewer)"
    )


# -- warnings, docs, imports


def test_unknown_variables_are_named_with_the_nearest() -> None:
    environ = {
        "MULTICORE_MAX_RESTART": "1",
        "MULTICORE_QQQ": "1",
        "MULTICORE_WORKERS": "2",
        "MULTICORE_INSTANCE": "0",
        "PATH": "/bin",
    }
    assert unknown_environment(environ, DEFAULTS) == [
        "MULTICORE_MAX_RESTART is not a setting and is ignored: did you mean MULTICORE_MAX_RESTARTS?",
        "MULTICORE_QQQ is not a setting and is ignored",
    ]


def test_the_docs_hold_the_table() -> None:
    before, _, rest = DOCS.read_text().partition(
        "<!-- settings: multicore_server.settings.table.reference() -->\n"
    )
    block, _, _ = rest.partition("\n<!-- end of settings -->")
    assert before
    assert block == module.reference()


def test_importing_settings_imports_neither_gunicorn_nor_uvicorn() -> None:
    code = (
        "import sys, multicore_server.settings; print(*{'gunicorn', 'uvicorn', 'cronsim'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
