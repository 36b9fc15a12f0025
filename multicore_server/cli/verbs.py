"""The operating verbs: what `pm2 list`, `reload`, `scale` and the rest do, through the command socket."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from multicore_server.cli import listing
from multicore_server.cli.all_users import running_of_all, user_of
from multicore_server.cli.arguments import seconds_of, server_and_instances
from multicore_server.cli.progress import wait, wait_for_end
from multicore_server.cli.servers import (
    Begun,
    FailedError,
    GoneError,
    NoAnswerError,
    RunningServer,
    Trouble,
    ask_all,
    choose,
    names,
    running,
)
from multicore_server.cli.text import plain
from multicore_server.cli.waiting import CommandResult, Reloading, Restarting, Scaling, Wait
from multicore_server.ipc.report import EventReport

F = TypeVar("F", bound=Callable[..., Any])

LAST = 20  # events that are shown where nobody says how many


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in names() if name.startswith(incomplete)]


def _server(function: F) -> F:
    text = "SERVER is a name, a port or a pid; it can be left out where one server runs."
    function.__doc__ = f"{function.__doc__}\n\n{text}"
    return click.argument("server", required=False, shell_complete=_complete)(function)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_no_wait = click.option("--no-wait", is_flag=True, help="Return when it has begun.")


# --- looking ---


@click.command()
@_server
@click.option("-a", "--all", "of_all", is_flag=True, help="The servers of all users; for root.")
@_as_json
def ps(server: str | None, of_all: bool, as_json: bool) -> None:
    """List the workers of all running servers of this user, or of one of them."""
    servers = _chosen(server, of_all=of_all)
    silent = _list_json(servers) if as_json else listing.print_workers(servers)
    if not servers:
        click.echo(f"no server{'' if of_all else ' of this user'} is running", err=True)
    for trouble in silent:
        trouble.show()
    if silent:
        sys.exit(2)


def _chosen(server: str | None, *, of_all: bool) -> list[RunningServer]:
    if of_all and server is not None:
        raise Trouble("ps: give a server or --all")
    if of_all:
        return running_of_all()
    return running() if server is None else [choose(server)]


def _list_json(servers: list[RunningServer]) -> list[Trouble]:
    answers = ask_all(servers)
    there = {server: it for server, it in answers.items() if not isinstance(it, Trouble)}
    _print_json(
        [it if server.owner is None else {**it, "user": user_of(server)} for server, it in there.items()]
    )
    return [it for it in answers.values() if isinstance(it, Trouble)]


@click.command()
@_server
@_as_json
def show(server: str | None, as_json: bool) -> None:
    """Show all about one server: its workers, the settings in force, what happened lately."""
    chosen = choose(server)
    if as_json:
        _print_json(chosen.status())
    else:
        listing.print_server(chosen)


@click.command()
@_server
def metrics(server: str | None) -> None:
    """Print a server's metrics as Prometheus gets them."""
    body = choose(server).metrics()
    if sys.stdout.isatty():  # an app's labels may hold anything
        for line in body.decode(errors="replace").split("\n")[:-1]:
            click.echo(plain(line))
    else:
        sys.stdout.buffer.write(body)


@click.command()
@_server
@click.option("-f", "--follow", is_flag=True, help="Go on with each new one, until the server ends.")
@click.option("--last", metavar="N", help=f"How many of those that there were: {LAST}, or 0 with --follow.")
@click.option("--json", "as_json", is_flag=True, help="Print each as one line of JSON.")
def events(server: str | None, follow: bool, last: str | None, as_json: bool) -> None:
    """Print what happened to a server's workers."""
    number = _number(last, 0 if follow else LAST)
    chosen = choose(server)
    if follow:
        _follow(chosen, number, as_json)
        return
    there = chosen.status()["events"]
    for event in there[len(there) - min(number, len(there)) :]:
        _print_event(event, as_json)


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise Trouble(f"--last: {text!r} is no number of events")
    return int(text)


def _follow(server: RunningServer, last: int, as_json: bool) -> None:
    """Until the server ends or the reader leaves; a monitor that is replaced costs no event."""
    there = server.status()["events"]
    seen = max((event["id"] for event in there[: max(0, len(there) - last)]), default=0)
    try:
        while server.lives():
            seen = _follow_once(server, seen, as_json)
            time.sleep(0.2)
        click.echo(f"{server} has ended", err=True)
    except KeyboardInterrupt:
        pass


def _follow_once(server: RunningServer, seen: int, as_json: bool) -> int:
    """The number of the last event that was printed."""
    try:
        for event in server.events(last=999_999):
            if event["id"] > seen:
                _print_event(event, as_json)
                seen = event["id"]
    except (NoAnswerError, GoneError):
        pass
    return seen


def _print_event(event: EventReport, as_json: bool) -> None:
    click.echo(json.dumps(event) if as_json else listing.event_line(event))
    sys.stdout.flush()


def _print_json(document: object) -> None:
    click.echo(json.dumps(document, indent=2))


# --- changing ---


@click.command()
@_server
@_no_wait
@_as_json
def reload(server: str | None, no_wait: bool, as_json: bool) -> None:
    """Load the configuration and the app afresh and replace every worker; no request is lost.

    Exit status 1 when it was rolled back or has failed: the old workers go on.
    """
    chosen = choose(server)
    waiting = None if no_wait else Reloading(chosen.status())
    _conclude(chosen, chosen.command("reload"), waiting, as_json)


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER] [INSTANCE]...", shell_complete=_complete)
@click.option("-s", "--server", help="The server's name, port or pid; then every argument is an instance.")
@_no_wait
@_as_json
def restart(arguments: tuple[str, ...], server: str | None, no_wait: bool, as_json: bool) -> None:
    """Replace all workers, or those of some instances, one after the other; revives errored ones.

    A number is an INSTANCE as `ps` shows it, anything else before it the server's name.
    Exit status 1 when a replacement does not become ready: the old worker goes on.
    """
    server, instances = server_and_instances("restart", arguments, server)
    chosen = choose(server)
    waiting = None if no_wait else Restarting(chosen.status(), instances)
    begun = chosen.command("restart", instances=instances)
    _conclude(chosen, begun, waiting, as_json)


# A number such as -1 is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, metavar="[SERVER] N|+N|-N|max", shell_complete=_complete)
@click.option("-s", "--server", help="The server's name, port or pid.")
@_no_wait
@_as_json
def scale(arguments: tuple[str, ...], server: str | None, no_wait: bool, as_json: bool) -> None:
    """Run N workers from now on, N more or fewer, or one for each CPU (max).

    Exit status 1 when a new worker does not become ready.
    """
    *named, wanted = arguments or ("",)
    if len(named) > (server is None):
        raise Trouble("scale: give a server and a number of workers, such as `scale api +2`")
    if not re.fullmatch(r"max|[+-]?\d{1,6}", wanted, re.ASCII | re.IGNORECASE):
        raise Trouble(f"scale: {wanted!r} is no number of workers; give 4, +1, -1 or max")
    chosen = choose(named[0] if named else server)
    before = chosen.status()
    begun = chosen.command("scale", workers=wanted)
    waiting = None if no_wait or begun.workers is None else Scaling(before, begun.workers)
    _conclude(chosen, begun, waiting, as_json)


@click.command()
@_server
@click.option("--now", is_flag=True, help="Do not wait for the requests in hand.")
@_no_wait
@_as_json
def stop(server: str | None, now: bool, no_wait: bool, as_json: bool) -> None:
    """End a server: it answers the requests in hand, then its processes end."""
    chosen = choose(server)
    begun = chosen.command("stop", graceful=not now)
    outcome = CommandResult(True, begun.text) if no_wait else wait_for_end(chosen, silent=as_json)
    _print_outcome(chosen, outcome, as_json)


@click.command()
@_server
@_as_json
def reset(server: str | None, as_json: bool) -> None:
    """Forget the workers' unstable exits and start errored ones again."""
    chosen = choose(server)
    _print_outcome(chosen, CommandResult(True, chosen.command("reset").text), as_json)


def _conclude(server: RunningServer, begun: Begun, waiting: Wait | None, as_json: bool) -> None:
    """Wait, if that is wanted, and say what came of it."""
    outcome = CommandResult(True, begun.text) if waiting is None else wait(server, waiting, silent=as_json)
    _print_outcome(server, outcome, as_json)


def _print_outcome(server: RunningServer, outcome: CommandResult, as_json: bool) -> None:
    if as_json:
        _print_json({"ok": outcome.ok, "text": outcome.text, "pid": server.pid})
    elif outcome.ok:
        click.echo(plain(outcome.text))
    if not outcome.ok:
        if as_json:
            sys.exit(1)
        raise FailedError(outcome.text)


# --- watching ---


@click.command()
@_server
@click.option("--interval", metavar="SECONDS", default="1", help="Time between two looks; 1 by default.")
def monit(server: str | None, interval: str) -> None:
    """Watch a server live: its workers, requests and events; keys reload, restart and scale it."""
    seconds = _seconds(interval)
    try:
        from multicore_server.cli.monit import watch
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "rich":
            raise
        raise Trouble("monit needs rich: pip install 'multicore-server[monit]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Trouble("monit needs a terminal; `ps --json` and `show --json` are for scripts")
    watch(choose(server), seconds)


def _seconds(text: str) -> float:
    found = seconds_of("--interval", text)
    if not 0.1 <= found <= 60:
        raise Trouble(f"--interval: {text!r} is not from 0.1 to 60 seconds")
    return found
