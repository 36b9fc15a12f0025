"""Commands of PM2's, gunicornc's and pumactl's: each is one of ours, or gets a line that names ours."""

from __future__ import annotations

import re

import click
import pytest
from click.testing import CliRunner

from multicore_server.cli.elsewhere import ALIASES, OTHERS
from multicore_server.cli.main import COMMANDS, main

PM2 = """
    start trigger deploy startOrRestart startOrReload pid create startOrGracefulReload stop restart scale
    profile:mem profile:cpu reload id inspect delete del sendSignal ping updatePM2 update install
    module:install module:update module:generate uninstall module:uninstall package module:package publish
    module:publish set multiset get conf config unset report link unlink monitor unmonitor open plus register
    login logout dump save cleardump send attach resurrect unstartup startup logrotate ecosystem init reset
    describe desc info show env list ls l ps status jlist sysmonit slist sysinfos prettylist monit imonit
    dashboard dash flush reloadLogs reloadLogsSilently logs kill pull forward backward deepUpdate serve expose
    autoinstall examples help install-otel uninstall-otel
"""
GUNICORNC = "show worker dirty reload reopen shutdown help"
PUMACTL = """
    gc gc-stats halt info phased-restart refork reload-worker-directory reopen-log restart start stats status
    stop thread-backtraces worker-count-down worker-count-up
"""


@pytest.mark.parametrize("command", sorted({*PM2.split(), *GUNICORNC.split(), *PUMACTL.split()}))
def test_every_command_is_known(command: str) -> None:
    assert sum(command in table for table in (COMMANDS, ALIASES, OTHERS)) == 1


def test_what_is_named_is_there() -> None:
    assert set(ALIASES.values()) <= set(COMMANDS)
    named = {found for line in OTHERS.values() for found in re.findall(r"`([a-z]+)", line)}
    elsewhere = {"kill", "systemctl", "log", "env", "python"}
    assert len(named & set(COMMANDS)) > 8
    assert named - elsewhere <= set(COMMANDS)


@pytest.mark.parametrize("name", ALIASES)
def test_aliases_are_the_commands_themselves(name: str) -> None:
    context = click.Context(main)
    assert main.get_command(context, name) is main.get_command(context, ALIASES[name])


@pytest.mark.parametrize("name", OTHERS)
def test_others_get_one_line(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--whatever", "x"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"multicore-server: {name}: {OTHERS[name]}\n"
    assert len(done.stderr) < 140


def test_help_has_them_in_a_few_lines() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    assert re.search(r"^  list, ls, status +ps$", text, re.MULTILINE)
    assert "flush" not in text


def test_a_command_that_nobody_has() -> None:
    done = CliRunner().invoke(main, ["fly"])
    assert (done.exit_code, "No such command 'fly'" in done.stderr) == (2, True)


def test_completion_of_such_a_command_is_silent() -> None:
    context = click.Context(main, resilient_parsing=True)
    assert main.get_command(context, "flush") is None
