"""Checks a configuration and its app as a start would; binds nothing, writes nothing, leaves nothing behind.

A mistake of the user becomes a finding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gunicorn.pidfile import Pidfile

from multicore_server import hosts
from multicore_server.arbiter import deployment, listeners, resolution
from multicore_server.arbiter.worker_number import MB, WorkerNumber, oom_line
from multicore_server.check.app import app_findings
from multicore_server.check.finding import LEVELS, Finding, Level
from multicore_server.check.unit import StopTimeout
from multicore_server.fleet.retiring import DRAIN_MARGIN
from multicore_server.machine import cgroup, memory
from multicore_server.machine.cpu import usable_cpus
from multicore_server.machine.directories import check_appendable, check_makable
from multicore_server.monitor.address import AddressError, try_metrics
from multicore_server.settings.gunicorn import log_configuration, log_files, worker_class
from multicore_server.settings.table import SettingError, Settings
from multicore_server.version import __version__
from multicore_server.worker.worker import Worker

ANY_HOST = {"", "0.0.0.0", "::"}


class Subject(NamedTuple):
    """``app`` is gunicorn's application, loaded. ``running``: the server that it describes may run already,
    so that what it has is no error. ``allowed``: what systemd allows for the end."""

    app: Any
    settings: Settings
    running: bool
    allowed: StopTimeout | None

    @property
    def cfg(self) -> Any:
        return self.app.cfg


def find(app: Any, *, running: bool = False, allowed: StopTimeout | None = None) -> list[Finding]:
    """Everything that is found, errors last; the arguments are a `Subject`'s."""
    return sorted(_find(app, running, allowed), key=lambda it: LEVELS.index(it.level))


def _find(app: Any, running: bool, allowed: StopTimeout | None) -> Iterator[Finding]:
    deployment.enter_environment(app.cfg)
    try:
        if not issubclass(worker_class(app.cfg), Worker):
            text = "is not multicore_server.Worker: nothing of this package is at work"
            yield Finding("error", f"worker_class: {app.cfg.worker_class_str!r} {text}")
            return
    except TypeError as exc:
        yield Finding("error", f"worker_class: {exc}")
        return
    except RuntimeError as exc:  # gunicorn's text ends with a traceback, in brackets
        why = str(exc).rstrip(" \n]").splitlines()[-1]
        yield Finding("error", f"worker_class: {app.cfg.settings['worker_class'].get()!r}: {why}")
        return
    try:
        subject = Subject(app, resolution.resolve_settings(app), running, allowed)
    except SettingError as exc:
        yield from (Finding("error", line) for line in resolution.mistakes(app, exc))
    else:
        for part in PARTS:
            yield from part(subject)
    yield from _files(app.cfg, running)
    yield from _addresses(app.cfg, running)
    yield from app_findings(app)


# --- with the settings


def _versions(_: Subject) -> Iterator[Finding]:
    yield Finding("note", hosts.versions(__version__))
    yield from (Finding("warning", line) for line in hosts.losses())


def _doubts(subject: Subject) -> Iterator[Finding]:
    yield from (Finding("warning", line) for line in resolution.doubts(subject.app, subject.settings))


def _workers(subject: Subject) -> Iterator[Finding]:
    settings, limit = subject.settings, cgroup.memory_limit()
    number = WorkerNumber.of(settings, subject.cfg)
    yield Finding("note", number.reason(usable_cpus(), cgroup.cpu_quota()))
    total = memory.available()
    whose = "no limit" if limit is None else "the limit of this control group"
    each = f"{total // MB // settings.workers} MiB for each worker"
    yield Finding("note", f"memory: {total // MB} MiB ({whose}), {each}")
    if line := oom_line():
        yield Finding("warning", line)
    for name in ("max_memory_restart", "max_memory_kill"):
        if size := getattr(settings, name):
            needed = size.bytes(total, settings.workers)
            yield Finding("note", f"{name}: {needed // MB} MiB for each worker")
            if needed * settings.workers > total:
                text = f"{needed // MB} MiB for each of {settings.workers} workers are more than there is"
                yield Finding("warning", f"{name}: {text} ({total // MB} MiB): memory runs out before that")


def _metrics(subject: Subject) -> Iterator[Finding]:
    """A taken address does not stop a start: it is tried again, for as long as the server runs."""
    address = subject.settings.metrics_bind
    if not address:
        return
    for bound in _bound(subject.cfg):
        if _clash(address, bound):
            yield Finding("warning", f"metrics_bind: {address} is in use by bind ({bound}); give another one")
            return
    yield Finding("note", f"metrics: {address}")
    try:
        try_metrics(address)
    except AddressError as exc:
        yield Finding("warning", str(exc))


def _bound(cfg: Any) -> list[str]:
    with contextlib.suppress(RuntimeError, ValueError):  # which is an error of its own
        return [listeners.text_of(address) for address in cfg.address]
    return []


def _clash(one: str, other: str) -> bool:
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    hosts = {host.strip("[]"), other_host.strip("[]")}
    return port == other_port != "0" and (len(hosts) == 1 or bool(hosts & ANY_HOST))


def _end(subject: Subject) -> Iterator[Finding]:
    settings, cfg, allowed = subject.settings, subject.cfg, subject.allowed
    needed = settings.shutdown_delay + cfg.graceful_timeout + DRAIN_MARGIN
    if allowed is not None and allowed.seconds < needed:
        parts = f"graceful_timeout = {cfg.graceful_timeout} and shutdown_delay = {settings.shutdown_delay:g}"
        yield Finding(
            "warning",
            f"{parts} take up to {needed:g} s, and systemd kills the server after {allowed.seconds:g} s "
            f"({allowed.source}): give TimeoutStopSec={needed + 3:.0f} or more",
        )


def _user(subject: Subject) -> Iterator[Finding]:
    cfg = subject.cfg
    if os.geteuid() != 0 and (cfg.uid, cfg.gid) != (os.geteuid(), os.getegid()):
        text = "only root, or who has CAP_SETUID and CAP_SETGID, can run workers as another user"
        yield Finding("warning", f"user: {text}")


PARTS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _versions, _doubts, _workers, _metrics, _end, _user,
)  # fmt: skip


# --- without


def _addresses(cfg: Any, running: bool) -> Iterator[Finding]:
    try:
        refusals = listeners.refusals(cfg)
    except (RuntimeError, ValueError) as exc:  # gunicorn parses them each time that they are asked for
        yield Finding("error", f"bind: {exc}")
        return
    for refusal in refusals:
        yield Finding("warning" if running and refusal.taken else "error", str(refusal))
    if not refusals:
        yield Finding("note", f"addresses: {', '.join(map(listeners.text_of, cfg.address))}")


def _files(cfg: Any, running: bool) -> Iterator[Finding]:
    for name, path in log_files(cfg).items():
        yield from _attempt(name, path, check_appendable)
    if cfg.pidfile:
        yield from _attempt("pidfile", cfg.pidfile, check_makable)
        yield from _pid(cfg, running)
    name = log_configuration(cfg)
    if name in ("logconfig", "logconfig_json") and not Path(getattr(cfg, name)).is_file():
        level: Level = "error" if name == "logconfig" else "warning"
        yield Finding(level, f"{name}: {getattr(cfg, name)!r} does not exist")


def _attempt(name: str, path: str, attempt: Callable[[Path], None]) -> Iterator[Finding]:
    try:
        attempt(Path(path))
    except OSError as exc:
        yield Finding("error", f"{name}: {path!r} cannot be written: {exc.strerror}")


def _pid(cfg: Any, running: bool) -> Iterator[Finding]:
    try:
        pid = Pidfile(cfg.pidfile).validate()
    except OSError as exc:
        yield Finding("error", f"pidfile: {cfg.pidfile!r} cannot be read: {exc.strerror}")
        return
    if pid:
        text = f"pidfile: {cfg.pidfile!r} has the pid of a process that runs ({pid})"
        yield Finding("warning" if running else "error", text)
