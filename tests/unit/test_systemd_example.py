"""examples/systemd: what the units say of the server."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from gunicorn.config import Config

from multicore_server.cli.main import COMMANDS
from multicore_server.cli.units import WATCHDOG
from multicore_server.settings.table import TABLE

SYSTEMD = Path(__file__).parents[2] / "examples" / "systemd"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(SYSTEMD / name)
    return parser


SERVICE = unit("api.service")["Service"]


def test_it_has_time_to_stop() -> None:
    assert TABLE["shutdown_delay"].default == "0"
    assert float(SERVICE["TimeoutStopSec"]) > Config().graceful_timeout


def test_a_reload_has_a_status() -> None:
    path, verb, server = SERVICE["ExecReload"].split()
    assert path == f"{Path(SERVICE['ExecStart'].split()[0]).parent}/multicore-server"
    assert verb in COMMANDS
    assert server == "$MAINPID"
    drop_in = unit("notify-reload.conf")["Service"]
    assert (SERVICE["Type"], drop_in["Type"], drop_in["ExecReload"]) == ("notify", "notify-reload", "")


def test_it_has_the_watchdog_of_the_units_that_startup_makes() -> None:
    assert SERVICE["WatchdogSec"] == str(WATCHDOG)


def test_the_command_socket_is_where_the_service_may_write() -> None:
    assert SERVICE["Environment"] == f"XDG_RUNTIME_DIR=/run/{SERVICE['RuntimeDirectory']}"


@pytest.mark.parametrize("name", ["api.service", "api.socket"])
def test_it_can_be_enabled(name: str) -> None:
    assert unit(name)["Install"]["WantedBy"]


def test_the_drop_in_is_for_this_service() -> None:
    text = (SYSTEMD / "notify-reload.conf").read_text()
    assert re.search(r"/api\.service\.d/notify-reload\.conf", text)
