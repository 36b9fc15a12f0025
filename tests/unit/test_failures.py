"""What a user reads when a worker could not boot."""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from gunicorn.errors import AppImportError
from gunicorn.util import import_app

from multicore_server.worker import failures


def caught(call: Any, *arguments: Any) -> BaseException:
    with pytest.raises(BaseException) as info:  # noqa: PT011 - SystemExit too: the tests below look at it
        call(*arguments)
    exc = info.value
    assert exc.__traceback__ is not None
    exc.__traceback__ = exc.__traceback__.tb_next  # in a worker, the frames above are this package's
    return exc


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(text: str, name: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_an_app_that_exits_is_named_with_its_code() -> None:
    exc = SystemExit(7)
    assert failures.explain(exc, "a:app") == "a:app ended the process (sys.exit(7)) while it was loaded"
    assert failures.one_line(exc) == "something ended the process (sys.exit(7))"
    assert failures.app_traceback(exc, "a:app") == ""


def test_a_wrong_name_behind_the_colon_gets_one_line() -> None:
    exc = AppImportError("Failed to find attribute 'ap' in 'a'.\nmore")
    assert failures.explain(exc, "a:ap") == (
        "a:ap: Failed to find attribute 'ap' in 'a'; check the name after the colon"
    )
    assert failures.app_traceback(exc, "a:ap") == ""


def test_an_address_that_is_taken_may_be_the_servers() -> None:
    taken = OSError(errno.EADDRINUSE, "Address already in use")
    wrapped = RuntimeError("no exporter")
    wrapped.__cause__ = taken
    for exc in (taken, wrapped):
        assert "the server itself uses 127.0.0.1:9464" in failures.about_addresses(exc, "127.0.0.1:9464")
        assert failures.about_addresses(exc, "").startswith("; every worker runs this code")
    assert failures.about_addresses(OSError(errno.EACCES, "no"), "127.0.0.1:9464") == ""


def test_a_module_alone_is_told_the_name_of_its_app(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module("def app(): ...", "named_app")
    import_module("named_app")
    exc = AppImportError("Failed to find attribute 'application' in 'named_app'.")
    assert failures.explain(exc, "named_app").endswith("; did you mean named_app:app?")
    assert failures.explain(exc, "named_app:x").endswith("; check the name after the colon")
    monkeypatch.delitem(sys.modules, "named_app")


@pytest.mark.parametrize(("uri", "name"), [("no_such:app", "no_such"), ("no_such.sub:app", "no_such")])
def test_a_module_that_does_not_exist_gets_advice(uri: str, name: str) -> None:
    exc = caught(import_module, uri.partition(":")[0])
    assert failures.explain(exc, uri) == f"no module named {name!r}; check {uri!r}, --chdir and --pythonpath"
    assert failures.app_traceback(exc, uri) == ""


def test_a_module_that_the_app_misses_is_the_apps_failure(module: Any) -> None:
    name = module("import no_such_dependency\n", "misses_one")
    exc = caught(import_module, name)
    assert failures.explain(exc, f"{name}:app") == (
        f"{name}:app could not be loaded: ModuleNotFoundError: No module named 'no_such_dependency'"
    )
    text = failures.app_traceback(exc, f"{name}:app")
    assert "import no_such_dependency" in text


def test_the_traceback_begins_in_the_app(module: Any) -> None:
    name = module("def f():\n    return 1 / 0\nf()\n", "divides")
    exc = caught(import_app, f"{name}:app")
    lines = failures.app_traceback(exc, f"{name}:app").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "divides.py" in lines[1]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_syntax_error_is_shown_though_no_frame_of_the_app_ran(module: Any) -> None:
    name = module("def f(:\n", "unparsable")
    exc = caught(import_app, f"{name}:app")
    assert "def f(:" in failures.app_traceback(exc, f"{name}:app")


@pytest.mark.parametrize("exc", [ValueError("a\nb"), OSError("no file"), ImportError("x")])
def test_a_failure_outside_of_the_app_that_one_line_tells_has_no_traceback(exc: BaseException) -> None:
    assert failures.app_traceback(exc, "a:app") == ""


def test_a_mistake_of_ours_is_shown_whole() -> None:
    code = compile("def f(): raise KeyError('x')", failures.OURS[-2] + "/x.py", "exec")
    space: dict[str, Any] = {}
    exec(code, space)
    only_ours = caught(space["f"])
    assert "x.py" in failures.app_traceback(only_ours, "a:app")


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (ValueError("bad value\nand more"), "bad value"),
        (RuntimeError("bad\nmore"), "RuntimeError: bad"),
        (RuntimeError(), "RuntimeError"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_anything_else_is_its_first_line(exc: BaseException, line: str) -> None:
    assert failures.one_line(exc) == line
