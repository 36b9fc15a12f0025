"""The options of ``run``, what they mean, and what of uvicorn's command line the take-over repeats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from gunicorn.config import make_settings
from uvicorn.main import main as uvicorn_command

from multicore_server.application import run as run_from_python
from multicore_server.cli import prefork, run
from multicore_server.cli.main import COMMANDS, main
from multicore_server.settings.table import TABLE, SettingError
from multicore_server.settings.translation import translate
from multicore_server.settings.uvicorn import uvicorn_environment

# --- the options


def flags(param: click.Parameter) -> set[str]:
    return {*param.opts, *param.secondary_opts}


def test_every_option_of_uvicorns_is_there() -> None:
    ours = {param.name: param for param in run.run.params}
    for param in uvicorn_command.params:
        assert flags(param) <= flags(ours[param.name]), param.name
        if param.name != "workers":
            of_time = param.name.startswith("timeout_")
            assert (
                isinstance(ours[param.name].type, run.Seconds)
                if of_time
                else ours[param.name].type is param.type
            )
            assert ours[param.name].default == param.default


def test_every_setting_has_its_flag_and_line_of_help() -> None:
    ctx = click.Context(run.run)
    section = run.run.get_help(ctx).split("\nSupervision ")[1].split("\nAs in gunicorn:")[0]
    params = {param.name: param for param in run.run.params}
    for row in TABLE.values():
        flag, text = params[row.name].get_help_record(ctx) or ("", "")
        assert re.search(rf"{row.flag}( |$)", flag)
        assert row.meaning in text
        assert text.endswith(f"[default: {row.default}]")
        assert flag in section


def test_gunicorns_flags_are_gunicorns() -> None:
    settings = make_settings()
    ours = {param.name: param for param in run.run.params}
    for name in run.FROM_GUNICORN:
        assert set(ours[name].opts) == set(settings[name].cli)


def test_gunicorns_values_are_read_as_gunicorn_reads_them() -> None:
    params = run.run.make_context("run", ["app:app", "--umask", "022", "--timeout", "7", "-D"]).params
    assert (params["umask"], params["timeout"], params["daemon"]) == (0o22, 7, True)


@pytest.mark.parametrize("flag", ["--timeout", "--graceful-timeout", "--timeout-keep-alive"])
def test_times_have_units(flag: str) -> None:
    name = flag[2:].replace("-", "_")
    for text, seconds in (("7", 7), ("30s", 30), ("10m", 600)):
        assert run.run.make_context("run", ["app:app", flag, text]).params[name] == seconds
    for text in ("soon", "-1", "500ms"):
        with pytest.raises(click.UsageError, match="; give whole seconds, or 2s, 10m, 24h"):
            run.run.make_context("run", ["app:app", flag, text])


def test_no_flag_twice() -> None:
    every = [flag for param in run.run.params for flag in (*param.opts, *param.secondary_opts)]
    assert len(every) == len(set(every))


def test_settings_are_not_read_from_uvicorns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_MIN_UPTIME", "3s")
    monkeypatch.setenv("UVICORN_TIMEOUT", "3")
    monkeypatch.setenv("UVICORN_PORT", "81")
    ctx = run.run.make_context("run", ["app:app"])
    assert (ctx.params["min_uptime"], ctx.params["timeout"], ctx.params["port"]) == (None, None, 81)


def test_the_groups_commands() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2


SCRIPT = """
import sys
from multicore_server.cli.main import main
main.list_commands(None)
main.main(["--help"], standalone_mode=False)
sys.exit("gunicorn" in sys.modules or "uvicorn" in sys.modules)
"""


def test_help_imports_no_server() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- what uvicorn's options mean


@pytest.mark.parametrize(
    ("given", "gunicorn"),
    [
        ({}, {}),
        ({"port": 81}, {"bind": "127.0.0.1:81"}),
        ({"host": "0.0.0.0"}, {"bind": "0.0.0.0:8000"}),
        ({"host": "::1", "port": 0}, {"bind": "[::1]:0"}),
        ({"host": ""}, {"bind": "0.0.0.0:8000"}),
        ({"uds": "a.sock", "port": 81}, {"bind": "unix:a.sock"}),
        ({"fd": 3, "host": "0.0.0.0"}, {"bind": "fd://3"}),
        ({"timeout_keep_alive": 7}, {"keepalive": 7}),
        ({"timeout_graceful_shutdown": 7}, {"graceful_timeout": 7}),
        ({"timeout_worker_healthcheck": 7}, {"timeout": 7}),
        ({"limit_max_requests": 7}, {"max_requests": 7}),
        ({"limit_max_requests_jitter": 2}, {"max_requests_jitter": 2}),
        ({"ssl_keyfile": "k", "ssl_certfile": "c"}, {"keyfile": "k", "certfile": "c"}),
        ({"ssl_ca_certs": "a", "ssl_cert_reqs": 2}, {"ca_certs": "a", "cert_reqs": 2}),
        ({"ssl_ciphers": "x"}, {"ciphers": "x"}),
        ({"log_level": "trace"}, {"loglevel": "debug"}),
        ({"log_level": "error", "access_log": False}, {"loglevel": "error", "accesslog": None}),
        ({"backlog": 5, "use_colors": False}, {"backlog": 5}),
    ],
)  # fmt: skip
def test_gunicorns_part(given: dict[str, Any], gunicorn: dict[str, Any]) -> None:
    assert translate(given) == (gunicorn, {})


@pytest.mark.parametrize(
    ("given", "uvicorn"),
    [
        ({"loop": "multicore_server:prefork"}, {"loop": "auto"}),
        ({"loop": "my:loop", "http": "h11", "ws": "none"}, {"loop": "my:loop", "http": "h11", "ws": "none"}),
        ({"headers": ("A: b", "C:d:e")}, {"headers": [("A", "b"), ("C", "d:e")]}),
        ({"factory": True, "root_path": "/a"}, {"factory": True, "root_path": "/a"}),
        ({"forwarded_allow_ips": "10.0.0.0/8"}, {"forwarded_allow_ips": "10.0.0.0/8"}),
        ({"an_option_to_come": 3}, {"an_option_to_come": 3}),
    ],
)
def test_uvicorns_part(given: dict[str, Any], uvicorn: dict[str, Any]) -> None:
    assert translate(given) == ({}, uvicorn)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fd": 3, "uds": "x"}, "fd and uds are two addresses"),
        ({"http": "nonsense"}, "http: 'nonsense' .* is not known; give auto, h11"),
        ({"headers": ("nonsense",)}, "headers: 'nonsense' .* is not a header"),
        ({"log_config": "missing.json"}, "log_config: 'missing.json' cannot be read"),
    ],
)
def test_contradictions_and_nonsense(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said) as raised:
        translate(given)
    assert "\n" not in str(raised.value)


def test_reload_watches_the_directories(tmp_path: Path) -> None:
    for name in ("a.py", "b.html", "c.txt", "skip/d.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    given = {"reload_dirs": (str(tmp_path),), "reload_includes": ("*.html",), "reload_excludes": ("*/skip",)}
    found = translate({"reload": True, **given}).gunicorn
    assert found["reload_extra_files"] == [str(tmp_path / "a.py"), str(tmp_path / "b.html")]


def test_a_log_config_is_for_the_arbiter_too(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps({"version": 1, "loggers": {"uvicorn": {"handlers": ["x"], "level": "INFO"}}}))
    gunicorn, uvicorn = translate({"log_config": str(path), "log_level": "error"})
    adopted = gunicorn["logconfig_dict"]["loggers"]["gunicorn.error"]
    assert adopted == {"handlers": ["x"], "level": "ERROR"}
    assert uvicorn == {"access_log": True}


@pytest.mark.parametrize("name", ["log.json", "log.yaml"])
def test_a_log_config_for_gunicorns_access_log_is_gunicorns(tmp_path: Path, name: str) -> None:
    path = tmp_path / name  # JSON is YAML, too
    path.write_text(json.dumps({"version": 1, "loggers": {"gunicorn.access": {"handlers": ["x"]}}}))
    gunicorn, uvicorn = translate({"log_config": str(path)})
    assert "accesslog" not in gunicorn
    assert uvicorn == {}


@pytest.mark.parametrize(
    ("text", "said"), [("PORT=1", "no section headers"), ("[loggers]\nkeys=root", r"no section \[handlers\]")]
)
def test_a_log_config_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "log.ini"
    path.write_text(text)
    with pytest.raises(SettingError, match=said) as raised:
        translate({"log_config": str(path)}, lambda name: "--log-config")
    assert str(raised.value).startswith("--log-config: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fd", "3", "--uds", "x"], "Error: --fd and --uds are two addresses; give one of them"),
        (["--reload", "--workers", "2"],
         "Error: --reload runs one worker, and --workers says 2; give one of them"),
        (["--max-requests", "1", "--limit-max-requests", "2"],
         "Error: --limit-max-requests and --max-requests are the same; give one of them"),
        (["--header", "x"], "Error: --header: 'x' (from run's options) is not a header; give name:value"),
        (["--loop", "x"], "Error: --loop: 'x' (from run's options) is not known"),
    ],
)  # fmt: skip
def test_refused_with_one_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["run", "app:app", *arguments])
    assert done.exit_code == 2
    assert len([line for line in done.output.splitlines() if said in line]) == 1


def test_run_from_python_knows_uvicorns_names() -> None:
    with pytest.raises(TypeError, match=r"unknown option 'root_pathh'; did you mean root_path\?"):
        run_from_python("app:app", root_pathh="/")
    with pytest.raises(SystemExit, match="Error: fd and uds are two addresses"):
        run_from_python("app:app", fd=3, uds="x")


# --- the take-over's command


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "/bin/uvicorn", "-B"], []),
        (["python", "-m", "uvicorn"], []),
        (["python", "-B", "-X", "dev", "-Werror", "-m", "uvicorn"], ["-B", "-X", "dev", "-Werror"]),
        (["python", "-OBm", "uvicorn"], ["-OB"]),
        (["python", "-W", "-m", "-mx"], ["-W", "-m"]),
        (["python", "-BX", "dev", "/bin/uvicorn"], ["-BX", "dev"]),
        (["python", "--check-hash-based-pycs", "never", "x"], ["--check-hash-based-pycs", "never"]),
        (["python"], []),
    ],
)
def test_interpreter_flags(argv: list[str], expected: list[str]) -> None:
    assert prefork.interpreter_flags(argv) == expected


def words(*arguments: str) -> list[str]:
    """What follows APP in the command that takes over from uvicorn with these arguments."""
    ctx = uvicorn_command.make_context("uvicorn", ["app:app", *arguments], auto_envvar_prefix="UVICORN")
    command = prefork.command(ctx)
    assert command[command.index("-m") :][:4] == ["-m", "multicore_server", "run", "app:app"]
    return command[command.index("app:app") + 1 :]


@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        (["--loop", "multicore_server:prefork"], []),
        (["--loop=multicore_server:prefork", "--port=81"], ["--port", "81"]),
        (["--header", "A:b c", "--header", "D:e"], ["--header", "A:b c", "--header", "D:e"]),
        (["--no-access-log", "--factory"], ["--no-access-log", "--factory"]),
        (["--proxy-headers"], ["--proxy-headers"]),
        (["--root-path=-x"], ["--root-path=-x"]),
        (["--ssl-keyfile-password", "secret"], []),
        (["--port", "8000"], ["--port", "8000"]),  # the default, but said
    ],
)  # fmt: skip
def test_options_are_repeated(given: list[str], repeated: list[str]) -> None:
    assert sorted(words(*given)) == sorted(repeated)


def test_the_environment_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.touch()
    assert words("--env-file", str(path)) == []


def test_variables_are_left_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_PORT", "81")
    monkeypatch.setenv("UVICORN_HEADERS", "A:b C:d")
    assert words() == []


def test_what_click_has_seen_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app, imported meanwhile, may have changed the environment."""
    monkeypatch.setenv("UVICORN_PORT", "81")
    ctx = uvicorn_command.make_context("uvicorn", ["app:app"], auto_envvar_prefix="UVICORN")
    monkeypatch.setenv("UVICORN_PORT", "82")
    assert prefork.command(ctx)[-2:] == ["--port", "81"]


def test_reads_as_auto_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVICORN_LOOP", "multicore_server:prefork")
    assert uvicorn_environment()["loop"] == "auto"


def test_called_from_python() -> None:
    with pytest.raises(RuntimeError, match="run instead: multicore-server run APP"):
        prefork.prefork()


def test_called_in_another_click_command() -> None:
    @click.command()
    def program() -> None:
        prefork.prefork()

    done = CliRunner().invoke(program)
    assert isinstance(done.exception, RuntimeError)
