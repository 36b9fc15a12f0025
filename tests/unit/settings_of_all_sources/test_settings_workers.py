"""The many ways to say how many workers."""

from __future__ import annotations

import sys

import pytest

from multicore_server.settings.sources import resolve
from multicore_server.settings.table import SettingError
from tests.unit.settings_of_all_sources.loading import (
    CPUS,
    Embedded,
    Load,
    settings,
)


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
