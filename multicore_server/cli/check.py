"""``multicore-server check``: shows without a start what a start would refuse and what has no effect."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
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
from multicore_server.cli.run import Run, make_application
from multicore_server.cli.run import run as run_command
from multicore_server.cli.text import plain

COLORS = {"error": "red", "warning": "yellow"}
OURS = (["multicore-server", "run"], ["mcs", "run"], ["uvicorn"])  # how a start begins that `run` understands


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[RUN'S OPTIONS]... [APP]")
@click.option(
    "--running", is_flag=True, help="The server may be running: that its addresses are in use is no error."
)
@click.option(
    "--unit", metavar="UNIT", help="The server's systemd unit, a file or a name: check its TimeoutStopSec."
)
@click.option("--strict", is_flag=True, help="Exit with status 1 for a warning, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(arguments: tuple[str, ...], running: bool, unit: str | None, strict: bool, as_json: bool) -> None:
    """Say what a start would refuse, what would have no effect, and how many workers there would be.

    Takes the options of `run`. You can also put `multicore-server check` before the command that starts the
    server: `multicore-server check gunicorn -c conf.py app:app`. Nothing is started. The exit status is 0 if
    the server would start, else 1.
    """
    findings = [*_findings(list(arguments), running=running, allowed=_allowed(unit))]
    levels = [it.level for it in findings]
    failed = "error" in levels or (strict and "warning" in levels)
    if as_json:
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


def _findings(words: list[str], **how: Any) -> Iterator[Finding]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            app = _application(words)
    except SystemExit as exc:
        if not exc.code:  # gunicorn --help
            raise
        yield Finding("error", in_one_line(said.getvalue()), said.getvalue().strip())
        return
    sys.stderr.write(said.getvalue())
    yield from find(app, **how)


def _application(words: list[str]) -> Any:
    """gunicorn's application, loaded. Raises click.UsageError; ends the process for a bad config file."""
    words = _without_interpreter(words)
    names = [Path(word).name for word in words[:2]]
    if names[:1] == ["gunicorn"]:
        from gunicorn.app.wsgiapp import WSGIApplication

        sys.argv = ["gunicorn", *words[1:]]  # where gunicorn, and whoever reads its settings, looks for them
        return WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
    begin = next((known for known in OURS if names[: len(known)] == known), [])
    name = click.get_current_context().command_path
    with _parser().make_context(name, words[len(begin) :]) as ctx:
        app = make_application(ctx)
    app.app_uri = app.app_uri or app.cfg.wsgi_app  # the config file may name it
    return app


def _without_interpreter(words: list[str]) -> list[str]:
    """``python -m multicore_server run`` is ``multicore-server run``."""
    if not words or not re.fullmatch(r"python[\d.]*", Path(words[0]).name) or "-m" not in words[:-1]:
        return words
    module, *rest = words[words.index("-m") + 1 :]
    return [module.replace("_", "-"), *rest]


def _parser() -> Run:
    """`run`, where the app may be left out."""
    params = [copy.copy(param) for param in run_command.params]
    for param in params:
        param.required = param.required and param.name != "app"
    return Run("check", params=params, context_settings=run_command.context_settings)


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
