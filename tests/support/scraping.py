"""What a scraper sees of a server, and how to ask each of its workers."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.support.addresses import LOCAL, free_port, refuses
from tests.support.server import Server
from tests.support.waiting import PATIENCE, wait_for

OURS = ("multicore_", "process_")
INSTANCE = "int(os.environ['MULTICORE_INSTANCE'])"

Ask: TypeAlias = Callable[[str], Any]
Get: TypeAlias = Callable[[str], Any]


class Scrape:
    """One answer of /metrics; fails the test if a family or a sample is in it twice."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.families, f"{family.name} is served twice"
            self.families[family.name] = family
        self._samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in self.families.values():
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in self._samples, f"{sample} is served twice"
                self._samples[key] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """The sample with exactly these labels; None if there is none."""
        return self._samples.get((name, frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        """Of all samples that have these labels, whatever else they have."""
        return sum(
            value for found, has, value in self._all() if found == name and labels.items() <= has.items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values of samples that differ in ``label`` alone."""
        return {labels[label]: value for found, labels, value in self._all() if found == name}

    @property
    def app(self) -> dict[str, float]:
        """The app's own metrics, each sample by its name and labels as text."""
        return {
            name + _written(labels): value for name, labels, value in self._all() if not name.startswith(OURS)
        }

    def pids(self, known: set[str]) -> list[object]:
        """The samples in which a label is one of these pids, or is called so."""
        return [
            (name, labels)
            for name, labels, _ in self._all()
            for label, value in labels.items()
            if label == "pid" or (value in known and (label == "worker" or not name.startswith(OURS)))
        ]

    def _all(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for (name, labels), value in self._samples.items():
            yield name, dict(labels), value


def _written(labels: dict[str, str]) -> str:
    text = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return f"{{{text}}}" if text else ""


class Scraped:
    """A server with an address for scrapers, and its scrapes: in none of them is a pid."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.address = f"{LOCAL}:{free_port()}"

    def start(self, *options: str, env: dict[str, str] | None = None, **others: Any) -> Server:
        """As `Server.start`."""
        environ = {"MULTICORE_METRICS_BIND": self.address, **(env or {})}
        return self.server.start("--keep-alive", "60", *options, env=environ, **others)

    def scrape(self) -> Scrape:
        answer = httpx.get(f"http://{self.address}/metrics", timeout=PATIENCE, trust_env=False)
        assert answer.status_code == 200, answer.text
        scrape = Scrape(answer.text)
        assert scrape.pids(set(re.findall(r"pid=(\d+)", self.server.log))) == []
        return scrape

    def app(self) -> dict[str, float]:
        return self.scrape().app

    def reachable(self) -> bool:
        return not refuses(int(self.address.rpartition(":")[2]))

    def wait_for(self, expected: dict[str, float], what: str) -> None:
        """Wait until the app's metrics, as far as they are named here, are these; None: not shown."""
        seen: list[dict[str, float]] = []

        def found() -> bool:
            app = self.app()
            seen[:] = [{name: app[name] for name in expected if name in app}]
            return seen[0] == expected

        try:
            wait_for(found, what)
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {seen[0]} is not {expected}") from None


@contextmanager
def each_worker(server: Server, count: int) -> Iterator[dict[int, Ask]]:
    """How to ask each of the workers, by instance number."""
    with connected(server, count, f"/?{quote(INSTANCE)}") as workers:
        yield {
            instance: lambda expression, get=get: get(f"/?{quote(expression)}")  # type: ignore[misc]
            for instance, get in workers.items()
        }


@contextmanager
def connected(server: Server, count: int, who: str) -> Iterator[dict[int, Get]]:
    """How to GET a path as JSON from each of the workers, over a connection of its own that is kept alive;
    by instance number, which the app answers at the path ``who``."""
    made: list[http.client.HTTPConnection] = []
    found: dict[int, Get] = {}

    def reached_all() -> bool:
        made.append(http.client.HTTPConnection(LOCAL, server.port, timeout=PATIENCE))
        get = partial(_get, made[-1])
        found.setdefault(get(who), get)
        return len(found) == count

    try:
        wait_for(reached_all, f"connections to {count} workers")
        yield found
    finally:
        for connection in made:
            connection.close()


def _get(connection: http.client.HTTPConnection, path: str) -> Any:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, (answer.status, body)
    return json.loads(body)
