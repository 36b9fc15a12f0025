"""One list of interpreters, in four places; one of smoke tests, in two."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tox(section: str, key: str) -> str:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    return config[section][key]


def test_each_has_an_environment_and_is_brought_where_it_is_missing() -> None:
    classifiers = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    (brought,) = re.findall(r"\.ci/pythons ([\d. ]+)\)", (ROOT / ".ci/run").read_text())
    (factors,) = re.findall(r"py\{([\d,]+)\}", tox("tox", "env_list"))
    bases = [tox(f"testenv:{name}", "base_python") for name in ("full", "lowest")]
    found = [f"3.{factor[1:]}" for factor in factors.split(",")]
    found += [base.split(",")[0].removeprefix("python") for base in bases]
    assert brought.split() == classifiers
    assert sorted(found, key=lambda version: int(version[2:])) == classifiers


def test_the_files_that_have_smoke_tests_are_those_that_every_interpreter_reads() -> None:
    here = ROOT / "tests" / "integration"
    marked = {path for path in here.glob("*.py") if "pytest.mark.smoke" in path.read_text()}
    named = re.findall(r"tests/integration/\w+\.py", tox("testenv", "commands"))
    assert {ROOT / name for name in named} == marked
