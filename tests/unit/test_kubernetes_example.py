"""examples/kubernetes: its numbers and names fit each other, the image, the settings and the metrics."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from gunicorn.config import Config

from multicore_server.metrics.definitions import reference
from multicore_server.settings.quantities import duration
from multicore_server.settings.sources import BOOT_TIME
from multicore_server.settings.table import PREFIX, TABLE
from tests.support.dockerfile import DOCKERFILE, stages
from tests.support.kubernetes import CONTAINER, ENVIRONMENT, EXAMPLES, POD, PORTS, PROBES, manifest

STAGE = stages(DOCKERFILE)["gunicorn"]
DEPLOYMENT = manifest("base/deployment")
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
AUTOSCALER = manifest("monitored/horizontalpodautoscaler")["spec"]
(RULE,) = manifest("prometheus-adapter")["rules"]
OURS = {
    name.removeprefix(PREFIX).lower(): value for name, value in ENVIRONMENT.items() if name.startswith(PREFIX)
}
GUNICORN = Config().parser().parse_args(shlex.split(ENVIRONMENT["GUNICORN_CMD_ARGS"]))
OBJECTS = {
    kind: manifest(name)
    for kind, name in {
        "Deployment": "base/deployment",
        "Service": "base/service",
        "PodDisruptionBudget": "base/poddisruptionbudget",
        "NetworkPolicy": "base/networkpolicy",
        "PodMonitor": "monitored/podmonitor",
        "HorizontalPodAutoscaler": "monitored/horizontalpodautoscaler",
    }.items()
}


def window(name: str) -> float:
    """Seconds until a probe that fails counts."""
    return float(CONTAINER[name]["periodSeconds"] * CONTAINER[name]["failureThreshold"])


def test_it_has_time_to_end() -> None:
    least = duration(OURS["shutdown_delay"]) + Config().graceful_timeout
    assert POD["terminationGracePeriodSeconds"] > least
    assert "graceful_timeout" not in OURS
    assert GUNICORN.graceful_timeout is None


def test_it_has_time_to_start() -> None:
    """A preloaded app's import, and then a worker's boot."""
    assert GUNICORN.preload_app
    assert window("startupProbe") >= 2 * BOOT_TIME
    assert window("readinessProbe") <= duration(OURS["shutdown_delay"])


@pytest.mark.parametrize("name", PROBES)
def test_probes_ask_the_monitor(name: str) -> None:
    request = CONTAINER[name]["httpGet"]
    assert OURS["metrics_bind"] == f"0.0.0.0:{PORTS[request['port']]}"
    assert request["path"] == ("/healthz" if name == "livenessProbe" else "/readyz")


def test_every_setting_is_one() -> None:
    assert set(OURS) <= set(TABLE)
    for name, value in OURS.items():
        TABLE[name].parse(value)


def test_the_image_is_that_of_the_docker_example() -> None:
    assert f"0.0.0.0:{PORTS['http']}" in STAGE.command
    security = POD["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == STAGE.user
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert "command" not in CONTAINER
    images = manifest("base/kustomization")["images"]
    assert [image["name"] for image in images] == [CONTAINER["image"]]


def test_memory_is_left_for_what_is_no_worker() -> None:
    assert CONTAINER["resources"]["requests"]["memory"] == CONTAINER["resources"]["limits"]["memory"]
    soft, hard = (float(OURS[name].rstrip("%")) for name in ("max_memory_restart", "max_memory_kill"))
    assert soft < hard < 90


def selector(kind: str) -> dict[str, str]:
    spec: dict[str, Any] = OBJECTS[kind]["spec"]
    found: dict[str, Any] = spec.get("selector") or spec["podSelector"]
    labels: dict[str, str] = found.get("matchLabels", found)
    return labels


@pytest.mark.parametrize("kind", [kind for kind in OBJECTS if kind != "HorizontalPodAutoscaler"])
def test_selectors_select_the_pods(kind: str) -> None:
    assert selector(kind) == LABELS
    assert OBJECTS[kind]["kind"] == kind


def test_ports_have_the_pods_names() -> None:
    policy = OBJECTS["NetworkPolicy"]["spec"]["ingress"]
    named = [
        *(port["targetPort"] for port in OBJECTS["Service"]["spec"]["ports"]),
        *(port["port"] for rule in policy for port in rule["ports"]),
        *(endpoint["port"] for endpoint in OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]),
    ]
    assert named == ["http", "http", "metrics", "metrics"]
    assert set(named) == set(PORTS)
    # The metrics are for some alone.
    assert [rule["ports"][0]["port"] for rule in policy if "from" not in rule] == ["http"]


def test_the_autoscaler_scales_by_what_the_adapter_knows() -> None:
    pods = next(metric["pods"] for metric in AUTOSCALER["metrics"] if metric["type"] == "Pods")
    assert pods["metric"]["name"] == RULE["name"]["as"]
    assert AUTOSCALER["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]
    assert AUTOSCALER["minReplicas"] == DEPLOYMENT["spec"]["replicas"]
    series = set(re.findall(r"multicore_\w+", RULE["seriesQuery"] + RULE["metricsQuery"]))
    assert len(series) == 2
    documented = reference()
    assert all(f"`{name.removesuffix('_sum')}`" in documented for name in series)


def test_the_pod_monitor_has_the_job_of_the_alerts() -> None:
    (endpoint,) = OBJECTS["PodMonitor"]["spec"]["podMetricsEndpoints"]
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["targetLabel"] == "job"
    alerts = (EXAMPLES.parent / "prometheus" / "alerts.yml").read_text()
    assert f'job="{relabeling["replacement"]}"' in alerts


def test_nothing_is_left_out() -> None:
    """Every file is in a kustomization, or is for another namespace."""
    listed = {
        f"{folder}/{name.removesuffix('.yaml')}"
        for folder in ("base", "monitored")
        for name in manifest(f"{folder}/kustomization")["resources"]
        if name != "../base"
    }
    files = {path.relative_to(EXAMPLES).with_suffix("").as_posix() for path in EXAMPLES.rglob("*.yaml")}
    assert files - listed == {"base/kustomization", "monitored/kustomization", "prometheus-adapter"}
