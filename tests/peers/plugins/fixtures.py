"""Puts fixtures in the place of those of other people's conftest.py."""

from __future__ import annotations

from typing import Any

import pytest


class Replacing:
    """Registered as a plugin: a conftest.py gets our fixtures before pytest looks at its own."""

    def __init__(self, fixtures: dict[str, Any]) -> None:
        self._fixtures = fixtures

    @pytest.hookimpl(tryfirst=True)
    def pytest_plugin_registered(self, plugin: object) -> None:
        if not getattr(plugin, "__file__", "").endswith("conftest.py"):
            return
        for name, fixture in self._fixtures.items():
            if hasattr(plugin, name):
                setattr(plugin, name, fixture)
