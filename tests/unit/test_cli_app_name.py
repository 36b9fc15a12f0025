"""What people give for APP, and what they are told."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from multicore_server.cli.app_name import mistake_in
from multicore_server.cli.run import run
from multicore_server.cli.uvicorn_help import OTHER

SOURCES = {
    "ours_app.py": "import x\napp = x()",
    "ours_django.py": "application = 1",
    "ours_imported.py": "from x import application",
    "ours_star.py": "from x import *\napp = 1",
    "ours_lazy.py": "def __getattr__(name): ...\napp = 1",
    "ours_factory.py": "def create_app(): ...",
    "ours_other.py": "site = 1",
    "ours_broken.py": "app = ",
    "ours_package/__init__.py": "",
    "ours_package/main.py": "if True:\n    api = 1",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("ours_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("app", "meant"),
    [
        ("ours_app.py", "ours_app:app"),
        ("./ours_app.py", "ours_app:app"),
        ("ours_app.py:other", "ours_app:other"),
        ("ours_package/main.py", "ours_package.main:api"),
        ("ours_missing.py", "ours_missing:app"),
        ("ours_app", "ours_app:app"),
        ("ours_factory", "ours_factory:create_app"),
        ("ours_other", "ours_other:NAME"),
        ("ours_package.main", "ours_package.main:api"),
        ("uvicorn main:app --port 8001", "main:app"),
        ("gunicorn -b 0.0.0.0:80 shop.wsgi:application", "shop.wsgi:application"),
        ("python ours_package/main.py --debug", "ours_package.main:api"),
        ("npm start", "module:app"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_give(app: str, meant: str) -> None:
    said = mistake_in(app)
    assert said.endswith((f" give {meant}", f" app in it: {meant}", f" behind that: {meant}"))
    assert "\n" not in said


@pytest.mark.parametrize(
    "app",
    ["ours_app:app", "ours_django", "ours_imported", "ours_star", "ours_lazy", "ours_broken", "ours_missing",
     "a.b", "ours_package", "sys", "main:make('a b', 2)"],
)  # fmt: skip
def test_what_may_be_right_is_left_to_the_workers(app: str) -> None:
    assert mistake_in(app) == ""


def test_nothing_is_imported() -> None:
    mistake_in("ours_package.main")
    assert "ours_package.main" not in sys.modules


@pytest.mark.parametrize("name", [param.name for param in run.params if param.name in OTHER])  # by uvicorn
def test_the_help_has_the_defaults_that_are_in_force(name: str) -> None:
    (param,) = (param for param in run.params if param.name == name)
    _, text = param.get_help_record(click.Context(run)) or ("", "")
    assert text == OTHER[name]
