"""Every snippet of the docs: a command's options are there, a configuration loads, an app answers.

A block that no test can run has a line above it: ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import configparser
import importlib.util
import json
from collections.abc import Callable

import pytest

from tests.support.pages import Snippet, snippets
from tests.unit.docs.command_lines import check_script
from tests.unit.docs.python_snippets import check_python

# What is checked by another test, or is not run anywhere, with the reason.
ELSEWHERE = {
    "mermaid": "tests/unit/test_fleet_slots.py draws it",
    "promql": "tests/unit/test_metrics_definitions.py has the names, promtool the rest",
    "text": "what a program says",
    "nginx": "tests/integration/test_proxies.py runs nginx",
    "haproxy": "tests/integration/test_proxies.py runs HAProxy",
    "sql": "no database is at hand",
    "js": "no Node is at hand",
}


def check_transcript(text: str) -> None:
    check_script("\n".join(line[2:] for line in text.splitlines() if line.startswith("$ ")))


def check_json(text: str) -> None:
    json.loads(text)


def check_yaml(text: str) -> None:
    yaml = pytest.importorskip("yaml")
    try:
        assert all(list(yaml.safe_load_all(text)))
    except yaml.YAMLError as exc:
        raise ValueError(str(exc)) from None


def check_toml(text: str) -> None:
    toml = pytest.importorskip("tomllib" if importlib.util.find_spec("tomllib") else "tomli")
    assert toml.loads(text)


def check_unit(text: str) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text if "[" in text else f"[Service]\n{text}")  # a line of it stands alone
    for section in unit.sections():
        for name, value in unit[section].items():
            if name.startswith("Exec"):
                check_script(value.lstrip("-+!"))


def check_dockerfile(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        assert word.isupper() or word in ("", "#"), line
        _, is_health, command = rest.partition("CMD ") if word == "HEALTHCHECK" else ("", "", rest)
        if word in ("CMD", "ENTRYPOINT") or is_health:
            # The exec form: with a shell's, the server would not be PID 1, and would get no TERM.
            words = json.loads(command)
            check_script(" ".join(f"'{each}'" if "'" not in each else "VALUE" for each in words))


CHECKS: dict[str, Callable[[str], None]] = {
    "sh": check_script,
    "console": check_transcript,
    "python": check_python,
    "json": check_json,
    "yaml": check_yaml,
    "toml": check_toml,
    "ini": check_unit,
    "dockerfile": check_dockerfile,
}
SNIPPETS = list(snippets())


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet(snippet: Snippet) -> None:
    if snippet.why_not or snippet.language in ELSEWHERE:
        return
    assert snippet.language in CHECKS, f"{snippet}: how is {snippet.language!r} checked?"
    CHECKS[snippet.language](snippet.text)


def test_they_are_found() -> None:
    assert len(SNIPPETS) > 80
    assert {snippet.language for snippet in SNIPPETS} > {"sh", "python", "yaml"}


WRONG = (
    ("sh", "multicore-server run app:app --max-memory-limit 3M"),
    ("sh", "multicore-server reload --wait"),
    ("sh", "multicore-server frobnicate"),
    ("sh", "gunicorn -k multicore_server.Worker --graceful 3 app:app"),
    ("sh", "gunicorn -k multicore_server.Workers app:app"),
    ("sh", "uvicorn app:app --preload"),
    ("sh", "uvicorn app:app --loop multicore_server:perfork"),
    ("sh", "MULTICORE_WORKER=3 gunicorn -k multicore_server.Worker app:app"),
    ("sh", "MULTICORE_WORKERS=many gunicorn -k multicore_server.Worker app:app"),
    ("sh", "tox -e nothing"),
    ("sh", "python -m tests.nothing"),
    ("sh", "pip install '.[nothing]'"),
    ("sh", "kill -SIGNAL 4000"),
    ("sh", "what-is-this"),
    ("console", "$ multicore-server show --jason"),
    ("ini", "[Service]\nExecStart=/srv/venv/bin/gunicorn -k multicore_server.Worker --wrong app:app"),
    ("dockerfile", 'CMD ["multicore-server", "run", "--wrong", "app:app"]'),
    ("dockerfile", "CMD gunicorn app:app"),
    ("json", "{"),
    ("yaml", "a: ["),
    ("toml", "a ="),
    ("python", "def"),
    ("python", "from multicore_server import Workers"),
    ("python", "from multicore_server import cluster\ncluster.broadcasts({})"),
    ("python", "# gunicorn.conf.py\nmax_memory_restart = 'much'"),
    ("python", "# gunicorn.conf.py\nmax_memory_restarts = '3M'"),
    ("python", "async def app(scope, receive, send):\n    raise OSError"),
)


FAULTS = (AssertionError, ImportError, SyntaxError, ValueError, OSError)


@pytest.mark.parametrize(("language", "text"), WRONG)
def test_a_mistake_is_found(language: str, text: str) -> None:
    with pytest.raises(FAULTS):
        CHECKS[language](text)
