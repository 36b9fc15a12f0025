"""uvicorn's loggers, with gunicorn's logs behind them."""

from __future__ import annotations

import logging
import logging.config
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn.server
from gunicorn.config import Config
from gunicorn.glogging import Logger

from multicore_server.logs import JsonFormatter
from multicore_server.logs.origin import Origin
from multicore_server.worker import loggers
from multicore_server.worker.loggers import (
    access_line,
    is_moved,
    keep_enabled,
    lend,
    use_format,
    writes_json,
)
from multicore_server.worker.unlogged import Unlogged

UVICORNS = ("uvicorn", "uvicorn.error", "uvicorn.access")
SCOPE = {"type": "http", "method": "GET", "path": "/x", "query_string": b"a=b", "http_version": "1.1",
         "client": ("127.0.0.1", 5)}  # fmt: skip


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(autouse=True)
def error_log() -> Iterator[logging.Logger]:
    """gunicorn's error log, with one handler."""
    ours = logging.getLogger("gunicorn.error")
    ours.handlers, ours.propagate = [Kept()], False
    ours.setLevel(logging.INFO)
    for logger in map(logging.getLogger, UVICORNS):
        logger.handlers, logger.propagate, logger.filters = [], True, []
        logger.setLevel(logging.NOTSET)
    yield ours
    access_line.lent, access_line.formatter = False, None


def lines(log: logging.Logger) -> Any:
    (found,) = (handler.lines for handler in log.handlers if isinstance(handler, Kept))  # pytest adds its own
    return found


# --- what apps log


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error"])
def test_what_an_app_logs_with_uvicorns_loggers_is_shown(error_log: logging.Logger, name: str) -> None:
    lend(error_log, access=False)
    logging.getLogger(name).info("mine")
    logging.getLogger(name).debug("hidden")
    assert lines(error_log) == ["mine"]


def test_uvicorns_lines_about_its_start_are_not(error_log: logging.Logger) -> None:
    lend(error_log, access=False)
    for level, text in ((logging.INFO, "Shutting down"), (logging.ERROR, "bad")):
        made = ("uvicorn.error", level, uvicorn.server.__file__, 1, text, (), None)
        logging.getLogger("uvicorn.error").handle(logging.LogRecord(*made))
    assert lines(error_log) == ["bad"]


def test_an_app_that_clears_a_logger_leaves_gunicorns(error_log: logging.Logger) -> None:
    lend(error_log, access=False)
    logging.getLogger("uvicorn").handlers.clear()
    error_log.info("ours")
    assert lines(error_log) == ["ours"]


def test_what_a_configuration_has_set_up_stays(error_log: logging.Logger) -> None:
    theirs = Kept()
    logging.getLogger("uvicorn.error").addHandler(theirs)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    lend(error_log, access=False)
    logging.getLogger("uvicorn.error").info("hidden")
    logging.getLogger("uvicorn.error").warning("theirs")
    assert (theirs.lines, lines(error_log)) == (["theirs"], [])


# --- the access log


def judged(status: int = 200) -> tuple[bool, str | None]:
    return access_line.judge(SCOPE, status)


def test_without_a_worker_every_request_is_logged() -> None:
    assert judged() == (True, None)


def test_a_filter_is_given_uvicorns_five_arguments(error_log: logging.Logger) -> None:
    lend(error_log, access=True)
    seen: list[Any] = []

    def health(record: logging.LogRecord) -> bool:
        seen.append((record.name, record.args, record.getMessage()))
        return record.args[4] != 200  # type: ignore[index]

    assert judged() == (True, None)
    logging.getLogger("uvicorn.access").addFilter(health)
    assert judged() == (False, None)
    assert judged(404) == (True, None)
    assert seen[0] == (
        "uvicorn.access",
        ("127.0.0.1:5", "GET", "/x?a=b", "1.1", 200),
        '127.0.0.1:5 - "GET /x?a=b HTTP/1.1" 200',
    )


@pytest.mark.parametrize(
    "silence",
    [
        lambda logger: logger.handlers.clear(),
        lambda logger: logger.setLevel("WARNING"),
        lambda logger: setattr(logger, "disabled", True),
    ],
    ids=["its handlers are gone", "its level", "disabled"],
)
def test_an_app_may_silence_it(error_log: logging.Logger, silence: Any) -> None:
    lend(error_log, access=True)
    silence(logging.getLogger("uvicorn.access"))
    assert judged() == (False, None)


def test_an_app_may_give_it_a_form_and_a_handler_of_its_own(error_log: logging.Logger) -> None:
    lend(error_log, access=True)
    logger = logging.getLogger("uvicorn.access")
    logger.handlers[0].setFormatter(logging.Formatter("MINE %(message)s"))
    own = Kept()
    logger.addHandler(own)
    assert judged() == (True, 'MINE 127.0.0.1:5 - "GET /x?a=b HTTP/1.1" 200')
    assert own.lines == ['127.0.0.1:5 - "GET /x?a=b HTTP/1.1" 200']
    assert not logger.hasHandlers()  # by which uvicorn asks whether it is to write the record itself


def test_without_an_access_log_uvicorn_serves_an_apps_own_handler(error_log: logging.Logger) -> None:
    lend(error_log, access=False)
    logger = logging.getLogger("uvicorn.access")
    assert not logger.hasHandlers()
    logger.addHandler(Kept())
    assert logger.hasHandlers()


# --- log configurations


@pytest.mark.parametrize("name", ["gunicorn.error", "gunicorn.access"])
def test_no_configuration_silences_what_it_does_not_name(name: str) -> None:
    keep_enabled(name)
    keep_enabled(name)
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
    logger = logging.getLogger(name)
    assert not logger.disabled
    logger.disabled = True  # an app that means it
    assert logger.disabled
    logger.disabled = False


def test_a_queue_is_set_up_anew(error_log: logging.Logger) -> None:
    from logging.handlers import QueueHandler
    from queue import Queue

    done: list[Any] = []
    log = SimpleNamespace(error_log=error_log, setup=done.append)
    loggers.set_up(log, "cfg", access=False)
    assert done == []
    error_log.addHandler(QueueHandler(Queue()))
    loggers.set_up(log, "cfg", access=False)
    assert done == ["cfg"]


# --- log_format, and where a line comes from


def gunicorns(**settings: Any) -> Any:
    cfg = Config()
    for name, value in {"accesslog": "-", **settings}.items():
        cfg.set(name, value)
    return Logger(cfg)


def test_gunicorns_handlers_become_json(error_log: logging.Logger) -> None:
    for form, wanted in (("text", False), ("json", True)):
        log = gunicorns()
        use_format(log, log.cfg, form)
        every = [*log.error_log.handlers, *log.access_log.handlers]
        its = [it.formatter for it in every if getattr(it, "_gunicorn", False)]  # pytest adds its own
        assert [isinstance(formatter, JsonFormatter) for formatter in its] == [wanted] * 2
    assert writes_json(log)


def test_a_log_configuration_keeps_its_formatters(error_log: logging.Logger) -> None:
    log = gunicorns(logconfig_dict={"version": 1})
    use_format(log, log.cfg, "json")
    assert not writes_json(log)


def test_a_logger_class_without_an_access_log(error_log: logging.Logger) -> None:
    log = SimpleNamespace(error_log=error_log)
    use_format(log, Config(), "json")
    assert not writes_json(log)


def test_a_queue_is_set_up_as_json(error_log: logging.Logger) -> None:
    from logging.handlers import QueueHandler
    from queue import Queue

    log = gunicorns()
    logging.getLogger("gunicorn.error").addHandler(QueueHandler(Queue()))
    loggers.set_up(log, log.cfg, access=True, form="json")
    assert writes_json(log)


def test_atoms_of_an_access_line(error_log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multicore_server.logs.origin._origin", Origin(3, 2))
    log = gunicorns(access_log_format="%(instance)s %(generation)s %(s)s")
    loggers.set_up(log, log.cfg, access=True)
    log.access_log.handlers = [kept := Kept()]
    environ = {"REQUEST_METHOD": "GET", "RAW_URI": "/", "SERVER_PROTOCOL": "HTTP/1.1"}
    log.access(
        SimpleNamespace(status="200 OK", headers=[]), SimpleNamespace(headers=[]), environ, timedelta()
    )
    assert kept.lines == ["3 2 200"]


@pytest.mark.parametrize("written", [True, False])
def test_uvicorns_own_access_lines_are_skipped(error_log: logging.Logger, written: bool) -> None:
    """Where gunicorn's are written, those are skipped before anything is known of them."""
    log = gunicorns()
    loggers.set_up(log, log.cfg, access=written, unlogged=Unlogged(["/x"]))
    uvicorns = logging.getLogger("uvicorn.access")
    assert bool(uvicorns.filters) is not written
    uvicorns.handlers = [kept := Kept()]
    for path in ("/x?a=b", "/y"):
        uvicorns.info(loggers.ACCESS_FORMAT, "127.0.0.1:5", "GET", path, "1.1", 200)
    assert len(kept.lines) == 1 + written


# --- log files that were moved


@pytest.mark.parametrize("now", ["there", "renamed", "another file"])
def test_a_file_that_is_no_longer_at_its_path_is_known(
    error_log: logging.Logger, tmp_path: Path, now: str
) -> None:
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    error_log.addHandler(handler)
    if now != "there":
        path.rename(tmp_path / "log.1")
    if now == "another file":
        path.touch()
    try:
        assert is_moved(SimpleNamespace(error_log=error_log)) is (now != "there")
    finally:
        handler.close()


def test_logs_without_files_are_not_moved(error_log: logging.Logger) -> None:
    error_log.addHandler(logging.FileHandler("/nowhere", delay=True))
    assert not is_moved(SimpleNamespace(error_log=error_log, access_log=logging.getLogger("gunicorn.access")))
