"""Commands of PM2's, gunicornc's and pumactl's: each is one of ours, or gets a line that names ours."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from multicore_server.cli.elsewhere import ALIASES, OPTIONS_OF, OTHERS, SHOWN
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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["logs", "shop", "--nostream"], "here `logs` shows past lines, and `logs -f` new ones too"),
        (["logs", "--err"], "here one file has everything; the lines of the error log have their level"),
        (["restart", "shop", "--update-env"], "here a new environment takes effect with `stop` and `start`"),
        (["run", "a:b", "-i", "max"], "here it is --workers"),
        (["start", "a:b", "--env", "production"], "here it is env in multicore.toml, or --env-file"),
    ],
)
def test_an_option_of_pm2s_gets_one_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, arguments)
    (option,) = (it for it in arguments if it in OPTIONS_OF[arguments[0]])
    assert (done.exit_code, done.stderr) == (2, f"multicore-server: {option} is PM2's; {said}\n")


def test_an_option_that_nobody_has() -> None:
    done = CliRunner().invoke(main, ["logs", "--nothing"])
    assert (done.exit_code, "No such option '--nothing'" in done.stderr) == (2, True)


@pytest.mark.parametrize("command", OPTIONS_OF)
def test_no_option_of_ours_is_said_to_be_pm2s(command: str) -> None:
    found = main.get_command(click.Context(main), command)
    assert found is not None
    ours = {flag for param in found.params for flag in (*param.opts, *param.secondary_opts)}
    assert not ours & OPTIONS_OF[command].keys()


@pytest.mark.parametrize("name", SHOWN)
def test_what_gunicornc_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["show", name])
    assert done.exit_code == 2
    assert done.stderr == f"multicore-server: show {name} is gunicornc's; {SHOWN[name]}\n"


def test_triggers_arguments_in_the_order_of_pm2s() -> None:
    done = CliRunner().invoke(main, ["trigger", "shop", "gc"])
    text = "trigger: 'gc' is not an instance number; `ps` shows them; for a server 'shop': trigger gc -s shop"
    assert (done.exit_code, done.stderr) == (2, f"multicore-server: {text}\n")
