"""The real Prometheus, as Debian's package ``prometheus`` has it, with the configuration of ``examples``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.support.addresses import free_port
from tests.support.programs import program
from tests.support.waiting import PATIENCE, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "prometheus"
TARGET = "127.0.0.1:9464"  # in the example


def promtool(*arguments: str | Path) -> str:
    """What promtool says; fails the test if it finds a mistake."""
    done = subprocess.run(
        [program("promtool", "prometheus"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


class Prometheus:
    """Scrapes ``target`` each second and keeps what it finds below ``directory``."""

    def __init__(self, directory: Path, target: str) -> None:
        self.directory = directory
        self.port = free_port()
        self.log_path = directory / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(exist_ok=True)
        self._configure(target)

    def _configure(self, target: str) -> None:
        text = (EXAMPLES / "prometheus.yml").read_text()
        for old, new in {TARGET: target, "interval: 15s": "interval: 1s"}.items():
            assert old in text
            text = text.replace(old, new)
        (self.directory / "prometheus.yml").write_text(text)
        shutil.copy(EXAMPLES / "alerts.yml", self.directory)

    def start(self) -> Prometheus:
        """Start it and wait until it answers."""
        arguments = [
            program("prometheus"),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, cwd=self.directory, env={**os.environ, "GOMAXPROCS": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(self._is_ready, "Prometheus ready")
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"Prometheus has ended:\n{self.log_path.read_text()}"
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End it and print its log, which pytest shows where the test has failed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        print(f"--- {self.log_path} ---\n{self.log_path.read_text()}")

    # --- what it has to say

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API, ``path`` as after ``/api/v1/``; fails the test unless it is a
        success."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}"
        answer = httpx.get(url, params=parameters, timeout=PATIENCE).json()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an instant vector."""
        data = self.ask("query", query=expression)
        assert data["resultType"] == "vector", f"{expression}: {data}"
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def values(self, expression: str, label: str) -> dict[str, float]:
        """The values of series that differ in ``label`` alone, without those that are 0."""
        return {labels[label]: value for labels, value in self.query(expression) if value}

    def value(self, expression: str) -> float | None:
        """The value of an expression that is about one series; None as long as there is none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0][1] if found else None

    def wait_scraped(self, after: float) -> None:
        """Wait for a scrape that has succeeded and began after this time, in seconds since the epoch."""
        # Of anything but a plain selector, timestamp() is when the query was evaluated.
        wait_for(lambda: (self.value("timestamp(up) * up") or 0) > after, "a scrape by Prometheus")

    def rules(self) -> list[dict[str, Any]]:
        """The alert rules as it has read them."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def alerts(self) -> set[str]:
        """The names of the alerts that are pending or firing."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]}
