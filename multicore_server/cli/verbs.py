"""The operating verbs: do what `pm2 list`, `reload`, `scale` and others do, through the command socket."""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from multicore_server.cli import listing
from multicore_server.cli.all_users import running_of_all, user_of
from multicore_server.cli.arguments import (
    check_instances,
    choosing,
    complete,
    number_of,
    seconds_of,
    servers_and_instances,
)
from multicore_server.cli.elsewhere import SHOWN
from multicore_server.cli.progress import wait, wait_for_end
from multicore_server.cli.servers import (
    Begun,
    FailedError,
    GoneError,
    LeftError,
    NoAnswerError,
    RunningServer,
    Trouble,
    UnknownServerError,
    ask_all,
    choose,
    running,
)
from multicore_server.cli.table import understands_escapes
from multicore_server.cli.text import plain
from multicore_server.cli.waiting import CommandResult, Reloading, Restarting, Scaling, Wait
from multicore_server.ipc.report import EventReport

F = TypeVar("F", bound=Callable[..., Any])

LAST = 20  # events that are shown without --last


def _explain(function: Callable[..., Any], text: str) -> None:
    function.__doc__ = f"{inspect.getdoc(function) or ''}\n\n{text}"  # `python -OO` has no docstrings


def _server(function: F) -> F:
    text = "SERVER is a name, a port or a pid. Leave it out if only one server runs."
    _explain(function, text)
    return click.argument("server", required=False, shell_complete=complete)(function)


def _servers(function: F) -> F:
    text = "SERVER is a name, port or pid, an ecosystem file or all. Leave it out if only one server runs."
    _explain(function, text)
    return click.argument("servers", nargs=-1, metavar="[SERVER]...", shell_complete=complete)(function)


def _choose_all(named: Iterable[str]) -> list[RunningServer]:
    """Raises Trouble."""
    wanted: list[str | None] = [name for each in named for name in _names_in(each)]
    found = [server for name in wanted or [None] for server in _meant_by(name)]
    return list({server.pid: server for server in found}.values())


def _meant_by(name: str | None) -> list[RunningServer]:
    if name == "all":
        return list(ask_all(running())) or [choose(None)]  # which says that there is none
    try:
        return [choose(name)]
    except UnknownServerError:
        if name is not None and name in _names_here():
            raise Trouble(f"no server {name!r} is running; `start {name}` starts it") from None
        raise


def _names_in(text: str) -> list[str]:
    if not text.endswith(".toml"):
        return [text]
    from multicore_server.cli import ecosystem

    return ecosystem.names(Path(text))


def _names_here() -> list[str]:
    from multicore_server.cli import ecosystem

    path = ecosystem.find(Path.cwd())
    return ecosystem.names(path) if path else []


def _each(
    servers: Sequence[RunningServer], act: Callable[[RunningServer], None], *, named: bool = True
) -> int:
    """Act on one server after the other, also after a failure. Return the exit status."""
    worst = 0
    for server in servers:
        if named and len(servers) > 1:
            click.echo(f"{server.title}:", err=True)
        try:
            act(server)
        except LeftError:
            raise
        except Trouble as exc:
            exc.show()
            worst = max(worst, exc.exit_code)
    return worst


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_no_wait = click.option("--no-wait", is_flag=True, help="Return as soon as the server has started the work.")


# --- looking ---


@click.command()
@_servers
@click.option("-a", "--all", "of_all", is_flag=True, help="The servers of all users; for root.")
@_as_json
def ps(servers: tuple[str, ...], of_all: bool, as_json: bool) -> None:
    """List the workers of all running servers of this user, or of some of them."""
    chosen = _chosen(servers, of_all=of_all)
    silent = _list_json(chosen) if as_json else listing.print_workers(chosen)
    if not chosen:
        click.echo(f"no server{'' if of_all else ' of this user'} is running", err=True)
    for trouble in silent:
        trouble.show()
    if silent:
        sys.exit(2)


def _chosen(wanted: tuple[str, ...], *, of_all: bool) -> list[RunningServer]:
    if of_all and wanted:
        raise Trouble("ps: give a server or --all")
    if of_all:
        return running_of_all()
    return _choose_all(wanted) if wanted else running()


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
    """Show one server in detail: its workers, the settings in force, the last events."""
    try:
        chosen = choose(server)
    except UnknownServerError:
        if server in SHOWN:
            raise Trouble(f"show {server} is gunicornc's; {SHOWN[server]}") from None
        raise
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
@click.option("-f", "--follow", is_flag=True, help="Also print each new event, until the server exits.")
@click.option("--last", metavar="N", help=f"Number of past events: {LAST}, or 0 with --follow.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
def events(server: str | None, follow: bool, last: str | None, as_json: bool) -> None:
    """Print what happened to a server's workers."""
    number = number_of("--last", last, 0 if follow else LAST)
    chosen = choose(server)
    if follow:
        _follow(chosen, number, as_json)
        return
    there = chosen.status()["events"]
    for event in there[len(there) - min(number, len(there)) :]:
        _print_event(event, as_json)


def _follow(server: RunningServer, last: int, as_json: bool) -> None:
    """Until the server exits or the reader leaves. If the monitor is replaced, no event is lost."""
    there = server.status()["events"]
    seen = max((event["id"] for event in there[: max(0, len(there) - last)]), default=0)
    try:
        while server.lives():
            seen = _follow_once(server, seen, as_json)
            time.sleep(0.2)
        click.echo(f"{server} has exited", err=True)
    except KeyboardInterrupt:
        pass


def _follow_once(server: RunningServer, seen: int, as_json: bool) -> int:
    """Return the number of the last event that was printed."""
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
@_servers
@_no_wait
@_as_json
def reload(servers: tuple[str, ...], no_wait: bool, as_json: bool) -> None:
    """Load the configuration and the app again and replace every worker; no request is lost.

    The exit status is 1 if the reload fails or is rolled back: the old workers keep serving.
    """

    def begin(server: RunningServer) -> None:
        waiting = None if no_wait else Reloading(server.status())
        _conclude(server, server.command("reload"), waiting, as_json)

    sys.exit(_each(_choose_all(servers), begin))


@click.command()
@click.argument("arguments", nargs=-1, metavar="[SERVER]... [INSTANCE]...", shell_complete=complete)
@click.option("-s", "--server", help="Name, port or pid of the server; all arguments are then instances.")
@_no_wait
@_as_json
def restart(arguments: tuple[str, ...], server: str | None, no_wait: bool, as_json: bool) -> None:
    """Replace all workers, or the workers of some instances, one after the other; start errored ones again.

    A number is an INSTANCE, as `ps` shows it. Names before it are servers, or all.
    The exit status is 1 if a replacement does not become ready: the old worker keeps serving.
    """
    named, instances = servers_and_instances("restart", arguments, server)

    def begin(server: RunningServer) -> None:
        before = server.status()
        check_instances("restart", instances, before)
        waiting = None if no_wait else Restarting(before, instances)
        _conclude(server, server.command("restart", instances=instances), waiting, as_json)

    with choosing(instances):
        servers = _choose_all(named)
    sys.exit(_each(servers, begin))


# A number such as -1 is not an option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, metavar="[SERVER] N|+N|-N|max", shell_complete=complete)
@click.option("-s", "--server", help="Name, port or pid of the server.")
@_no_wait
@_as_json
def scale(arguments: tuple[str, ...], server: str | None, no_wait: bool, as_json: bool) -> None:
    """Change the number of workers: to N, by +N or -N, or to one for each CPU (max).

    The exit status is 1 if a new worker does not become ready.
    """
    *named, wanted = arguments or ("",)
    if len(named) > (server is None):
        raise Trouble("scale: give a server and a number of workers, such as `scale api +2`")
    if not re.fullmatch(r"max|[+-]?\d{1,6}", wanted, re.ASCII | re.IGNORECASE):
        raise Trouble(f"scale: {wanted!r} is not a number of workers; give 4, +1, -1 or max")
    chosen = choose(named[0] if named else server)
    before = chosen.status()
    begun = chosen.command("scale", workers=wanted)
    waiting = None if no_wait or begun.workers is None else Scaling(before, begun.workers)
    _conclude(chosen, begun, waiting, as_json)


@click.command()
@_servers
@click.option("--now", is_flag=True, help="Do not wait for the requests in progress.")
@_no_wait
@_as_json
def stop(servers: tuple[str, ...], now: bool, no_wait: bool, as_json: bool) -> None:
    """Stop a server: it answers the requests in progress, then its processes exit."""
    told: dict[RunningServer, str] = {}

    def tell(server: RunningServer) -> None:
        told[server] = server.command("stop", graceful=not now).text

    def conclude(server: RunningServer) -> None:
        outcome = CommandResult(True, told[server]) if no_wait else wait_for_end(server, silent=as_json)
        _print_outcome(server, outcome, as_json)

    refused = _each(_choose_all(servers), tell, named=False)  # all of them first: they drain at the same time
    sys.exit(max(refused, _each(list(told), conclude)))


@click.command()
@_servers
@_as_json
def reset(servers: tuple[str, ...], as_json: bool) -> None:
    """Set the workers' counts of unstable exits to 0 and start errored workers again."""

    def begin(server: RunningServer) -> None:
        _print_outcome(server, CommandResult(True, server.command("reset").text), as_json)

    sys.exit(_each(_choose_all(servers), begin))


def _conclude(server: RunningServer, begun: Begun, waiting: Wait | None, as_json: bool) -> None:
    """Wait, unless --no-wait is given, and print the result."""
    outcome = CommandResult(True, begun.text) if waiting is None else wait(server, waiting, silent=as_json)
    _print_outcome(server, outcome, as_json)


def _print_outcome(server: RunningServer, outcome: CommandResult, as_json: bool) -> None:
    if as_json:
        _print_json({"ok": outcome.ok, "text": outcome.text, "pid": server.pid})
    elif outcome.ok:
        click.echo(plain(outcome.text))
    if not outcome.ok:
        raise FailedError("" if as_json else outcome.text)  # it was printed


# --- watching ---


@click.command()
@_server
@click.option("--interval", metavar="SECONDS", default="1", help="Time between two updates; 1 by default.")
def monit(server: str | None, interval: str) -> None:
    """Watch a server live: its workers, requests and events. Keys reload, restart and scale it."""
    seconds = _seconds(interval)
    try:
        from multicore_server.cli.monit import watch
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "rich":
            raise
        raise Trouble("monit needs rich: pip install 'multicore-server[monit]'") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Trouble("monit needs a terminal; `ps --json` and `show --json` are for scripts")
    if not understands_escapes():
        raise Trouble("monit needs a terminal that moves its cursor, not TERM=dumb; `ps` shows the same once")
    watch(choose(server), seconds)


def _seconds(text: str) -> float:
    found = seconds_of("--interval", text)
    if not 0.1 <= found <= 60:
        raise Trouble(f"--interval: {text!r} is not from 0.1 to 60 seconds")
    return found
