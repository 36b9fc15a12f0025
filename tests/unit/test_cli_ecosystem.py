"""The ecosystem file: what each key means, and the one line that a mistake in it gets."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from multicore_server.cli import ecosystem
from multicore_server.cli.ecosystem import App, Log
from multicore_server.cli.servers import Trouble

DOCS = Path(__file__).parents[2] / "docs/ecosystem.md"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def read(directory: Path, text: str, name: str = ecosystem.FILE) -> dict[str, App]:
    path = directory / name
    path.write_text(text)
    return ecosystem.read(path)


def app(directory: Path, table: str) -> App:
    (found,) = read(directory, f'[shop]\napp = "shop:app"\n{table}').values()
    return found


# --- what it says


def test_a_table_is_an_app_by_its_name(tmp_path: Path) -> None:
    found = read(tmp_path, '[shop]\napp = "shop.main:app"\n\n["blog-2"]\napp = "blog:make()"\n')
    log = Log(tmp_path / "state/multicore/shop.log", "10M", "5")
    assert found["shop"] == App("shop", "shop.main:app", tmp_path, sys.executable, {}, (), log)
    assert found["blog-2"].app == "blog:make()"
    assert [it.name for it in ecosystem.chosen(found, [], tmp_path)] == ["shop", "blog-2"]
    assert [it.name for it in ecosystem.chosen(found, ["blog-2", "blog-2"], tmp_path)] == ["blog-2"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("port = 8001", ["--port", "8001"]),
        ('workers = "max"', ["--workers", "max"]),
        ("workers = -1", ["--workers=-1"]),
        ("max_memory_restart = '300M'", ["--max-memory-restart", "300M"]),
        ("max-memory-restart = '300M'", ["--max-memory-restart", "300M"]),
        ("graceful_timeout = '45s'", ["--graceful-timeout", "45s"]),
        ("backoff_reset = 1.5", ["--backoff-reset", "1.5"]),
        ("autorestart = false", ["--autorestart", "false"]),
        ("access_log = false", ["--no-access-log"]),
        ("access_log = true", ["--access-log"]),
        ("preload_app = true", ["--preload"]),
        ("preload = true", ["--preload"]),
        ("preload_app = false", []),
        ("wait_ready = false", ["--no-wait-ready"]),
        ("env_file = '.env'", ["--env-file", ".env"]),
        ("header = ['X-A: b', 'X-C: d']", ["--header", "X-A: b", "--header", "X-C: d"]),
        ("headers = 'X-A: b'", ["--header", "X-A: b"]),
        ("pid = 'shop.pid'", ["--pid", "shop.pid"]),
        ("port = 1\nworkers = 2", ["--port", "1", "--workers", "2"]),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)  # fmt: skip
def test_options_of_run_by_any_of_their_names(tmp_path: Path, table: str, words: list[str]) -> None:
    assert list(app(tmp_path, table).options) == words


@pytest.mark.parametrize(
    ("table", "log"),
    [
        ("", ("state/multicore/shop.log", "10M", "5")),
        ("log = true", ("state/multicore/shop.log", "10M", "5")),
        ("log = 'logs/out.log'", ("logs/out.log", "10M", "5")),
        ("log = '~/out.log'", ("home/out.log", "10M", "5")),
        ("log = { file = 'out.log', size = '1G', keep = 2 }", ("out.log", "1G", "2")),
        ("log = { size = 1000 }", ("state/multicore/shop.log", "1000", "5")),
        ("log = false", None),
        ("errorlog = 'error.log'", None),
        ("error_logfile = 'error.log'", None),
    ],
)
def test_where_the_output_goes(tmp_path: Path, table: str, log: tuple[str, str, str] | None) -> None:
    found = app(tmp_path, table)
    assert found.log == (None if log is None else Log(tmp_path / log[0], *log[1:]))
    assert found.log_given == table.startswith("log")
    command = found.command()
    assert ("--capture-output" in command) == (log is not None)
    assert "--capture-output" not in found.command(logs=False)


def test_the_command(tmp_path: Path) -> None:
    command = app(tmp_path, "port = 1\nlog = 'l'").command()
    assert command == [
        sys.executable, "-m", "multicore_server", "run", "shop:app", "--name", "shop", "--port", "1",
        "--error-logfile", str(tmp_path / "l"), "--capture-output", "--log-max-size", "10M",
        "--log-keep", "5",
    ]  # fmt: skip


def test_cwd_is_relative_to_the_file_and_the_rest_to_cwd(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    python = tmp_path / "shop/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    table = '[shop]\napp = "shop:app"\ncwd = "../shop"\npython = ".venv"\nlog = "shop.log"'
    found = read(tmp_path / "etc", table)["shop"]
    assert found.cwd.resolve() == tmp_path / "shop"
    assert Path(found.python).parent.samefile(python.parent)
    assert Path(found.python).is_symlink()
    assert found.log is not None
    assert found.log.file.parent.samefile(tmp_path / "shop")


def test_an_interpreter_by_its_path_or_from_path(tmp_path: Path) -> None:
    assert app(tmp_path, f"python = '{sys.executable}'").python == sys.executable
    assert os.access(app(tmp_path, "python = 'sh'").python, os.X_OK)


def test_the_environment_is_text(tmp_path: Path) -> None:
    env = app(tmp_path, "env = { NAME = 'a b', NUMBER = 3, DEBUG = true, PART = 0.5, EMPTY = '' }").env
    assert env == {"NAME": "a b", "NUMBER": "3", "DEBUG": "true", "PART": "0.5", "EMPTY": ""}
    assert app(tmp_path, "[shop.env]\nNAME = 'a'").env == {"NAME": "a"}


# --- the docs


def test_the_example_of_the_docs(tmp_path: Path) -> None:
    text = DOCS.read_text()
    python = tmp_path / "shop/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    found = read(tmp_path, text.partition("```toml\n")[2].partition("```")[0])
    assert list(found) == ["shop", "blog"]
    assert found["shop"].options[:4] == ("--port", "8001", "--workers", "2")
    for key in ecosystem.OURS:
        assert f"\n| `{key}` | " in text


# --- where it is


def test_pyproject(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\n\n[tool.multicore_server.shop]\napp = "shop:app"\n'
    assert list(read(tmp_path, text, "pyproject.toml")) == ["shop"]
    assert ecosystem.find(tmp_path) == tmp_path / "pyproject.toml"
    assert ecosystem.names(tmp_path / "pyproject.toml") == ["shop"]
    (tmp_path / "multicore.toml").touch()
    assert ecosystem.find(tmp_path) == tmp_path / "multicore.toml"


def test_no_file(tmp_path: Path) -> None:
    assert ecosystem.find(tmp_path) is None
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    assert ecosystem.find(tmp_path) is None


# --- mistakes


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            "prot = 1",
            "'prot' is no option of `run`, nor one of app, cwd, python, env, log; did you mean port?",
        ),
        ("script = 'x'", "'script' is no option of `run`, .*; did you mean app?"),
        ("instances = 4", "did you mean workers?"),
        ("kill_timeout = 4", "did you mean graceful_timeout?"),
        ("zzzzzz = 4", "'zzzzzz' is no option of `run`, nor one of app, cwd, python, env, log$"),
        ("daemon = true", "'daemon' cannot be given here: `start` runs every server in the background"),
        ("name = 'blog'", "'name' cannot be given here: the name of the table is the server's"),
        ("chdir = '/'", "'chdir' cannot be given here: give cwd"),
        ("port = [1, 2]", r"port: \[1, 2\] is not a text"),
        ("port = {}", "port: {} is not a text"),
        (r'root_path = "a\u0000b"', "root_path: .* is not a text"),
        ("preload_app = 1", "preload_app: 1 is neither true nor false"),
        ("header = [['a']]", r"header: \['a'\] is not a text"),
        ("cwd = 'nowhere'", "cwd: /.*/nowhere is no directory"),
        ("cwd = '~nobody-there'", "cwd: .*/~nobody-there is no directory"),
        ("cwd = 3", "cwd: 3 is not a text"),
        ("python = 'venv'", "python: /.*/venv is no interpreter"),
        ("env = 'A=b'", "env: give a table, such as env ="),
        ("env = { 'A=B' = 'c' }", "env: 'A=B' cannot be the name of a variable"),
        ("env = { A = [1] }", r"env: A: \[1\] is not a text"),
        ("log = 3", "log: give a file, or a table with file, size and keep"),
        ("log = { path = 'x' }", "log: 'path' is unknown; there are file, size, keep"),
        ("log = { keep = [] }", r"log: keep: \[\] is not a text"),
    ],
)
def test_a_mistake_in_a_table(tmp_path: Path, table: str, said: str) -> None:
    with pytest.raises(Trouble, match=said) as raised:
        app(tmp_path, table)
    assert raised.value.message.startswith(f"{tmp_path}/multicore.toml: [shop] ")
    assert raised.value.message.isprintable()
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[shop]\nport = 1", r"\[shop\] has no app; give app = "),
        ("[shop]\napp = 3", r"\[shop\] app: 3 is not a text"),
        ("port = 8000", r"\[port\] is no table; each app is one: \[shop\]"),
        ("[8000]\napp = 'a:b'", r"\[8000\] cannot be a name: .* not digits alone"),
        ("[all]\napp = 'a:b'", r"\[all\] cannot be a name"),
        ("['a/b']\napp = 'a:b'", r"\[a/b\] cannot be a name"),
        ("['']\napp = 'a:b'", r"\[\] cannot be a name"),
        ("", "multicore.toml has no app; give a table for each"),
        ("[shop\n", r"multicore.toml is not TOML: .*line 1"),
        ("[shop]\nport = 1\nport = 2", "multicore.toml is not TOML: Cannot overwrite a value"),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Trouble, match=said):
        read(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=r"none.toml cannot be read: No such file or directory"):
        ecosystem.read(tmp_path / "none.toml")
    (tmp_path / "multicore.toml").write_bytes(b"\xff")
    with pytest.raises(Trouble, match=r"multicore.toml is not TOML: .*utf-8"):
        ecosystem.read(tmp_path / "multicore.toml")


def test_a_name_that_is_not_in_it(tmp_path: Path) -> None:
    found = read(tmp_path, '[shop]\napp = "shop:app"\n[blog]\napp = "blog:app"')
    with pytest.raises(Trouble, match=r"F has no app 'shpo'; there are shop, blog"):
        ecosystem.chosen(found, ["shpo"], Path("F"))
