"""The manifests of examples/kubernetes, and its pod as the kubelet would run it."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples" / "kubernetes"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def manifest(name: str) -> dict[str, Any]:
    """A file with one document, by its path below the examples, without the suffix."""
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return found


POD: dict[str, Any] = manifest("base/deployment")["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
PORTS: dict[str, int] = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


def _value(entry: dict[str, Any]) -> str:
    if "value" in entry:
        return str(entry["value"])
    kind, resource = entry["valueFrom"]["resourceFieldRef"]["resource"].split(".")
    return str(CONTAINER["resources"][kind][resource])


ENVIRONMENT: dict[str, str] = {entry["name"]: _value(entry) for entry in CONTAINER["env"]}


def probe(name: str) -> bool:
    """What the kubelet's HTTP probe says, asked for in the pod's network."""
    request = CONTAINER[name]["httpGet"]
    port = PORTS[request["port"]]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CONTAINER[name]["timeoutSeconds"])
    try:
        connection.request("GET", request["path"])
        return 200 <= connection.getresponse().status < 400
    except OSError:
        return False
    finally:
        connection.close()
