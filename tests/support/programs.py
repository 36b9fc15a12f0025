"""Programs of other people's that tests run, as Debian has them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest


def program(name: str, package: str = "") -> str:
    """The path of a program. Without it the test is skipped, and fails in CI."""
    found = shutil.which(name)
    return found or _missing(f"there is no {name} here: install Debian's package {package or name}")


def script(name: str, package: str) -> str:
    """The path of a program that a Python package brings. As `program`."""
    found = Path(sys.executable).with_name(name)
    return str(found) if found.exists() else _missing(f"there is no {name} here: pip install {package}")


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
