"""Programs of other people's that tests run, as Debian has them."""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str, package: str = "") -> str:
    """The path of a program. Without it the test is skipped, and fails in CI."""
    found = shutil.which(name)
    if found is None:
        reason = f"there is no {name} on this machine: install Debian's package {package or name}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
