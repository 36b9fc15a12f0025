"""A pytest plugin: the servers that tests expect in containers are those that $PEERS_SERVICES names.

It is a JSON object of their names and URLs.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from .fixtures import Replacing

SERVICES: dict[str, str] = json.loads(os.environ["PEERS_SERVICES"])


@pytest.fixture(scope="session")
def docker_services() -> dict[str, str]:
    return Services(SERVICES)


class Services(dict[str, str]):
    def __missing__(self, name: str) -> str:
        pytest.skip(f"{name} does not run here")


@pytest.fixture
def framework_url(framework: str) -> str:
    return Services(SERVICES)[framework]


@pytest.fixture
def framework_ws_url(framework: str) -> str:
    return Services(SERVICES)[framework].replace("http:", "ws:")


FIXTURES: dict[str, Any] = {
    "docker_services": docker_services,
    "framework_url": framework_url,
    "framework_ws_url": framework_ws_url,
}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Replacing(FIXTURES))
