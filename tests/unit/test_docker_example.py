"""examples/docker: what its files say of each other, of the server and of the other examples."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from gunicorn.config import Config

from multicore_server.settings.quantities import duration
from multicore_server.settings.table import TABLE
from tests.support.dockerfile import stages

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCKER = EXAMPLES / "docker"
STAGES = stages(DOCKER / "Dockerfile")


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


SERVICES: dict[str, dict[str, Any]] = loaded(DOCKER / "compose.yaml")["services"]
GRACEFUL_TIMEOUT = Config().graceful_timeout
METRICS_PORT = TABLE["metrics_bind"].default.rpartition(":")[2]


def mounts(service: str) -> dict[str, Path]:
    """What is mounted from the repository, by the path in the container."""
    pairs = [volume.removesuffix(":ro").split(":") for volume in SERVICES[service]["volumes"]]
    return {inside: DOCKER / outside for outside, inside in pairs if outside.startswith(".")}


@pytest.mark.parametrize("target", ["gunicorn", "uvicorn"])
def test_what_an_image_runs(target: str) -> None:
    stage = STAGES[target]
    assert stage.command[0] == target
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", stage.user)
    assert METRICS_PORT in stage.check[-1]
    assert "/readyz" in stage.check[-1]
    assert [*STAGES][-1] == "gunicorn"  # the default


def test_every_image_has_a_version() -> None:
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    for image in [*images, *(stage.base for stage in STAGES.values())]:
        assert re.search(r":v?\d+\.\d+", image), image


def copied() -> list[tuple[list[str], str]]:
    """What is copied of the clone, and where to."""
    text = (DOCKER / "Dockerfile").read_text()
    return [
        (what.split(), where) for what, where in re.findall(r"^COPY (?!--)(.*) (\S+)$", text, re.MULTILINE)
    ]


def test_what_is_copied_is_not_ignored() -> None:
    let_through = re.findall(r"^!(\S+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(name for names, _ in copied() for name in names) == sorted(let_through)
    assert all((EXAMPLES.parent / name).exists() for name in let_through)


def test_the_package_is_built_from_what_is_copied(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    for names, where in copied():
        for name in names:
            of, to = EXAMPLES.parent / name, tmp_path / where.lstrip("/")
            if of.is_dir():
                shutil.copytree(of, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(of, to)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    done = subprocess.run(command, cwd=tmp_path / "src", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "src" / "dist").iterdir()
    assert "multicore_server/__init__.py" in zipfile.ZipFile(wheel).namelist()


def test_the_live_view_is_in_the_image() -> None:
    assert "multicore-server monit" in (EXAMPLES.parent / "docs" / "docker.md").read_text()
    assert "/src[monit]" in (DOCKER / "Dockerfile").read_text()


def test_the_app_has_time_to_end() -> None:
    app = SERVICES["app"]
    delay = app["environment"].get("MULTICORE_SHUTDOWN_DELAY", TABLE["shutdown_delay"].default)
    assert duration(app["stop_grace_period"]) > duration(delay) + GRACEFUL_TIMEOUT
    stop = re.search(r"--stop-timeout (\d+)", (DOCKER / "Dockerfile").read_text())
    assert stop is not None
    assert float(stop[1]) > GRACEFUL_TIMEOUT
    assert {name[10:].lower() for name in app["environment"]} <= set(TABLE)


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_what_is_mounted_is_there(service: str) -> None:
    assert mounts(service)
    assert all(path.exists() for path in mounts(service).values())


def test_prometheus_scrapes_the_app() -> None:
    ours = loaded(DOCKER / "prometheus.yml")
    (target,) = ours["scrape_configs"][0]["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in SERVICES
    assert SERVICES[host]["environment"]["MULTICORE_METRICS_BIND"] == f"0.0.0.0:{port}"
    ours["scrape_configs"][0]["static_configs"][0]["targets"] = [TABLE["metrics_bind"].default]
    assert ours == loaded(EXAMPLES / "prometheus" / "prometheus.yml")
    places = mounts("prometheus")
    assert f"/etc/prometheus/{ours['rule_files'][0]}" in places


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    places = mounts("grafana")
    provisioning = places["/etc/grafana/provisioning"]
    (source,) = loaded(provisioning / "datasources" / "prometheus.yml")["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert any(published.endswith(f":{port}") for published in SERVICES[host]["ports"])
    assert source["type"] == "prometheus"
    (provider,) = loaded(provisioning / "dashboards" / "multicore_server.yml")["providers"]
    assert [inside for inside in places if inside.startswith(provider["options"]["path"] + "/")]


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
