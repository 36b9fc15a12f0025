"""What the monitor answers, asked in this process: with faults of the arbiter, of a client and of a merge."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from multicore_server.ipc.mailboxes import Mailboxes
from multicore_server.ipc.messages import Answer, Command, ScaleCommand
from multicore_server.ipc.request_table import RequestTable
from multicore_server.ipc.scoreboard import ROWS_PER_SLOT, Scoreboard
from multicore_server.ipc.shared_report import SharedReport
from multicore_server.monitor.actions import WorkerClient
from multicore_server.monitor.commands import ArbiterError
from multicore_server.monitor.gate import Gate
from multicore_server.monitor.pages import MAX_COMMAND, Full, ReadOnly
from multicore_server.monitor.samples import Samples
from multicore_server.monitor.scrape import Merge
from multicore_server.monitor.snapshot import Form, Snapshots
from multicore_server.monitor.view import ReportView
from tests.support.reports import report, slot
from tests.unit.shell import Log


class Arbiter:
    """Answers commands, or raises."""

    def __init__(self) -> None:
        self.answer: Answer | Exception = Answer(1, True, "done")
        self.asked: list[Command] = []

    async def ask(self, command: Command) -> Answer:
        self.asked.append(command)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Pages:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.shared_report = SharedReport(2**20)
        self.log = Log()
        self.arbiter = Arbiter()
        view, scoreboard = ReportView(self.shared_report), Scoreboard(4)
        self.snapshots = Snapshots(Merge(scoreboard, view, None, str, self.log))
        client: Any = self.arbiter
        self.samples = Samples(scoreboard)
        self.read_only = ReadOnly(scoreboard, view, self.snapshots, self.samples)
        self.mailboxes = Mailboxes(4 * ROWS_PER_SLOT)
        self.workers = WorkerClient(self.mailboxes, scoreboard)
        self.requests = RequestTable(4 * ROWS_PER_SLOT)
        parts = self.snapshots, self.samples, client, self.workers, self.requests
        self.full = Full(scoreboard, view, *parts)

    def publish(self, **changes: Any) -> None:
        self.shared_report.publish(json.dumps(report(**changes)).encode())

    def ask(self, app: Gate, method: str, path: str, **options: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            made: Any = app
            transport = httpx.ASGITransport(made, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **options)

        return self.loop.run_until_complete(asked())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask(self.read_only.app(), "GET", path, **options)

    def command(self, name: str, **options: Any) -> httpx.Response:
        return self.ask(self.full.app(), "POST", f"/commands/{name}", **options)


@pytest.fixture
def pages() -> Iterator[Pages]:
    found = Pages()
    yield found
    found.snapshots.close()
    found.mailboxes.close()
    found.loop.run_until_complete(found.loop.shutdown_asyncgens())  # httpx's, of a body that was not read
    found.loop.close()


# --- who only reads ---


def test_before_the_first_report(pages: Pages) -> None:
    status = pages.get("/status")
    assert (status.status_code, status.json()["monitor"]["pid"]) == (503, os.getpid())
    assert pages.get("/readyz").text == "the server is starting\n"
    assert pages.get("/metrics").status_code == 200


def test_with_a_report(pages: Pages) -> None:
    pages.publish(name="app\ud800:app")
    assert pages.get("/status").json()["name"] == "app\ud800:app"
    assert pages.get("/readyz").text == "ok\n"
    pages.publish(slots=[slot(0, "errored", [])])
    answer = pages.get("/readyz")
    assert (answer.status_code, answer.text) == (503, "no worker is ready\n")


@pytest.mark.parametrize("text", [b"no JSON", b"[" * 100_000], ids=["no JSON", "nested too deeply"])
def test_what_a_process_has_overwritten_changes_nothing(pages: Pages, text: bytes) -> None:
    pages.publish(name="app:app")
    assert pages.get("/readyz").text == "ok\n"
    pages.shared_report.publish(text)
    assert pages.get("/status").json()["name"] == "app:app"


def test_health_is_the_arbiters_life(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pages.get("/healthz").text == "ok\n"
    monkeypatch.setattr(os, "getppid", lambda: 1)
    answer = pages.get("/healthz")
    assert (answer.status_code, answer.text) == (503, "the arbiter has exited\n")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics"),
    ],
)
def test_metrics_in_the_form_that_is_asked_for(pages: Pages, accept: str, kind: str) -> None:
    for encoding in ("gzip", "identity"):
        answer = pages.get("/metrics", headers={"accept": accept, "accept-encoding": encoding})
        assert answer.headers["content-type"].startswith(kind)
        assert (answer.headers.get("content-encoding") == "gzip") == (encoding == "gzip")
        assert "multicore_workers" in answer.text


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/metrics/", 404), ("/commands/stop", 404)])
def test_what_is_not_there_is_not_repeated(pages: Pages, path: str, status: int) -> None:
    answer = pages.get(path)
    assert (answer.status_code, answer.text) == (status, "not found; / lists the addresses\n")


def test_other_methods_are_refused(pages: Pages) -> None:
    answer = pages.ask(pages.read_only.app(), "DELETE", "/metrics")
    assert (answer.status_code, answer.text) == (405, "this method is not accepted here\n")


def test_workers_may_ask_for_the_metrics_alone(pages: Pages) -> None:
    app = pages.read_only.metrics_app()
    asked = [pages.ask(app, "GET", path).status_code for path in ("/metrics", "/status", "/readyz", "/")]
    assert asked == [200, 404, 404, 404]


# --- commands ---


def test_a_command_has_its_answer(pages: Pages) -> None:
    pages.arbiter.answer = Answer(1, True, "scaling from 2 to 3", 3)
    answer = pages.command("scale", json={"workers": "+1"})
    assert (answer.status_code, answer.json()) == (
        200, {"ok": True, "text": "scaling from 2 to 3", "workers": 3},
    )  # fmt: skip
    assert pages.arbiter.asked == [ScaleCommand(0, "+1")]


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (Answer(1, False, "the server is stopping"), 409, "the server is stopping"),
        (ArbiterError("the arbiter has exited"), 503, "the arbiter has exited"),
        (TimeoutError("not within 10 s"), 504, "not within 10 s"),
    ],
)
def test_a_command_that_is_not_begun(
    pages: Pages, answer: Answer | Exception, status: int, text: str
) -> None:
    pages.arbiter.answer = answer
    found = pages.command("reload")
    assert (found.status_code, found.json()) == (status, {"ok": False, "text": text})


def test_a_body_that_is_wrong_or_too_long_is_not_passed_on(pages: Pages) -> None:
    assert pages.command("scale", content=b"{").json()["text"] == "the body is not JSON"
    found = pages.command("scale", content=b" " * (MAX_COMMAND + 1))
    assert (found.status_code, found.json()["text"]) == (400, f"the body is longer than {MAX_COMMAND} bytes")
    assert pages.arbiter.asked == []


def test_a_client_that_leaves_in_the_middle_of_a_body(pages: Pages) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/commands/reload", "query_string": b"", "headers": [],
        "http_version": "1.1", "root_path": "", "scheme": "http",
    }  # fmt: skip
    asyncio.run(pages.full.app()(scope, receive, send))
    assert sent[0]["status"] == 400
    assert pages.arbiter.asked == []


@pytest.mark.parametrize("last", ["x", "-1", "1234567", "\u0661"])
def test_a_number_of_events_that_is_none(pages: Pages, last: str) -> None:
    answer = pages.ask(pages.full.app(), "GET", "/events", params={"last": last})
    assert (answer.status_code, answer.json()["text"]) == (400, "last: give a number of events")


def test_the_events_begin_with_the_last_ones(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    async def once(self: Any) -> AsyncIterator[bytes]:
        yield b": begun\n\n"

    monkeypatch.setattr("multicore_server.monitor.follow.Follower.stream", once)
    answer = pages.ask(pages.full.app(), "GET", "/events?last=2")
    assert (answer.headers["content-type"], answer.text) == (
        "text/event-stream; charset=utf-8", ": begun\n\n",
    )  # fmt: skip
    assert pages.ask(pages.full.app(), "HEAD", "/events").status_code == 200


# --- the app's own metrics ---


class AppMetrics:
    """What `Merge` needs of the app's own metrics; ``fails`` says how they cannot be collected."""

    def __init__(self) -> None:
        self.left_out, self.collisions = 3, 2
        self.fails = ""

    def collect(self, owners: Any) -> list[Any]:
        if self.fails:
            raise OSError(self.fails)
        return []


def merging(pages: Pages, app: AppMetrics) -> Callable[[], str]:
    metrics: Any = app
    merge = Merge(pages.full.scoreboard, pages.full.view, metrics, str, pages.log)
    plain = Form(openmetrics=False, gzipped=False)

    def scrape() -> str:
        return merge({plain})[plain].decode()

    return scrape


def test_what_is_left_out_of_the_apps_metrics_is_counted(pages: Pages) -> None:
    text = merging(pages, AppMetrics())()
    assert 'multicore_app_metrics_left_out{reason="file"} 3.0\n' in text
    assert 'multicore_app_metrics_left_out{reason="collision"} 2.0\n' in text


def test_metrics_of_the_app_that_cannot_be_collected_cost_the_others_nothing(pages: Pages) -> None:
    app = AppMetrics()
    scrape = merging(pages, app)
    app.fails = "no such directory"
    assert [("multicore_workers" in scrape()) for _ in range(3)] == [True] * 3
    assert len(pages.log.said("cannot be collected (OSError: no such directory)")) == 1  # and not every time
    app.fails = "permission denied"
    scrape()
    app.fails = ""
    scrape()
    app.fails = "permission denied"
    scrape()
    assert len(pages.log.said("permission denied")) == 2  # it was mended meanwhile


# --- the samples


def test_samples_before_there_is_any(pages: Pages) -> None:
    document = pages.get("/samples").json()
    assert (document["samples"], document["marks"]) == ([], [])
    assert document["columns"][0] == "at"


def test_samples_are_packed_for_those_who_can_unpack_them(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 110.0)
    for number in range(100):
        pages.samples.take(report(), 10.0 + number, 1000.0 + number)
    plain = pages.get("/samples", headers={"accept-encoding": "identity"})
    packed = pages.get("/samples", headers={"accept-encoding": "gzip"})
    assert plain.headers["content-type"] == packed.headers["content-type"] == "application/json"
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2


def test_samples_after_one(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    for at in (10.0, 12.0, 14.0):
        pages.samples.take(report(), at, 1000.0)
    found = [
        [it[0] for it in pages.get(f"/samples{query}").json()["samples"]] for query in ("", "?after=12.0")
    ]
    assert found == [[10.0, 12.0, 14.0], [14.0]]


@pytest.mark.parametrize("after", ["", "x", "nan", "-inf", "1e999", "1" * 21, "%00"])
def test_samples_after_no_moment(pages: Pages, after: str) -> None:
    answer = pages.get("/samples", params={"after": after})
    assert (answer.status_code, answer.text) == (400, "after: give the time of a sample, in seconds\n")
