"""``multicore-server check``: what a start would refuse and what would have no effect, without a start."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from multicore_server.arbiter.deployment import in_one_line
from multicore_server.check.finding import Finding
from multicore_server.check.findings import find
from multicore_server.check.unit import StopTimeout, UnitError, stop_timeout
from multicore_server.cli import table
from multicore_server.cli.run import Run, Section, make_application
from multicore_server.cli.run import run as run_command
from multicore_server.cli.text import plain

COLORS = {"error": "red", "warning": "yellow"}
_GUNICORNS = "multicore_server.gunicorns_arguments"  # in a context's meta
_HEADING = "Check"


class Check(Run):
    """Takes the options of `run`; or the whole command line that starts the server."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = _own_words(args)
        words = args[len(own) :]
        names = [Path(word).name for word in words[:2]]
        if names[:1] == ["gunicorn"]:
            ctx.meta[_GUNICORNS] = words[1:]
            words = []
        elif names[:1] == ["uvicorn"]:
            words = words[1:]
        elif names in (["multicore-server", "run"], ["mcs", "run"]):
            words = words[2:]
        return super().parse_args(ctx, [*own, *words])


def _own_words(args: list[str]) -> list[str]:
    """The options of `check` that stand in front of everything else."""
    words = iter(args)
    found: list[str] = []
    for word in words:
        if word not in ("--strict", "--json", "--running", "--unit") and not word.startswith("--unit="):
            break
        found += [word, *([next(words, "")] if word == "--unit" else [])]
    return found


def _params() -> list[click.Parameter]:
    runs = [copy.copy(param) for param in run_command.params]
    for param in runs:
        if param.name == "app":
            param.required = False
    texts = {
        "running": "the server may be running: that its addresses and its pidfile are in use is a warning",
        "strict": "exit status 1 for a warning, too",
        "json": "print JSON",
    }
    flags = [
        Section([f"--{name}", f"check_{name}"], help=text, heading=_HEADING, is_flag=True)
        for name, text in texts.items()
    ]
    text = "the service's unit of systemd, a file or a name: is its TimeoutStopSec long enough?"
    unit = Section(["--unit", "check_unit"], help=text, heading=_HEADING, metavar="UNIT")
    return [*runs, *flags, unit]


def _check(
    check_running: bool, check_strict: bool, check_json: bool, check_unit: str | None, **_: Any
) -> None:
    findings = [*_found(running=check_running, allowed=_allowed(check_unit))]
    levels = [it.level for it in findings]
    failed = "error" in levels or (check_strict and "warning" in levels)
    if check_json:
        click.echo(json.dumps({"ok": not failed, "findings": [it._asdict() for it in findings]}, indent=2))
    else:
        for line in _lines(findings):
            click.echo(line)
    sys.exit(int(failed))


def _allowed(unit: str | None) -> StopTimeout | None:
    try:
        return stop_timeout(unit)
    except UnitError as exc:
        raise click.UsageError(str(exc)) from None


def _found(**how: Any) -> Iterator[Finding]:
    ctx = click.get_current_context()
    gunicorns = ctx.meta.get(_GUNICORNS)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            app = _ours(ctx) if gunicorns is None else _gunicorns_application(gunicorns)
    except SystemExit as exc:
        if not exc.code:  # gunicorn --help
            raise
        yield Finding("error", in_one_line(said.getvalue()), said.getvalue().strip())
        return
    sys.stderr.write(said.getvalue())
    yield from find(app, **how)


def _ours(ctx: click.Context) -> Any:
    app = make_application(ctx)
    app.app_uri = app.app_uri or app.cfg.wsgi_app  # the config file may name it
    return app


def _gunicorns_application(arguments: list[str]) -> Any:
    from gunicorn.app.wsgiapp import WSGIApplication

    sys.argv = ["gunicorn", *arguments]  # where gunicorn, and whoever reads its settings, finds them
    return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")


def _lines(findings: list[Finding]) -> Iterator[str]:
    color = table.in_color()
    paint: Callable[..., str] = click.style if color else lambda text, **_: text
    for level, text, detail in findings:
        for line in detail.splitlines():
            yield f"  {plain(line)}"
        yield plain(text) if level == "note" else f"{paint(level, fg=COLORS[level])}: {plain(text)}"
    counts = {level: sum(it.level == level for it in findings) for level in COLORS}
    counted = ", ".join(f"{number} {level}{'s' * (number > 1)}" for level, number in counts.items() if number)
    verdict = "it would not start" if counts["error"] else "it would start"
    yield f"{verdict}: {counted}" if counted else verdict


check = Check(
    "check",
    params=_params(),
    callback=_check,
    context_settings={"auto_envvar_prefix": "UVICORN", "help_option_names": ["-h", "--help"]},
    short_help="Say what a start would refuse, and what would have no effect.",
    help="""Check the settings and APP as a start would, and start nothing.

    Takes the options of `run`. Or put `multicore-server check` before the command that starts the server:
    `multicore-server check gunicorn -c conf.py app:app`. Exit status 0 when it would start, else 1.""",
)
